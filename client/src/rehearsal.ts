/** Microphone and sound, tried before the call: nothing leaves this device. */
import type { Fault } from './call';
import { fault, Microphone } from './microphone';
import { chooseSpeaker } from './speaker';

export class Rehearsal {
  readonly #context: AudioContext;
  readonly #microphone: Microphone;

  /** To be called from a tap. Rejects with the `Fault` there is. */
  static async begin(microphone: string | null, speaker: string | null): Promise<Rehearsal> {
    const context = new AudioContext({ latencyHint: 'interactive' });
    void context.resume();
    void chooseSpeaker(context, speaker);
    try {
      return new Rehearsal(context, await Microphone.open(context, microphone));
    } catch (error) {
      void context.close();
      throw new Unheard(fault(error));
    }
  }

  private constructor(context: AudioContext, microphone: Microphone) {
    this.#context = context;
    this.#microphone = microphone;
  }

  /** Loudness of the microphone, 0 to 1. */
  get level(): number {
    return this.#microphone.level;
  }

  chooseMicrophone(device: string | null): void {
    void this.#microphone.choose(device);
  }

  chooseSpeaker(device: string | null): void {
    void chooseSpeaker(this.#context, device);
  }

  /** A short soft tone at the volume of the call. */
  tone(volume: number): void {
    const now = this.#context.currentTime;
    const tone = new OscillatorNode(this.#context, { frequency: 523 });
    const loudness = new GainNode(this.#context, { gain: 0 });
    loudness.gain.linearRampToValueAtTime(0.3 * volume ** 2, now + 0.03);
    loudness.gain.setTargetAtTime(0, now + 0.4, 0.12);
    tone.connect(loudness).connect(this.#context.destination);
    tone.start(now);
    tone.stop(now + 1.2);
  }

  close(): void {
    this.#microphone.close();
    void this.#context.close();
  }
}

export class Unheard extends Error {
  readonly fault: Fault;

  constructor(reason: Fault) {
    super(reason);
    this.fault = reason;
  }
}
