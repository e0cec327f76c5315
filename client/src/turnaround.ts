/**
 * How long the line takes to answer: from a frame of the caller's voice on its way to Moshi's frame in hand.
 *
 * An engine answers every frame with a frame, except for the first (kyutai's server skips it), so the n-th frame that
 * comes back belongs to the (n+1)-th that went out. Frames are 80 ms; what goes out and comes in is counted in ms of sound.
 */
const FRAME_MS = 80;
const REMEMBERED = 25;

export class Turnaround {
  #sent: number[] = [];
  #sentMs = 0;
  #receivedMs = 0;
  #frames = 0;
  #latest: number[] = [];

  /** `ms` of sound went out at `now`. */
  sent(ms: number, now: number): void {
    this.#sentMs += ms;
    while (this.#sentMs >= FRAME_MS) {
      this.#sentMs -= FRAME_MS;
      this.#sent.push(now);
    }
  }

  /** `ms` of sound came in at `now`. */
  received(ms: number, now: number): void {
    this.#receivedMs += ms;
    while (this.#receivedMs >= FRAME_MS) {
      this.#receivedMs -= FRAME_MS;
      if (this.#frames++ === 0) this.#sent.shift();
      const sent = this.#sent.shift();
      // More came in than went out: there is nothing to compare it with.
      if (sent === undefined) continue;
      this.#latest.push(now - sent);
      if (this.#latest.length > REMEMBERED) this.#latest.shift();
    }
  }

  /** The median of the last two seconds, ms; null before the first answer. */
  get median(): number | null {
    const sorted = this.#latest.toSorted((a, b) => a - b);
    return sorted[Math.floor(sorted.length / 2)] ?? null;
  }
}
