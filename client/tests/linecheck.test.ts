import { describe, expect, it } from 'vitest';
import { judged } from '../src/linecheck';

const steady = (ms: number) => Array.from({ length: 10 }, (_, n) => ms + n);

describe('the way to the line', () => {
  it.each<[string, (number | null)[], string]>([
    ['short and steady', steady(20), 'good'],
    ['over an ocean', steady(150), 'fair'],
    ['by satellite', steady(600), 'poor'],
    ['with hiccups', [...steady(20).slice(2), 150, 160], 'fair'],
    ['that swallows a question', [...steady(20).slice(1), null], 'fair'],
    ['that swallows some', [...steady(20).slice(3), null, null, null], 'poor'],
    ['that swallows all', [null, null], 'poor'],
  ])('%s', (_, trips, verdict) => expect(judged(trips).verdict).toBe(verdict));

  it('takes what the middle one took, and the slow ones more', () => {
    expect(judged([10, 20, 30, 40, 100])).toMatchObject({ roundTripMs: 30, jitterMs: 70, lost: 0 });
  });
});
