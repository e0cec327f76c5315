/** How good the connection is, in one word, from what the last seconds of a call counted. Pure. */

export type Quality = 'good' | 'fair' | 'poor';

/** What is counted over a call; see telephone.ts. */
export interface Counted {
  latencyMs: number | null;
  underruns: number;
  droppedMs: number;
  gaps: number;
  unheardFrames: number;
  unsaidFrames: number;
}

/** Over how long trouble is remembered, ms. */
const WINDOW_MS = 10_000;
/** From the caller's voice to Moshi's: below the first a conversation is easy, above the second it is work, ms. */
const EASY_MS = 450;
const HARD_MS = 900;

export class QualityJudge {
  #samples: { at: number; trouble: number }[] = [];

  /** To be asked about once a second, at `now` (ms); null until the first answer was measured. */
  judge(counted: Counted, now: number): Quality | null {
    // 80 ms of sound that were lost anywhere, or one pause that nobody made.
    const trouble =
      counted.underruns +
      counted.gaps +
      counted.unheardFrames +
      counted.unsaidFrames +
      counted.droppedMs / 80;
    this.#samples.push({ at: now, trouble });
    while ((this.#samples[1]?.at ?? now) <= now - WINDOW_MS) this.#samples.shift();
    const recent = trouble - (this.#samples[0]?.trouble ?? trouble);
    if (counted.latencyMs === null) return null;
    if (counted.latencyMs > HARD_MS || recent > 5) return 'poor';
    if (counted.latencyMs > EASY_MS || recent > 1) return 'fair';
    return 'good';
  }
}
