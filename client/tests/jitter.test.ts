import { describe, expect, it } from 'vitest';
import { JitterBuffer } from '../src/jitter';

const RATE = 48_000;
const QUANTUM = 128;
const ms = (samples: number) => (samples * 1000) / RATE;

/** A voice: a 150 Hz tone with overtones, whose samples continue from call to call. */
function voice(pitch = 150, loudness = 0.3) {
  let n = 0;
  return (length: number) =>
    Float32Array.from({ length }, () => {
      const t = n++ / RATE;
      return (
        (loudness * (Math.sin(2 * Math.PI * pitch * t) + 0.5 * Math.sin(4 * Math.PI * pitch * t + 1))) / 1.5
      );
    });
}

/**
 * Plays for `seconds`: blocks of 80 ms arrive every 80 ms plus `late(n)` ms, never out of order (it is TCP).
 * Returns everything that was heard.
 */
function play(
  buffer: JitterBuffer,
  seconds: number,
  late: (n: number) => number = () => 0,
  next = voice(),
  fromBlock = 0,
): Float32Array {
  const heard = new Float32Array(Math.round((seconds * RATE) / QUANTUM) * QUANTUM);
  let block = 0;
  let due = late(fromBlock);
  for (let at = 0; at < heard.length; at += QUANTUM) {
    while (due <= ms(at)) {
      buffer.push(next(RATE * 0.08));
      block++;
      due = Math.max(due, block * 80 + late(fromBlock + block));
    }
    buffer.pull(heard.subarray(at, at + QUANTUM));
  }
  return heard;
}

const rms = (x: Float32Array) => Math.sqrt(x.reduce((sum, v) => sum + v * v, 0) / x.length);

/** The largest step from sample to sample: a click is a large one. */
function largestStep(x: Float32Array): number {
  let largest = 0;
  for (let i = 1; i < x.length; i++) largest = Math.max(largest, Math.abs((x[i] ?? 0) - (x[i - 1] ?? 0)));
  return largest;
}

describe('a calm network', () => {
  it('plays everything, without an underrun, a cut or a drop, at most 60 ms late', () => {
    const buffer = new JitterBuffer(RATE);
    const heard = play(buffer, 10);
    const { underruns, droppedMs, skippedMs, delayMs, playedMs } = buffer.numbers;
    expect({ underruns, droppedMs }).toEqual({ underruns: 0, droppedMs: 0 });
    expect(skippedMs).toBeLessThanOrEqual(25);
    expect(delayMs).toBeLessThanOrEqual(60);
    expect(playedMs).toBeGreaterThan(9_900);
    expect(rms(heard.subarray(RATE))).toBeGreaterThan(0.1);
  });

  it('gives back the very samples', () => {
    const buffer = new JitterBuffer(RATE);
    buffer.push(voice()(RATE * 0.08));
    const heard = new Float32Array(RATE * 0.1);
    for (let at = 0; at + QUANTUM <= heard.length; at += QUANTUM)
      buffer.pull(heard.subarray(at, at + QUANTUM));
    const began = heard.findIndex((v) => v !== 0) - 1;
    expect(ms(began)).toBeCloseTo(40, -1);
    const wanted = voice()(RATE * 0.08);
    // After the fade-in.
    for (let i = 480; i < 2000; i++) expect(heard[began + i]).toBeCloseTo(wanted[i] ?? 0, 1);
  });
});

