/**
 * Does Moshi come back through the microphone? Pure.
 *
 * A loudspeaker's echo follows Moshi's loudness some tenths of a second later, for as long as it speaks. So the two
 * loudness curves are compared at every delay that a room and two sound cards can make; people who answer do not
 * follow a curve. Works on what is left after the browser's own echo cancellation, which is what Moshi gets to hear.
 */

/** How often the levels are looked at, and over how long, in samples of the levels. */
export const ECHO_STEP_MS = 50;
const WINDOW = 160;
const LONGEST_DELAY = 12;
/** Below these levels (RMS) Moshi says nothing, and the microphone hears nothing worth a word. */
const SPEAKS = 0.01;
const AUDIBLE = 0.004;
/** So much of the window must be Moshi's, and not all of it: a curve without ups and downs cannot be recognised. */
const ENOUGH = 0.25;
const TOO_MUCH = 0.95;
/** How alike the curves must be (-1 to 1). */
const ALIKE = 0.65;

export class EchoEar {
  #moshi: number[] = [];
  #you: number[] = [];
  #calm = 0;

  /** Loudness of both, 0 to 1, every ECHO_STEP_MS. True if the microphone hears Moshi. */
  hears(moshi: number, you: number): boolean {
    this.#moshi.push(moshi);
    this.#you.push(you);
    if (this.#moshi.length <= WINDOW + LONGEST_DELAY) return false;
    this.#moshi.shift();
    this.#you.shift();
    // Once a second is often enough.
    if (++this.#calm % 20 !== 0) return false;
    const speaking = this.#moshi.filter((level) => level > SPEAKS).length / this.#moshi.length;
    if (speaking < ENOUGH || speaking > TOO_MUCH) return false;
    for (let delay = 0; delay <= LONGEST_DELAY; delay++) {
      const said = this.#moshi.slice(LONGEST_DELAY - delay, LONGEST_DELAY - delay + WINDOW).map(decibels);
      const heard = this.#you.slice(LONGEST_DELAY, LONGEST_DELAY + WINDOW);
      const loud = heard.filter((_, n) => (said[n] ?? 0) > decibels(SPEAKS));
      const mean = loud.reduce((sum, level) => sum + level, 0) / Math.max(1, loud.length);
      if (mean > AUDIBLE && correlation(said, heard.map(decibels)) > ALIKE) return true;
    }
    return false;
  }
}

/** Loudness as ears have it; silence ends at -60 dB, so that noise below does not count. */
const decibels = (level: number) => Math.max(-60, 20 * Math.log10(level + 1e-9));

function correlation(a: number[], b: number[]): number {
  const mean = (values: number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const [ma, mb] = [mean(a), mean(b)];
  let both = 0;
  let va = 0;
  let vb = 0;
  for (const [n, value] of a.entries()) {
    const other = b[n] ?? 0;
    both += (value - ma) * (other - mb);
    va += (value - ma) ** 2;
    vb += (other - mb) ** 2;
  }
  return va * vb === 0 ? 0 : both / Math.sqrt(va * vb);
}
