import { describe, expect, it } from 'vitest';
import { EchoEar } from '../src/echo';

/** Loudness of somebody who speaks in words and pauses, from a seed; 0 to 1, one value every 50 ms. */
function voice(seed: number, length = 600): number[] {
  let state = seed;
  const random = () => (state = (state * 1103515245 + 12345) % 2 ** 31) / 2 ** 31;
  const levels: number[] = [];
  while (levels.length < length) {
    const word = 3 + Math.floor(random() * 8);
    for (let i = 0; i < word; i++) levels.push(0.03 + random() * 0.12);
    const pause = random() < 0.3 ? 15 : 2;
    for (let i = 0; i < pause; i++) levels.push(0.0005);
  }
  return levels.slice(0, length);
}

function heard(moshi: number[], you: number[]): boolean {
  const ear = new EchoEar();
  return moshi.map((level, n) => ear.hears(level, you[n] ?? 0)).some(Boolean);
}

const quiet = (n: number) => 0.0008 + 0.0004 * ((n * 7919) % 13);

describe('Moshi in the microphone', () => {
  it.each([0, 100, 300, 600])('is noticed %i ms late', (late) => {
    const moshi = voice(7);
    const echo = moshi.map((_, n) => 0.3 * (moshi[n - late / 50] ?? 0) + quiet(n));
    expect(heard(moshi, echo)).toBe(true);
  });

  it('is not what a caller says by himself', () => {
    for (const seed of [1, 2, 3, 4, 5]) expect(heard(voice(7), voice(seed))).toBe(false);
  });

  it('is not the noise of a room', () =>
    expect(
      heard(
        voice(7),
        voice(7).map((_, n) => quiet(n)),
      ),
    ).toBe(false));

  it('is not heard by who wears headphones and listens', () => {
    const moshi = voice(9);
    expect(
      heard(
        moshi,
        moshi.map((_, n) => quiet(n)),
      ),
    ).toBe(false);
  });

  it('is no matter when it is too quiet to be understood', () => {
    const moshi = voice(7);
    expect(
      heard(
        moshi,
        moshi.map((level) => level * 0.01),
      ),
    ).toBe(false);
  });
});
