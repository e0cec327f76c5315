/** A task that is drafted from a call, step by step, until a press hands it over. Pure. */
import type { Step } from './door';

export type Draft = readonly Step[];

/** What the line drafted; where there was nothing to draft from, an empty step to write in. */
export function drafted(steps: readonly Step[]): Draft {
  return steps.length > 0 ? steps : [{ text: '', destructive: false }];
}

/** A hand changed a step. Its mark stays: a look too many costs less than one too few. */
export function typed(draft: Draft, n: number, text: string): Draft {
  return draft.map((step, at) => (at === n ? { ...step, text } : step));
}

/** A hand took a step out. */
export function without(draft: Draft, n: number): Draft {
  return drafted(draft.filter((_, at) => at !== n));
}

/** A hand wants another step. */
export function longer(draft: Draft): Draft {
  return [...draft, { text: '', destructive: false }];
}

/** What is handed over: one step a line. */
export function instruction(draft: Draft): string {
  return draft
    .map((step) => step.text.trim())
    .filter((text) => text !== '')
    .join('\n');
}

/** How many steps could lose something. */
export function marked(draft: Draft): number {
  return draft.filter((step) => step.destructive && step.text.trim() !== '').length;
}
