/** Server-Sent Events (HTML, section 9.2) by fetch: EventSource cannot send the session's key. */

export interface ServerEvent {
  type: string;
  data: string;
}

/** Cuts a stream of text into events; keeps what is incomplete for the next piece. */
export class EventParser {
  #rest = '';
  #type = '';
  #data: string[] = [];
  #id: string | null = null;
  /** The id of the latest event: where to go on after a break. */
  lastId = '';

  /** A new stream begins: half an event of the last one is none. */
  begin(): void {
    this.#rest = '';
    this.#type = '';
    this.#data = [];
    this.#id = null;
  }

  add(piece: string): ServerEvent[] {
    const text = this.#rest + piece;
    // A CR at the end may be the first half of a CRLF.
    const whole = text.endsWith('\r') ? text.slice(0, -1) : text;
    const lines = whole.split(/\r\n|\n|\r/);
    this.#rest = (lines.pop() ?? '') + text.slice(whole.length);
    return lines.flatMap((line) => this.#line(line));
  }

  #line(line: string): ServerEvent[] {
    if (line === '') {
      if (this.#id !== null) this.lastId = this.#id;
      const event = { type: this.#type || 'message', data: this.#data.join('\n') };
      const there = this.#data.length > 0;
      this.#type = '';
      this.#data = [];
      return there ? [event] : [];
    }
    const colon = line.indexOf(':');
    if (colon === 0) return [];
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? '' : line.slice(colon + 1).replace(/^ /, '');
    if (field === 'event') this.#type = value;
    else if (field === 'data') this.#data.push(value);
    else if (field === 'id' && !value.includes('\0')) this.#id = value;
    return [];
  }
}

/** Without a sign of life for this long the stream is taken for dead (the line sends one every 15 s), ms. */
export const SIGN_OF_LIFE_MS = 40_000;
/** Waits before the stream is opened again, ms. */
const AGAIN_MS = [500, 1000, 2000, 5000];

export interface Stream {
  /** Opens the stream; `lastId` is where to go on. Rejects for good with something that `fatal` knows. */
  open: (lastId: string, signal: AbortSignal) => Promise<Response>;
  fatal: (error: unknown) => boolean;
  event: (event: ServerEvent) => void;
  /** It will not come back. */
  over: (error: unknown) => void;
}

/**
 * Follows a stream through breaks, until it is stopped or fatal. Returns how to stop it, and how to look at once
 * whether it still lives: a page that slept does not know.
 */
export function follow(stream: Stream): { stop: () => void; wake: () => void } {
  const parser = new EventParser();
  let stopped = false;
  let current = new AbortController();
  let heard = Date.now();
  let hurry: () => void = () => {};

  async function once(): Promise<void> {
    current = new AbortController();
    const mine = current;
    heard = Date.now();
    parser.begin();
    const watch = setInterval(() => {
      if (Date.now() - heard > SIGN_OF_LIFE_MS) mine.abort();
    }, 1000);
    try {
      const response = await stream.open(parser.lastId, mine.signal);
      const reader = response.body?.pipeThrough(new TextDecoderStream()).getReader();
      while (reader) {
        const { done, value } = await reader.read();
        if (done || stopped) break;
        heard = Date.now();
        for (const event of parser.add(value)) stream.event(event);
      }
    } finally {
      clearInterval(watch);
      mine.abort();
    }
  }

  async function on(): Promise<void> {
    let failures = 0;
    while (!stopped) {
      const began = Date.now();
      try {
        await once();
      } catch (error) {
        if (stream.fatal(error)) {
          stream.over(error);
          return;
        }
      }
      failures = Date.now() - began > SIGN_OF_LIFE_MS ? 0 : failures + 1;
      const wait = AGAIN_MS[Math.min(failures, AGAIN_MS.length) - 1] ?? 0;
      await new Promise<void>((resolve) => {
        const later = setTimeout(resolve, wait);
        hurry = () => {
          clearTimeout(later);
          failures = 0;
          resolve();
        };
      });
    }
  }

  void on();
  return {
    stop: () => {
      stopped = true;
      current.abort();
      hurry();
    },
    wake: () => {
      // Half a minute of nothing may be a sleep: what the stream missed meanwhile comes with a new one.
      if (Date.now() - heard > SIGN_OF_LIFE_MS / 2) current.abort();
      hurry();
    },
  };
}
