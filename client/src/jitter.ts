/**
 * The jitter buffer: what stands between a network that is late and an ear that is not to notice.
 *
 * One principle instead of a target to tune: the delay grows only by sound that came late (the buffer ran dry, played
 * silence, and what arrives afterwards is that much later), and it shrinks when the last seconds showed that part of it
 * was never needed. "Needed" is the headroom: how much sound was still to be played when the next arrived. Its
 * minimum over a window is what could have been spared.
 *
 * Shrinking cuts some milliseconds at a place where the sound repeats itself (a whole number of pitch periods) and
 * crossfades over the seam, or anywhere in a pause; the voice gets faster for a moment and keeps its pitch. Only what is
 * to spare beyond half a second is dropped at once.
 *
 * Pure: no browser in here. Time is counted in samples that were played.
 */

export interface JitterNumbers {
  /** How long a sample that arrives now waits until it is heard, ms, as an average over the last arrivals. */
  delayMs: number;
  /** What was handed to the ear, ms, silence of our own not counted. */
  playedMs: number;
  /** Of that, what was louder than silence, ms. */
  voicedMs: number;
  /** How often the buffer ran dry. */
  underruns: number;
  /** Cut out to get the delay down, ms. */
  skippedMs: number;
  /** Thrown away because it came far too late or far too much at once, ms. */
  droppedMs: number;
}

/** Headroom to keep, and to begin with, ms: what a calm network and a busy browser need. */
const SAFETY_MS = 20;
const FIRST_SAFETY_MS = 40;
/** A cut happens only when this much more than the safety was spare, ms. */
const SLACK_MS = 15;
/** Over how long the headroom is watched before the delay is cut, ms. */
const WINDOW_MS = 3000;
/** The delay may not grow beyond this, ms; more than that is not a conversation any more. */
const LONGEST_MS = 1500;
/** Shortest time from one cut to the next, ms: gently, or in a hurry while much is to spare. */
const CUT_EVERY_MS = 80;
const HURRY_EVERY_MS = 40;
const HURRY_MS = 150;
/** So much to spare that it is better to miss words than to talk past each other, ms; what is left of it then. */
const HOPELESS_MS = 500;
const HOPEFUL_MS = 100;
/** Lengths of a cut, ms: from 400 Hz to 62 Hz, the pitch of voices. */
const SHORTEST_CUT_MS = 2.5;
const LONGEST_CUT_MS = 16;
/** Length of a seam, ms. */
const SEAM_MS = 6;
/** How alike (-1 to 1) two places must be to be joined, and how long to wait for such a place, ms. */
const ALIKE = 0.6;
const PATIENCE_MS = 400;
/** Below this level (-50 dBFS) sound counts as silence. */
const SILENCE = 0.003;
/** Time constant with which the last sample fades when the buffer runs dry, and length of the fade back in, ms. */
const TAIL_MS = 3;
const FADE_IN_MS = 5;

export class JitterBuffer {
  readonly #rate: number;
  readonly #ring: Float32Array;
  #read = 0;
  #length = 0;
  #state: 'empty' | 'waiting' | 'playing' = 'empty';
  #began = false;
  #clock = 0;
  #startAt = 0;
  #gain = 0;
  #tail = 0;
  /** [when, headroom] of the arrivals in the window, by growing headroom: the first is the minimum. */
  #headrooms: [number, number][] = [];
  #watchedSince = 0;
  #lastCut = 0;
  #delay = 0;
  #underruns = 0;
  #played = 0;
  #voiced = 0;
  #skipped = 0;
  #dropped = 0;

  constructor(rate: number) {
    this.#rate = rate;
    this.#ring = new Float32Array(2 ** Math.ceil(Math.log2(this.#samples(LONGEST_MS) * 2)));
  }

