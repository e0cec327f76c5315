/** The audio thread's part of the speaker: plays what the jitter buffer gives, and tells how it goes. A module of its own. */
import { JitterBuffer, type JitterNumbers } from './jitter';

/** What an AudioWorklet's scope has; TypeScript's DOM library does not describe it. */
declare const sampleRate: number;
declare class AudioWorkletProcessor {
  readonly port: MessagePort;
}
declare function registerProcessor(name: string, processor: new () => AudioWorkletProcessor): void;

/** To the worklet: sound of Moshi at the context's rate, or null: a new conversation begins. */
export type ToSpeaker = Float32Array | null;

/** From the worklet, about 20 times a second. */
export interface FromSpeaker extends JitterNumbers {
  /** Loudness since the last report, root mean square, 0 to 1. */
  level: number;
}

const REPORTS_PER_SECOND = 20;

class SpeakerProcessor extends AudioWorkletProcessor {
  #buffer = new JitterBuffer(sampleRate);
  #energy = 0;
  #count = 0;

  constructor() {
    super();
    this.port.onmessage = ({ data }: MessageEvent<ToSpeaker>) => {
      if (data) this.#buffer.push(data);
      else this.#buffer.reset();
    };
  }

  process(_inputs: Float32Array[][], outputs: Float32Array[][]): boolean {
    const [first, ...others] = outputs[0] ?? [];
    if (!first) return true;
    this.#buffer.pull(first);
    for (const other of others) other.set(first);
    for (const sample of first) this.#energy += sample * sample;
    this.#count += first.length;
    if (this.#count >= sampleRate / REPORTS_PER_SECOND) {
      const report: FromSpeaker = { ...this.#buffer.numbers, level: Math.sqrt(this.#energy / this.#count) };
      this.port.postMessage(report);
      this.#energy = 0;
      this.#count = 0;
    }
    return true;
  }
}

registerProcessor('speaker', SpeakerProcessor);
