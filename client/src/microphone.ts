/** The caller's voice: sound in, Ogg/Opus pages out. The encoder is opus-recorder's AudioWorklet. */
import { encoderUrl } from 'virtual:opus';
import type { Fault } from './call';

/** What the encoder sends. */
type FromEncoder =
  { message: 'page'; page: Uint8Array<ArrayBuffer>; samplePosition: number } | { message: 'ready' | 'done' };

/** 20 ms frames, 2 a page: 40 ms of delay at most, at half the overhead of single frames. */
const ENCODER = {
  encoderApplication: 2048, // voice
  encoderComplexity: 5, // it runs on the audio thread of a phone
  encoderFrameSize: 20,
  encoderSampleRate: 24_000,
  maxFramesPerPage: 2,
  numberOfChannels: 1,
  resampleQuality: 3,
  streamPages: true,
};
/** Opus counts in samples at 48 kHz, whatever the encoder's rate (RFC 7845, section 4). */
const POSITIONS_PER_MS = 48;

/** `device`: the one that the caller chose, if it is there; else whatever the browser takes. */
const wanted = (device: string | null): MediaStreamConstraints => ({
  audio: {
    echoCancellation: true,
    noiseSuppression: true,
    autoGainControl: true,
    channelCount: 1,
    ...(device === null ? {} : { deviceId: { ideal: device } }),
  },
  video: false,
});

export class Microphone {
  readonly #context: AudioContext;
  readonly #analyser: AnalyserNode;
  readonly #latest: Float32Array<ArrayBuffer>;
  /** Keeps the encoder going when the microphone is gone: the engine's clock is the caller's sound, silence included. */
  readonly #silence: ConstantSourceNode;
  #stream: MediaStream;
  #source: MediaStreamAudioSourceNode;
  #encoder: AudioWorkletNode | null = null;
  #muted = false;
  #device: string | null;
  /** The microphone went away or came back. */
  onpresence: (present: boolean) => void = () => {};

  /** Asks for the microphone. Rejects with what the browser says; `fault` puts that into a word of ours. */
  static async open(context: AudioContext, device: string | null): Promise<Microphone> {
    const stream = await navigator.mediaDevices.getUserMedia(wanted(device));
    try {
      await context.audioWorklet.addModule(encoderUrl);
    } catch (error) {
      stop(stream);
      throw error;
    }
    return new Microphone(context, stream, device);
  }

  private constructor(context: AudioContext, stream: MediaStream, device: string | null) {
    this.#context = context;
    this.#device = device;
    this.#analyser = new AnalyserNode(context, { fftSize: 2048 });
    this.#latest = new Float32Array(this.#analyser.fftSize);
    this.#silence = new ConstantSourceNode(context, { offset: 0 });
    this.#silence.connect(this.#analyser);
    this.#silence.start();
    this.#stream = stream;
    this.#source = this.#attach(stream);
    navigator.mediaDevices.addEventListener('devicechange', this.#onchange);
  }

  /** Starts a new Ogg stream. `onpages` gets whole pages and the ms of sound in them, the head pages first (0 ms). */
  start(onpages: (pages: Uint8Array, ms: number) => void): void {
    this.stop();
    const encoder = new AudioWorkletNode(this.#context, 'encoder-worklet', { numberOfOutputs: 0 });
    let position = 0;
    encoder.port.onmessage = ({ data }: MessageEvent<FromEncoder>) => {
      // After stop() a page or two may still be on the way.
      if (data.message !== 'page' || this.#encoder !== encoder) return;
      onpages(data.page, (data.samplePosition - position) / POSITIONS_PER_MS);
      position = data.samplePosition;
    };
    encoder.port.postMessage({ command: 'init', originalSampleRate: this.#context.sampleRate, ...ENCODER });
    encoder.port.postMessage({ command: 'getHeaderPages' });
    this.#analyser.connect(encoder);
    this.#encoder = encoder;
  }

  /** Ends the stream: not a byte after this. */
  stop(): void {
    const encoder = this.#encoder;
    if (!encoder) return;
    this.#encoder = null;
    this.#analyser.disconnect(encoder);
    encoder.port.postMessage({ command: 'done' });
    encoder.port.postMessage({ command: 'close' });
  }

  /** Muted, the encoder gets silence: the engine needs it to go on talking. */
  set muted(muted: boolean) {
    this.#muted = muted;
    for (const track of this.#stream.getAudioTracks()) track.enabled = !muted;
  }

  /** Loudness of what is sent, root mean square over the last 43 ms, 0 to 1. */
  get level(): number {
    this.#analyser.getFloatTimeDomainData(this.#latest);
    let energy = 0;
    for (const sample of this.#latest) energy += sample * sample;
    return Math.sqrt(energy / this.#latest.length);
  }

  /** The voice as it is sent, for a recording. */
  get node(): AudioNode {
    return this.#analyser;
  }

  /** What the device itself runs at, Hz; null if the browser does not say. */
  get sampleRate(): number | null {
    return this.#stream.getAudioTracks()[0]?.getSettings().sampleRate ?? null;
  }

  /** Takes another device, in the middle of a call if need be. */
  async choose(device: string | null): Promise<void> {
    this.#device = device;
    await this.#again();
  }

  close(): void {
    navigator.mediaDevices.removeEventListener('devicechange', this.#onchange);
    this.stop();
    this.#source.disconnect();
    this.#silence.disconnect();
    stop(this.#stream);
  }

  #attach(stream: MediaStream): MediaStreamAudioSourceNode {
    const source = this.#context.createMediaStreamSource(stream);
    source.connect(this.#analyser);
    for (const track of stream.getAudioTracks()) {
      track.enabled = !this.#muted;
      // Fires when the device is unplugged or the permission is taken back, not on our own stop().
      track.addEventListener('ended', () => {
        if (this.#stream !== stream) return;
        this.onpresence(false);
        void this.#again();
      });
    }
    return source;
  }

  #onchange = (): void => {
    const gone = this.#stream.getAudioTracks().every((track) => track.readyState === 'ended');
    if (gone) void this.#again();
  };

  /** Takes whatever microphone there is now, if any; the next change of devices tries again. */
  async #again(): Promise<void> {
    try {
      const stream = await navigator.mediaDevices.getUserMedia(wanted(this.#device));
      stop(this.#stream);
      this.#source.disconnect();
      this.#stream = stream;
      this.#source = this.#attach(stream);
      this.onpresence(true);
    } catch {
      // Still none: the page goes on saying so.
    }
  }
}

/** Why there is no microphone. Names of DOMExceptions as in the Media Capture specification, section 10.2. */
export function fault(error: unknown): Fault {
  switch (error instanceof Error || error instanceof DOMException ? error.name : '') {
    case 'NotAllowedError':
    case 'SecurityError':
      return 'microphone_refused';
    case 'NotFoundError':
    case 'OverconstrainedError':
      return 'microphone_absent';
    case 'NotReadableError':
      return 'microphone_busy';
    default:
      return 'microphone_failed';
  }
}

/** What this browser lacks before anybody needs to be asked; null if nothing. */
export function missing(scope: Window & typeof globalThis = window): Fault | null {
  if (!scope.isSecureContext) return 'insecure';
  const able =
    // Not there on plain http, and in browsers that are part of another app.
    'mediaDevices' in scope.navigator && 'AudioWorkletNode' in scope && 'WebAssembly' in scope;
  return able ? null : 'unsupported';
}

function stop(stream: MediaStream): void {
  for (const track of stream.getTracks()) track.stop();
}
