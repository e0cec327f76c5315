import { expect, it } from 'vitest';
import { drafted, instruction, longer, marked, typed, without } from '../src/task';

const LOOK = { text: 'Look at the backups.', destructive: false };
const DELETE = { text: 'Delete those before May.', destructive: true };

it('is one step a line', () => {
  expect(instruction(drafted([LOOK, DELETE]))).toBe('Look at the backups.\nDelete those before May.');
});

it('is changed, made shorter and longer by hand; a mark stays with its step', () => {
  const changed = typed([LOOK, DELETE], 1, ' Delete those before April. ');
  expect(changed[1]).toEqual({ text: ' Delete those before April. ', destructive: true });
  expect(instruction(without(changed, 0))).toBe('Delete those before April.');
  expect(instruction(typed(longer(changed), 2, 'Report.'))).toContain('\nReport.');
});

it('without a step left has one to write in, and is nothing', () => {
  const empty = without([DELETE], 0);
  expect(empty).toEqual([{ text: '', destructive: false }]);
  expect(instruction(empty)).toBe('');
  expect(drafted([])).toEqual(empty);
});

it('says how many steps could lose something; an emptied one cannot', () => {
  expect(marked([LOOK, DELETE, DELETE])).toBe(2);
  expect(marked(typed([LOOK, DELETE], 1, ' '))).toBe(0);
});
