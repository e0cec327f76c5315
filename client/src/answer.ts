/**
 * The answer to a question, from what was said to what is sent. Pure.
 *
 * What the caller says fills the draft by itself, turn by turn, until a hand touches it: from then on it is the
 * hand's, and what is said afterwards waits to be added by a press. Nothing is ever sent without one.
 */

export interface Draft {
  text: string;
  /** A hand has changed it. */
  edited: boolean;
  /** Said since then, and not in the text. */
  spoken: string;
}

export const blank: Draft = { text: '', edited: false, spoken: '' };

/** A turn was spoken. */
export function spoken(draft: Draft, turn: string): Draft {
  const words = turn.trim();
  if (words === '') return draft;
  return draft.edited
    ? { ...draft, spoken: joined(draft.spoken, words) }
    : { ...draft, text: joined(draft.text, words) };
}

/** A hand changed the text; an empty one is a new beginning. */
export function typed(draft: Draft, text: string): Draft {
  return text.trim() === '' ? { ...draft, text, edited: false } : { ...draft, text, edited: true };
}

/** What was said since is added after all. */
export function added(draft: Draft): Draft {
  return { ...draft, text: joined(draft.text, draft.spoken), spoken: '' };
}

/** One of the choices that the question offers. */
export function chosen(draft: Draft, choice: string): Draft {
  return { ...draft, text: choice, edited: true };
}

function joined(before: string, after: string): string {
  return before.trim() === '' ? after : `${before.trimEnd()} ${after}`;
}
