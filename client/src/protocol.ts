/** The bytes of /api/chat. The first byte of a message is its kind; the rest is the payload (DESIGN.md, "Wire protocol"). */

const HANDSHAKE = 0;
const AUDIO = 1;
const TEXT = 2;
const METADATA = 4;
const ERROR = 5;
const PING = 6;

export type Message =
  | { kind: 'handshake' }
  /** Ogg/Opus pages, 24 kHz mono. */
  | { kind: 'audio'; bytes: Uint8Array }
  /** A piece of what Moshi says, as it came from the tokenizer. */
  | { kind: 'text'; piece: string }
  | { kind: 'metadata'; value: Record<string, unknown> }
  /** The socket closes after it. */
  | { kind: 'error'; code: string; message: string }
  | { kind: 'ping' };

const utf8 = new TextDecoder();

/** Reads one message. Null for what is to be ignored: text frames, empty messages, unknown kinds, broken JSON. */
export function decode(data: unknown): Message | null {
  if (!(data instanceof ArrayBuffer) || data.byteLength === 0) return null;
  const [kind] = new Uint8Array(data, 0, 1);
  const payload = new Uint8Array(data, 1);
  switch (kind) {
    case HANDSHAKE:
      return { kind: 'handshake' };
    case AUDIO:
      return { kind: 'audio', bytes: payload };
    case TEXT:
      return { kind: 'text', piece: utf8.decode(payload) };
    case METADATA: {
      const value = json(payload);
      return value && { kind: 'metadata', value };
    }
    case ERROR: {
      // An error is never dropped: whatever stands in it, the line is about to close.
      const { code, message } = json(payload) ?? {};
      return {
        kind: 'error',
        code: typeof code === 'string' ? code : 'unknown',
        message: typeof message === 'string' ? message : '',
      };
    }
    case PING:
      return { kind: 'ping' };
    default:
      return null;
  }
}

/** One message of the caller's voice. `pages` are whole Ogg pages. */
export function encodeAudio(pages: Uint8Array): Uint8Array<ArrayBuffer> {
  const message = new Uint8Array(1 + pages.length);
  message[0] = AUDIO;
  message.set(pages, 1);
  return message;
}

/** The engine's metadata come only to a page that asked for them. */
export function encodeHello(): Uint8Array<ArrayBuffer> {
  const words = new TextEncoder().encode(JSON.stringify({ type: 'hello' }));
  const message = new Uint8Array(1 + words.length);
  message[0] = METADATA;
  message.set(words, 1);
  return message;
}

function json(payload: Uint8Array): Record<string, unknown> | null {
  try {
    const value: unknown = JSON.parse(utf8.decode(payload));
    return typeof value === 'object' && value !== null && !Array.isArray(value)
      ? (value as Record<string, unknown>)
      : null;
  } catch {
    return null;
  }
}
