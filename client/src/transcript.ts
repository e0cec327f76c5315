/**
 * What was said, by both sides, as lines in the order in which they began. Pure.
 *
 * Moshi's words come as pieces while it speaks them (kind 2), from every engine. The caller's come as lines from an
 * engine that listens for words (metadata `transcript`): one line again and again until it is final.
 */

export interface Line {
  who: 'moshi' | 'you';
  text: string;
  /** Nothing will be added or changed. */
  final: boolean;
  /** When it began and when something was last added, ms of the page's clock. */
  began: number;
  latest: number;
}

/** A break in Moshi's memory stands between two conversations. */
export type Conversation = readonly Line[];
export type Transcript = readonly Conversation[];

/** A pause after which Moshi's next words are a new line, ms; sooner at the end of a sentence. */
const PAUSE_MS = 2500;
const SENTENCE_PAUSE_MS = 1200;
const SENTENCE_END = /[.!?…]["'”’)]*\s*$/;

/** A new conversation begins. */
export function begun(transcript: Transcript): Transcript {
  return [...settled(transcript), []];
}

/** Moshi said a piece, leading space included. */
export function said(transcript: Transcript, piece: string, now: number): Transcript {
  if (piece === '') return transcript;
  return changed(transcript, (lines) => {
    const n = lines.findLastIndex(({ who }) => who === 'moshi');
    const open = lines[n];
    // A word of the caller's in between does not cut Moshi's sentence in two.
    const pause = open && SENTENCE_END.test(open.text) ? SENTENCE_PAUSE_MS : PAUSE_MS;
    if (open && !open.final && now - open.latest < pause)
      return lines.with(n, { ...open, text: open.text + piece, latest: now });
    if (piece.trim() === '') return lines;
    const before = open && !open.final ? lines.with(n, { ...open, final: true }) : lines;
    return [...before, { who: 'moshi', text: piece.trimStart(), final: false, began: now, latest: now }];
  });
}

/** The caller said this, as far as the line understood; `final` when it will not change any more. */
export function heard(transcript: Transcript, text: string, final: boolean, now: number): Transcript {
  return changed(transcript, (lines) => {
    const n = lines.findLastIndex(({ who }) => who === 'you');
    const open = lines[n];
    const words = text.trim();
    if (!open || open.final) {
      return words === '' ? lines : [...lines, { who: 'you', text: words, final, began: now, latest: now }];
    }
    // What was a guess and turned out to be nothing goes away again.
    if (words === '') return final ? lines.filter((_, i) => i !== n) : lines;
    return lines.with(n, { ...open, text: words, final, latest: now });
  });
}

/** The call is over: what is still open stays as it is. */
export function settled(transcript: Transcript): Transcript {
  return transcript.map((lines) => lines.map((line) => (line.final ? line : { ...line, final: true })));
}

export function empty(transcript: Transcript): boolean {
  return transcript.every((lines) => lines.every(({ text }) => text.trim() === ''));
}

/** As plain text, for copying and saving. */
export function plain(
  transcript: Transcript,
  names: { moshi: string; you: string; anew: string },
  time: (ms: number) => string,
): string {
  const first = transcript.flat()[0]?.began ?? 0;
  return transcript
    .map((lines) =>
      lines
        .map(({ who, text, began }) => `[${time(began - first)}] ${names[who]}: ${text.trim()}`)
        .join('\n'),
    )
    .filter((part) => part !== '')
    .join(`\n--- ${names.anew} ---\n`);
}

function changed(transcript: Transcript, change: (lines: readonly Line[]) => readonly Line[]): Transcript {
  const lines = transcript.at(-1) ?? [];
  return [...transcript.slice(0, -1), change(lines)];
}
