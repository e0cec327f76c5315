import { describe, expect, it } from 'vitest';
import { news, remembers } from '../src/metadata';

describe('what the engine tells', () => {
  it.each([
    [
      { type: 'welcome', engine: 'duplex', call: 'c', age_s: 12.3 },
      { type: 'welcome', engine: 'duplex', ageS: 12.3, resumed: null, words: null },
    ],
    [
      {
        type: 'welcome',
        engine: 'duplex',
        age_s: 0,
        resumed: true,
        words: { available: false, reason: 'off' },
      },
      {
        type: 'welcome',
        engine: 'duplex',
        ageS: 0,
        resumed: true,
        words: { available: false, reason: 'off' },
      },
    ],
    [
      { type: 'status', turnaround_ms: 23.1, lag_ms: 80 },
      { type: 'status', turnaroundMs: 23.1, lagMs: 80 },
    ],
    [
      { type: 'dropped', heard_frames: 3, said_frames: 1 },
      { type: 'dropped', heardFrames: 3, saidFrames: 1 },
    ],
    [
      { type: 'draining', seconds: 60 },
      { type: 'draining', seconds: 60 },
    ],
    [
      { type: 'transcript', who: 'caller', text: 'Hello', final: false, start_ms: 0, end_ms: 400 },
      { type: 'transcript', who: 'you', text: 'Hello', final: false },
    ],
    [
      { type: 'transcript', who: 'moshi', text: 'Hi.', final: true },
      { type: 'transcript', who: 'moshi', text: 'Hi.', final: true },
    ],
    [
      { type: 'turn_end', text: 'Use the second one.' },
      { type: 'turn_end', text: 'Use the second one.' },
    ],
    [
      { type: 'words', available: false, reason: 'too many callers' },
      { type: 'words', available: false, reason: 'too many callers' },
    ],
  ])('%j', (value, wanted) => expect(news(value)).toEqual(wanted));

  it.each([
    {},
    { type: 'something_new' },
    { type: 'status' },
    { type: 'transcript', text: 7 },
    { type: 'words' },
  ])('without sense is left alone: %j', (value) => expect(news(value)).toBeNull());
});

describe('a conversation', () => {
  const welcome = (age_s: number | null, resumed?: boolean) =>
    news({ type: 'welcome', engine: 'duplex', age_s, resumed }) as Parameters<typeof remembers>[0];

  it('that is older than its connection is the one that broke', () => {
    expect(remembers(welcome(2.5), 400)).toBe(true);
    expect(remembers(welcome(0.4), 400)).toBe(false);
    expect(remembers(welcome(0), 20)).toBe(false);
  });

  it('is what the engine itself says it is, if it does', () => {
    expect(remembers(welcome(99, false), 400)).toBe(false);
    expect(remembers(welcome(0, true), 400)).toBe(true);
  });

  it('of unknown age is a new one', () => expect(remembers(welcome(null), 400)).toBe(false));
});
