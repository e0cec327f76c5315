/** Ogg pages (RFC 3533), as far as a live Opus stream (RFC 7845) needs them. */

const CAPTURE = [0x4f, 0x67, 0x67, 0x53]; // "OggS"
const HEADER = 27;
const BEGINS = 2;

/**
 * Cuts a byte stream into whole pages. Messages may hold several pages or end within one.
 *
 * The decoder behind it crashes on anything else than whole pages of a stream whose beginning it saw, so this lets
 * nothing else through: pages before a stream's first page, bytes that belong to no page, and the rare page whose
 * sound contains the capture pattern (which that decoder would take for a page) are dropped and counted.
 */
export class OggPages {
  #rest = new Uint8Array(0);
  #begun = false;
  /** Bytes that were thrown away. */
  dropped = 0;
  /** Pages that are missing between those that came, by their numbers (RFC 3533, section 6). */
  gaps = 0;
  #next: number | null = null;

  /** The pages that are complete now, each in a buffer of its own. */
  add(bytes: Uint8Array): Uint8Array<ArrayBuffer>[] {
    let data = joined(this.#rest, bytes);
    const pages: Uint8Array<ArrayBuffer>[] = [];
    while (data.length >= HEADER) {
      const start = find(data, 0);
      if (start > 0) {
        this.dropped += start;
        data = data.subarray(start);
        continue;
      }
      const segments = data[26] ?? 0;
      if (data.length < HEADER + segments) break;
      let length = HEADER + segments;
      for (let i = 0; i < segments; i++) length += data[HEADER + i] ?? 0;
      if (data.length < length) break;
      const page = data.slice(0, length);
      if ((page[5] ?? 0) & BEGINS) {
        this.#begun = true;
        this.#next = null;
      }
      const number = new DataView(page.buffer).getUint32(18, true);
      if (this.#next !== null && number > this.#next) this.gaps += number - this.#next;
      this.#next = number + 1;
      if (this.#begun && find(page, 1) === page.length) pages.push(page);
      else this.dropped += length;
      data = data.subarray(length);
    }
    this.#rest = data.slice();
    return pages;
  }
}

/** A page as an encoder writes it, without a checksum: the decoder at hand does not look at it. */
export function page(flags: number, index: number, packet: Uint8Array): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(HEADER + 1 + packet.length);
  bytes.set(CAPTURE);
  bytes[5] = flags;
  new DataView(bytes.buffer).setUint32(18, index, true);
  bytes[26] = 1;
  bytes[27] = packet.length;
  bytes.set(packet, HEADER + 1);
  return bytes;
}

/** The shortest whole stream: head, tags and 20 ms of silence (the Opus packet F8 FF FE). */
export function silence(): Uint8Array<ArrayBuffer> {
  const text = new TextEncoder();
  // OpusHead: version 1, one channel, no pre-skip, 24 kHz, no gain, mapping 0. OpusTags: no vendor, no comments.
  const head = joined(text.encode('OpusHead'), Uint8Array.of(1, 1, 0, 0, 0xc0, 0x5d, 0, 0, 0, 0, 0));
  const tags = joined(text.encode('OpusTags'), new Uint8Array(8));
  const sound = Uint8Array.of(0xf8, 0xff, 0xfe);
  return joined(joined(page(BEGINS, 0, head), page(0, 1, tags)), page(0, 2, sound));
}

function joined(a: Uint8Array, b: Uint8Array): Uint8Array<ArrayBuffer> {
  const both = new Uint8Array(a.length + b.length);
  both.set(a);
  both.set(b, a.length);
  return both;
}

/** Where the capture pattern begins, from `from` on; the end if it is not there (less what could be its beginning). */
function find(data: Uint8Array, from: number): number {
  for (let i = from; i + 4 <= data.length; i++) {
    if (
      data[i] === CAPTURE[0] &&
      data[i + 1] === CAPTURE[1] &&
      data[i + 2] === CAPTURE[2] &&
      data[i + 3] === CAPTURE[3]
    )
      return i;
  }
  return from === 0 ? Math.max(1, data.length - 3) : data.length;
}
