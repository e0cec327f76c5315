import { expect, it } from 'vitest';
import { Turnaround } from '../src/turnaround';

it('is unknown before an answer', () => expect(new Turnaround().median).toBeNull());

it('is the time from a frame to its answer; the engine skips the first frame', () => {
  const turnaround = new Turnaround();
  for (let at = 40; at <= 4000; at += 40) {
    turnaround.sent(40, at);
    // The answer to the frame that was complete 35 ms ago.
    if (at > 120 && (at - 80) % 80 === 0) turnaround.received(80, at + 35);
  }
  expect(turnaround.median).toBe(35);
});

it('follows the line when it gets slower', () => {
  const turnaround = new Turnaround();
  turnaround.sent(80, 0);
  for (let n = 1; n <= 60; n++) {
    turnaround.sent(80, n * 80);
    turnaround.received(80, n * 80 + (n < 30 ? 20 : 70));
  }
  expect(turnaround.median).toBe(70);
});

it('counts pieces of frames together', () => {
  const turnaround = new Turnaround();
  for (let i = 0; i < 8; i++) turnaround.sent(20, i);
  turnaround.received(40, 50);
  expect(turnaround.median).toBeNull();
  turnaround.received(40, 57);
  expect(turnaround.median).toBe(50);
});

it('survives more answers than questions', () => {
  const turnaround = new Turnaround();
  turnaround.received(800, 10);
  expect(turnaround.median).toBeNull();
});