  get numbers(): JitterNumbers {
    const ms = (samples: number) => (samples * 1000) / this.#rate;
    return {
      delayMs: ms(this.#delay),
      playedMs: ms(this.#played),
      voicedMs: ms(this.#voiced),
      underruns: this.#underruns,
      skippedMs: ms(this.#skipped),
      droppedMs: ms(this.#dropped),
    };
  }

  /** Forgets what is to be played, for a new conversation. The counters go on. */
  reset(): void {
    this.#length = 0;
    this.#state = 'empty';
    this.#began = false;
    this.#headrooms = [];
    this.#delay = 0;
  }

  /** Sound arrived. */
  push(samples: Float32Array): void {
    if (this.#state === 'playing') this.#note(this.#length);
    if (this.#state === 'empty') {
      this.#state = 'waiting';
      this.#startAt = this.#clock + this.#samples(this.#began ? SAFETY_MS : FIRST_SAFETY_MS);
      this.#delay = this.#startAt - this.#clock;
      this.#headrooms = [];
      this.#watchedSince = this.#clock;
      this.#began = true;
    }
    const longest = this.#samples(LONGEST_MS);
    // More than the ring can hold at once: only its end is of interest.
    const kept = samples.length > longest ? samples.subarray(samples.length - longest) : samples;
    this.#dropped += samples.length - kept.length;
    const excess = this.#length + kept.length - longest;
    if (excess > 0) {
      const cut = Math.min(excess, this.#length);
      this.#cut(cut);
      this.#dropped += cut;
      this.#headrooms = [];
      this.#watchedSince = this.#clock;
    }
    const mask = this.#ring.length - 1;
    for (let i = 0; i < kept.length; i++) this.#ring[(this.#read + this.#length + i) & mask] = kept[i] ?? 0;
    this.#length += kept.length;
  }

  /** Fills `out` with what is to be heard now. */
  pull(out: Float32Array): void {
    this.#clock += out.length;
    if (this.#state === 'waiting' && this.#clock >= this.#startAt) {
      this.#state = 'playing';
      this.#gain = 0;
    }
    let filled = 0;
    if (this.#state === 'playing') {
      this.#shrink();
      filled = Math.min(out.length, this.#length);
      this.#copy(out.subarray(0, filled));
      if (filled < out.length) {
        this.#underruns++;
        this.#state = 'empty';
      }
    }
    const fade = Math.exp(-1 / this.#samples(TAIL_MS));
    for (let i = filled; i < out.length; i++) {
      this.#tail *= fade;
      out[i] = this.#tail;
    }
  }

  #samples(ms: number): number {
    return Math.round((ms * this.#rate) / 1000);
  }

  #copy(out: Float32Array): void {
    const mask = this.#ring.length - 1;
    const step = 1 / this.#samples(FADE_IN_MS);
    let energy = 0;
    for (let i = 0; i < out.length; i++) {
      const sample = this.#ring[(this.#read + i) & mask] ?? 0;
      energy += sample * sample;
      if (this.#gain < 1) this.#gain = Math.min(1, this.#gain + step);
      // What is left of a faded tail goes on under the fade-in, so that there is no step here either.
      this.#tail *= 1 - this.#gain;
      out[i] = sample * this.#gain + this.#tail;
    }
    this.#read = (this.#read + out.length) & mask;
    this.#length -= out.length;
    this.#tail = out.at(-1) ?? this.#tail;
    this.#played += out.length;
    if (out.length > 0 && Math.sqrt(energy / out.length) > SILENCE) this.#voiced += out.length;
  }

  #note(headroom: number): void {
    const oldest = this.#clock - this.#samples(WINDOW_MS);
    this.#headrooms = this.#headrooms.filter(([at, other]) => at > oldest && other < headroom);
    this.#headrooms.push([this.#clock, headroom]);
    this.#delay += (headroom - this.#delay) / 8;
  }

  /** Cuts a little when the window shows that there was always more than needed. */
  #shrink(): void {
    const oldest = this.#clock - this.#samples(WINDOW_MS);
    if (this.#watchedSince > oldest) return;
    if (this.#clock - this.#lastCut < this.#samples(HURRY_EVERY_MS)) return;
    while (this.#headrooms.length > 1 && (this.#headrooms[0]?.[0] ?? 0) <= oldest) this.#headrooms.shift();
    const least = this.#headrooms[0]?.[1] ?? 0;
    const spare = least - this.#samples(SAFETY_MS);
    if (spare < this.#samples(SLACK_MS)) return;
    const hurry = spare > this.#samples(HURRY_MS);
    if (!hurry && this.#clock - this.#lastCut < this.#samples(CUT_EVERY_MS)) return;
    const hopeless = spare > this.#samples(HOPELESS_MS);
    const length = hopeless
      ? Math.min(spare - this.#samples(HOPEFUL_MS), this.#length)
      : this.#whereAlike(Math.min(spare, this.#samples(LONGEST_CUT_MS)));
    if (length === 0) return;
    this.#cut(length);
    if (hopeless) this.#dropped += length;
    else this.#skipped += length;
    this.#lastCut = this.#clock;
    // Every arrival of the window would have met that much less.
    for (const entry of this.#headrooms) entry[1] -= length;
    this.#delay -= length;
  }

  /** The length of the best cut up to `longest` samples, 0 if it is better to wait for a better place. */
  #whereAlike(longest: number): number {
    const seam = this.#samples(SEAM_MS);
    const shortest = this.#samples(SHORTEST_CUT_MS);
    if (this.#length < longest + seam) return 0;
    const mask = this.#ring.length - 1;
    const at = (i: number) => this.#ring[(this.#read + i) & mask] ?? 0;
    // Every second sample will do: this runs on the audio thread.
    let here = 0;
    for (let i = 0; i < seam; i += 2) here += at(i) ** 2;
    if (Math.sqrt((here * 2) / seam) < SILENCE) return longest;
    let best = 0;
    let alike = -1;
    for (let lag = shortest; lag <= longest; lag += 2) {
      let there = 0;
      let both = 0;
      for (let i = 0; i < seam; i += 2) {
        there += at(lag + i) ** 2;
        both += at(i) * at(lag + i);
      }
      const score = both / Math.sqrt(here * there + 1e-12);
      if (score > alike) {
        alike = score;
        best = lag;
      }
    }
    const waited = this.#clock - this.#lastCut > this.#samples(PATIENCE_MS);
    return alike > ALIKE || waited ? best : 0;
  }

  /** Takes `count` samples out from the front, with a crossfade over the seam. */
  #cut(count: number): void {
    const mask = this.#ring.length - 1;
    const seam = Math.min(this.#samples(SEAM_MS), this.#length - count);
    for (let i = 0; i < seam; i++) {
      const weight = (i + 1) / (seam + 1);
      const before = this.#ring[(this.#read + i) & mask] ?? 0;
      const after = (this.#read + count + i) & mask;
      this.#ring[after] = before * (1 - weight) + (this.#ring[after] ?? 0) * weight;
    }
    this.#read = (this.#read + count) & mask;
    this.#length -= count;
  }
}
