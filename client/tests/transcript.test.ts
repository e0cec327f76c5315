import { describe, expect, it } from 'vitest';
import { begun, empty, heard, plain, said, settled, type Transcript } from '../src/transcript';

const fresh = begun([]);
const speak = (transcript: Transcript, pieces: string[], from: number, step = 80) =>
  pieces.reduce((so, piece, n) => said(so, piece, from + n * step), transcript);
const shown = (transcript: Transcript) =>
  transcript.map((lines) => lines.map(({ who, text, final }) => `${who}${final ? '.' : '…'} ${text}`));

describe('Moshi', () => {
  it('speaks in pieces, which are one line', () => {
    expect(shown(speak(fresh, [' Hello', ',', ' how', ' are', ' you'], 0))).toEqual([
      ['moshi… Hello, how are you'],
    ]);
  });

  it('begins a new line after a pause', () => {
    const first = speak(fresh, [' Well'], 0);
    expect(shown(said(first, ' then', 2000))).toEqual([['moshi… Well then']]);
    expect(shown(said(first, ' then', 3000))).toEqual([['moshi. Well', 'moshi… then']]);
  });

  it('and sooner at the end of a sentence', () => {
    expect(shown(said(speak(fresh, [' Yes.'], 0), ' So', 1500))).toEqual([['moshi. Yes.', 'moshi… So']]);
    expect(shown(said(speak(fresh, [' Yes.'], 0), ' So', 500))).toEqual([['moshi… Yes. So']]);
  });

  it('does not begin a line with a mere space', () => {
    expect(said(fresh, ' ', 0)[0]).toEqual([]);
  });
});

describe('the caller', () => {
  it('is understood better and better, until it is final', () => {
    const first = heard(fresh, 'I scream', false, 0);
    const better = heard(first, 'Ice cream, please.', true, 400);
    expect(shown(better)).toEqual([['you. Ice cream, please.']]);
    expect(shown(heard(better, 'Two', false, 800))).toEqual([['you. Ice cream, please.', 'you… Two']]);
  });

  it('whose words turn out to be none has not said anything', () => {
    expect(heard(heard(fresh, 'Hm', false, 0), '', true, 400)[0]).toEqual([]);
    expect(heard(fresh, ' ', true, 0)[0]).toEqual([]);
  });

  it('may speak while Moshi does: neither sentence is cut', () => {
    let both = speak(fresh, [' I', ' think'], 0);
    both = heard(both, 'Wait', false, 200);
    both = said(both, ' that', 300);
    both = heard(both, 'Wait a moment', true, 600);
    both = said(both, ' we', 700);
    expect(shown(both)).toEqual([['moshi… I think that we', 'you. Wait a moment']]);
  });
});

it('a conversation that is over takes no more words into its lines', () => {
  const over = settled(speak(fresh, [' Good'], 0));
  expect(shown(said(over, ' bye', 100))).toEqual([['moshi. Good', 'moshi… bye']]);
});

it('a new conversation stands apart from the one before', () => {
  const second = said(begun(said(fresh, 'One', 0)), 'Two', 100);
  expect(shown(second)).toEqual([['moshi. One'], ['moshi… Two']]);
});

it('is empty until somebody said something', () => {
  expect(empty([])).toBe(true);
  expect(empty(fresh)).toBe(true);
  expect(empty(heard(fresh, 'Hi', false, 0))).toBe(false);
});

it('can be read as plain text, with times from the beginning', () => {
  let transcript = said(fresh, ' Hello.', 5000);
  transcript = heard(transcript, 'Hi', true, 8000);
  transcript = said(begun(transcript), ' Hello?', 70_000);
  const names = { moshi: 'Moshi', you: 'You', anew: 'anew' };
  expect(plain(transcript, names, (ms) => `${ms / 1000}`)).toBe(
    '[0] Moshi: Hello.\n[3] You: Hi\n--- anew ---\n[65] Moshi: Hello?',
  );
});
