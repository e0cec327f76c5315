import { describe, expect, it } from 'vitest';
import { Words } from '../src/words';

const read = (...pieces: string[]) => {
  const words = new Words();
  return pieces.map((piece) => words.add(piece)).join('') + words.end();
};

describe("Moshi's words", () => {
  it('are the pieces in a row', () => expect(read(' Hel', 'lo', ',', ' you')).toBe(' Hello, you'));
  it('bytes become characters', () => expect(read('<0x41>', '<0x62>')).toBe('Ab'));
  it('a character of several bytes appears when it is whole', () => {
    const words = new Words();
    expect(['<0xF0>', '<0x9F>', '<0x99>'].map((piece) => words.add(piece)).join('')).toBe('');
    expect(words.add('<0x82>')).toBe('🙂');
  });
  it('an incomplete character does not swallow what follows', () =>
    expect(read('<0xF0>', '<0x9F>', ' hi')).toBe('\uFFFD hi'));
  it('an incomplete character at the end is shown as such', () =>
    expect(read('a', '<0xC3>')).toBe('a\uFFFD'));
  it('what only looks like a byte is text', () =>
    expect(read('<0x4>', '<0xZZ>', 'x<0x41>')).toBe('<0x4><0xZZ>x<0x41>'));
});
