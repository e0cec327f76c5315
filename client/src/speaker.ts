/** Moshi's voice: Ogg/Opus pages in, sound out. The decoder is a worker, the jitter buffer an AudioWorklet. */
import { decoderUrl } from 'virtual:opus';
import { browserOf } from './browser';
import { OggPages, silence } from './ogg';
import type { FromSpeaker, ToSpeaker } from './speaker.worklet';
import workletUrl from './speaker.worklet.ts?worker&url';

/** What the decoder sends: one array per channel, or null at a stream's end. */
type Decoded = Float32Array[] | null;

/** How long the decoder may take to come up on a slow phone, ms. */
const DECODER_MS = 15_000;
const SAMPLE_RATE = 24_000;
/** The decoder hands on sound in pieces of this length: one Opus frame, so that nothing waits in it. */
const PIECE_MS = 20;
const FIREFOX = browserOf(navigator.userAgent).startsWith('firefox');
/** A fourth upwards, and the time from one tone to the next. */
const RING_HZ = [587, 784];
const RING_STEP_S = 0.22;

export class Speaker {
  readonly #context: AudioContext;
  readonly #node: AudioWorkletNode;
  readonly #gain: GainNode;
  readonly #decoder: Worker;
  #pages = new OggPages();
  /** The latest report from the audio thread. */
  report: FromSpeaker | null = null;
  /** Pages of Ogg that never came, over all conversations. */
  gaps = 0;
  onreport: (report: FromSpeaker) => void = () => {};
  /** Sound was decoded, ms of it. */
  ondecoded: (ms: number) => void = () => {};
  /** The decoder died: there will be no sound any more. */
  onfault: () => void = () => {};

  /**
   * Resolves when the decoder has really decoded something: its WebAssembly loads in the background, and a conversation
   * whose first page meets a decoder that is not there would stay silent to its end.
   */
  static async open(context: AudioContext): Promise<Speaker> {
    const decoder = new Worker(decoderUrl);
    try {
      await Promise.all([context.audioWorklet.addModule(workletUrl), proven(decoder, context.sampleRate)]);
    } catch (error) {
      decoder.terminate();
      throw error;
    }
    return new Speaker(context, decoder);
  }

  private constructor(context: AudioContext, decoder: Worker) {
    this.#context = context;
    this.#node = new AudioWorkletNode(context, 'speaker', { numberOfInputs: 0, outputChannelCount: [1] });
    this.#gain = new GainNode(context);
    this.#node.connect(this.#gain).connect(context.destination);
    this.#node.port.onmessage = ({ data }: MessageEvent<FromSpeaker>) => {
      this.report = data;
      this.onreport(data);
    };
    this.#decoder = decoder;
    decoder.onmessage = ({ data }: MessageEvent<Decoded>) => {
      const samples = data?.[0];
      if (!samples) return;
      this.ondecoded((samples.length * 1000) / context.sampleRate);
      this.#send(samples, [samples.buffer]);
    };
    decoder.onerror = () => this.onfault();
  }

  /** A new conversation begins: what is left of the old one is not played. */
  reset(): void {
    this.#pages = new OggPages();
    this.#send(null);
  }

  /** Bytes from the line. */
  play(bytes: Uint8Array): void {
    const before = this.#pages.gaps;
    for (const pages of this.#pages.add(bytes))
      this.#decoder.postMessage({ command: 'decode', pages }, [pages.buffer]);
    this.gaps += this.#pages.gaps - before;
  }

  /** 0 to 1, as a hand on a slider means it: loudness goes with the square. */
  set volume(volume: number) {
    this.#gain.gain.setTargetAtTime(volume ** 2, this.#context.currentTime, 0.02);
  }

  /** Moshi's voice before the volume, for a recording. */
  get node(): AudioNode {
    return this.#node;
  }

  /**
   * From the buffer to the ear, ms, as far as the browser knows. Firefox is not asked: it would hold the lock of its sound
   * (MediaTrackGraphImpl::AudioOutputLatency) while it waits for PulseAudio, whose lock is held by the sound that waits for
   * the first, and neither page nor sound would ever go on. It caches what it found, so it is the first question that hangs.
   */
  get outputMs(): number {
    return FIREFOX ? 0 : (this.#context.outputLatency || this.#context.baseLatency || 0) * 1000;
  }

  /** Two soft tones: it is your turn. */
  ring(): void {
    const now = this.#context.currentTime;
    for (const [n, hertz] of RING_HZ.entries()) {
      const begin = now + n * RING_STEP_S;
      const tone = new OscillatorNode(this.#context, { frequency: hertz });
      const loudness = new GainNode(this.#context, { gain: 0 });
      loudness.gain.setValueAtTime(0, begin);
      loudness.gain.linearRampToValueAtTime(0.25, begin + 0.02);
      loudness.gain.exponentialRampToValueAtTime(0.001, begin + RING_STEP_S * 2);
      tone.connect(loudness).connect(this.#context.destination);
      tone.start(begin);
      tone.stop(begin + RING_STEP_S * 2);
    }
  }

  close(): void {
    this.#decoder.terminate();
    this.#node.port.onmessage = null;
    this.#node.disconnect();
    this.#gain.disconnect();
    this.report = null;
  }

  #send(message: ToSpeaker, transfer: Transferable[] = []): void {
    this.#node.port.postMessage(message, transfer);
  }
}

/** Resolves when `decoder` gives back its first sound. Its own queue keeps the order while its WebAssembly loads. */
function proven(decoder: Worker, rate: number): Promise<void> {
  return new Promise((resolve, reject) => {
    const late = setTimeout(() => reject(new Error('The decoder did not start.')), DECODER_MS);
    decoder.onerror = (event) => {
      clearTimeout(late);
      reject(new Error(event.message || 'The decoder could not be loaded.'));
    };
    decoder.onmessage = () => {
      clearTimeout(late);
      resolve();
    };
    decoder.postMessage({
      command: 'init',
      decoderSampleRate: SAMPLE_RATE,
      outputBufferSampleRate: rate,
      bufferLength: Math.round((rate * PIECE_MS) / 1000),
      resampleQuality: 3,
    });
    for (const pages of new OggPages().add(silence())) decoder.postMessage({ command: 'decode', pages });
  });
}

/** Can the caller choose where it is heard? Chromium can; elsewhere the system decides. */
export function canChooseSpeaker(): boolean {
  return 'setSinkId' in AudioContext.prototype;
}

/** Sends the sound to a device; to the system's own choice if that device is not there any more. */
export async function chooseSpeaker(context: AudioContext, device: string | null): Promise<void> {
  if (!canChooseSpeaker()) return;
  const able = context as AudioContext & { setSinkId(id: string): Promise<void> };
  await able.setSinkId(device ?? '').catch(() => (device === null ? undefined : able.setSinkId('')));
}
