import { expect, it } from 'vitest';
import { added, blank, chosen, spoken, typed } from '../src/answer';

it('fills by itself, turn by turn', () => {
  expect(spoken(spoken(blank, ' Use the second one.'), 'And be quick.')).toEqual({
    text: 'Use the second one. And be quick.',
    edited: false,
    spoken: '',
  });
});

it('is left alone once a hand has touched it: what is said then waits for a press', () => {
  const edited = spoken(typed(spoken(blank, 'Use too.'), 'Use two.'), 'Please.');
  expect(edited).toEqual({ text: 'Use two.', edited: true, spoken: 'Please.' });
  expect(added(edited)).toEqual({ text: 'Use two. Please.', edited: true, spoken: '' });
});

it('begins anew when everything is deleted', () => {
  expect(spoken(typed(spoken(blank, 'No'), ''), 'Yes.').text).toBe('Yes.');
});

it('takes a choice, which no further word changes', () => {
  expect(spoken(chosen(blank, 'staging'), 'hm')).toEqual({ text: 'staging', edited: true, spoken: 'hm' });
});

it('is not made of nothing', () => expect(spoken(blank, ' ')).toBe(blank));
