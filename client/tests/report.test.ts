import { expect, it } from 'vitest';
import { idle } from '../src/call';
import { report } from '../src/report';
import type { Numbers } from '../src/telephone';

it('a report has the numbers, and no place for anything that was said or asked', () => {
  const text = report({
    version: '1.2',
    engine: 'duplex',
    agent: 'Browser/1',
    numbers: { latencyMs: 301.26, turnaroundMs: null } as Numbers,
    call: { ...idle, phase: 'failed', trouble: { fault: 'line_down', message: 'secret words of the line' } },
    quality: 'good',
    words: 'heard',
  });
  expect(text.split('\n')).toEqual(
    expect.arrayContaining([
      'hotline: 1.2',
      'trouble: line_down',
      'latencyMs: 301.3',
      'turnaroundMs: unknown',
    ]),
  );
  expect(text).not.toContain('secret');
});