describe('a late network', () => {
  it('after one stall of 200 ms it goes on at once and is back at a small delay within 5 s', () => {
    const buffer = new JitterBuffer(RATE);
    const heard = play(buffer, 7.3, (n) => (n === 25 ? 200 : 0));
    expect(buffer.numbers.underruns).toBe(1);
    expect(buffer.numbers.delayMs).toBeLessThanOrEqual(60);
    expect(buffer.numbers.skippedMs).toBeGreaterThan(100);
    expect(buffer.numbers.droppedMs).toBe(0);
    expect(largestStep(heard)).toBeLessThan(0.05);
  });

  it('after a stall of more than a second it drops what is too old to be answered, once', () => {
    const buffer = new JitterBuffer(RATE);
    const heard = play(buffer, 9, (n) => (n === 25 ? 1200 : 0));
    expect(buffer.numbers.delayMs).toBeLessThanOrEqual(60);
    expect(buffer.numbers.droppedMs).toBeGreaterThan(500);
    expect(buffer.numbers.underruns).toBe(1);
    expect(largestStep(heard)).toBeLessThan(0.05);
  });

  it('learns: stalls of 200 ms every 2 s make it stumble once, not every time', () => {
    const buffer = new JitterBuffer(RATE);
    play(buffer, 20, (n) => (n % 25 === 24 ? 200 : 0));
    expect(buffer.numbers.underruns).toBeLessThanOrEqual(2);
  });

  it('with 300 ms of jitter speech goes on', () => {
    const buffer = new JitterBuffer(RATE);
    let seed = 7;
    const random = () => {
      seed = (seed * 48_271) % 2_147_483_647;
      return seed / 2_147_483_647;
    };
    play(buffer, 30, () => random() * 300);
    expect(buffer.numbers.underruns).toBeLessThanOrEqual(5);
    expect(buffer.numbers.playedMs).toBeGreaterThan(28_500);
    expect(buffer.numbers.delayMs).toBeLessThan(450);
  });

  it('never clicks, neither when it runs dry nor when it goes on nor when it cuts', () => {
    const buffer = new JitterBuffer(RATE);
    const heard = play(buffer, 12, (n) => (n % 31 === 13 ? 150 : 0), voice(220, 0.8));
    const clean = largestStep(voice(220, 0.8)(RATE));
    expect(largestStep(heard)).toBeLessThan(clean * 2.5);
  });

  it('cuts in a pause without looking for a likeness', () => {
    const buffer = new JitterBuffer(RATE);
    play(
      buffer,
      8,
      (n) => (n === 10 ? 300 : 0),
      (length) => new Float32Array(length),
    );
    expect(buffer.numbers.skippedMs).toBeGreaterThan(200);
    expect(buffer.numbers.delayMs).toBeLessThanOrEqual(60);
    expect(buffer.numbers.voicedMs).toBe(0);
  });
});

describe('too much at once', () => {
  it('drops the oldest, counts it and stays below the longest delay', () => {
    const buffer = new JitterBuffer(RATE);
    for (let i = 0; i < 50; i++) buffer.push(voice()(RATE * 0.08));
    expect(buffer.numbers.droppedMs).toBeCloseTo(50 * 80 - 1500, 0);
    const heard = new Float32Array(RATE * 2);
    for (let at = 0; at + QUANTUM <= heard.length; at += QUANTUM)
      buffer.pull(heard.subarray(at, at + QUANTUM));
    expect(buffer.numbers.playedMs).toBeCloseTo(1500, 0);
  });

  it('takes one block longer than all it may hold', () => {
    const buffer = new JitterBuffer(RATE);
    buffer.push(new Float32Array(RATE * 3).fill(0.5));
    expect(buffer.numbers.droppedMs).toBeCloseTo(1500, 0);
  });
});

describe('a new conversation', () => {
  it('does not play what was left of the old one', () => {
    const buffer = new JitterBuffer(RATE);
    buffer.push(voice()(RATE));
    buffer.reset();
    const heard = new Float32Array(RATE);
    for (let at = 0; at + QUANTUM <= heard.length; at += QUANTUM)
      buffer.pull(heard.subarray(at, at + QUANTUM));
    expect(rms(heard)).toBe(0);
    expect(buffer.numbers.underruns).toBe(0);
  });
});

it('works at other rates of the sound card', () => {
  for (const rate of [16_000, 44_100, 96_000]) {
    const buffer = new JitterBuffer(rate);
    const block = new Float32Array(rate * 0.08).fill(0.1);
    const out = new Float32Array(QUANTUM);
    let arrived = 0;
    for (let at = 0; at < rate * 3; at += QUANTUM) {
      if (at >= arrived * rate * 0.08) {
        buffer.push(block);
        arrived++;
      }
      buffer.pull(out);
    }
    expect(buffer.numbers.underruns).toBe(0);
    expect(out.at(-1)).toBeCloseTo(0.1, 5);
  }
});
