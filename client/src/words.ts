/** Moshi's words from the pieces of its tokenizer. */

const BYTE = /^<0x([0-9A-F]{2})>$/i;

/**
 * Joins pieces to text. What the tokenizer has no piece for comes as single bytes of UTF-8, spelled `<0xF0>` one by
 * one; they are held back until a character is whole.
 */
export class Words {
  #bytes = new TextDecoder();
  #pending = false;

  /** The text to append for this piece; empty while a character is incomplete. */
  add(piece: string): string {
    const byte = BYTE.exec(piece);
    if (byte?.[1]) {
      this.#pending = true;
      return this.#bytes.decode(Uint8Array.of(Number.parseInt(byte[1], 16)), { stream: true });
    }
    return this.end() + piece;
  }

  /** What is left of an incomplete character: a replacement character, or nothing. */
  end(): string {
    if (!this.#pending) return '';
    this.#pending = false;
    return this.#bytes.decode();
  }
}
