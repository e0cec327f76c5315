import { describe, expect, it } from 'vitest';
import { type Counted, QualityJudge } from '../src/quality';

const calm: Counted = {
  latencyMs: 300,
  underruns: 0,
  droppedMs: 0,
  gaps: 0,
  unheardFrames: 0,
  unsaidFrames: 0,
};

describe('the connection is', () => {
  it.each([
    [300, 'good'],
    [600, 'fair'],
    [1200, 'poor'],
  ])('with %i ms from voice to voice %s', (latencyMs, word) => {
    expect(new QualityJudge().judge({ ...calm, latencyMs }, 0)).toBe(word);
  });

  it('unknown until something was measured', () => {
    expect(new QualityJudge().judge({ ...calm, latencyMs: null }, 0)).toBeNull();
  });

  it.each<[Partial<Counted>, string]>([
    [{ underruns: 1 }, 'good'],
    [{ underruns: 2 }, 'fair'],
    [{ underruns: 6 }, 'poor'],
    [{ gaps: 3 }, 'fair'],
    [{ unheardFrames: 2 }, 'fair'],
    [{ unsaidFrames: 9 }, 'poor'],
    [{ droppedMs: 240 }, 'fair'],
  ])('with %j within ten seconds %s', (trouble, word) => {
    const judge = new QualityJudge();
    judge.judge(calm, 0);
    expect(judge.judge({ ...calm, ...trouble }, 5000)).toBe(word);
  });

  it('good again ten seconds after the trouble, whatever was counted before', () => {
    const judge = new QualityJudge();
    judge.judge(calm, 0);
    const counted = { ...calm, underruns: 9 };
    const words = [];
    for (let second = 1; second <= 13; second++) words.push(judge.judge(counted, second * 1000));
    expect(words[0]).toBe('poor');
    expect(words.at(-1)).toBe('good');
  });
});
