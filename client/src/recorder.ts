/** The call as a file of the caller's own: both voices, one on each side. Nothing of it leaves this device. */

/** What this browser can write, best first: Safari writes mp4 only. */
const TYPES = ['audio/webm;codecs=opus', 'audio/ogg;codecs=opus', 'audio/mp4'];
/** How often a piece is taken off the recorder, so that a long call does not lie in its memory, ms. */
const PIECE_MS = 5000;

export function canRecord(): boolean {
  return 'MediaRecorder' in window && type() !== null;
}

export class Recorder {
  readonly #recorder: MediaRecorder;
  readonly #merger: ChannelMergerNode;
  readonly #inputs: readonly AudioNode[];
  readonly #pieces: Blob[] = [];
  readonly #over: Promise<Blob>;

  /** `you` is heard on the left, `moshi` on the right. */
  constructor(context: AudioContext, you: AudioNode, moshi: AudioNode) {
    this.#inputs = [you, moshi];
    this.#merger = new ChannelMergerNode(context, { numberOfInputs: 2 });
    const target = new MediaStreamAudioDestinationNode(context, { channelCount: 2 });
    for (const [side, input] of this.#inputs.entries()) input.connect(this.#merger, 0, side);
    this.#merger.connect(target);
    // Without a rate, two voices would be taken for one with an echo.
    this.#recorder = new MediaRecorder(target.stream, {
      mimeType: type() ?? '',
      audioBitsPerSecond: 96_000,
    });
    this.#recorder.ondataavailable = ({ data }) => this.#pieces.push(data);
    this.#over = new Promise((resolve) => {
      this.#recorder.onstop = () => resolve(new Blob(this.#pieces, { type: this.#recorder.mimeType }));
    });
    this.#recorder.start(PIECE_MS);
  }

  /** The file, whole. */
  stop(): Promise<Blob> {
    if (this.#recorder.state !== 'inactive') this.#recorder.stop();
    for (const input of this.#inputs) input.disconnect(this.#merger);
    this.#merger.disconnect();
    return this.#over;
  }
}

/** What the file is to be called at its end. */
export function ending(blob: Blob): string {
  if (blob.type.includes('mp4')) return 'm4a';
  return blob.type.includes('ogg') ? 'ogg' : 'webm';
}

function type(): string | null {
  return TYPES.find((name) => MediaRecorder.isTypeSupported(name)) ?? null;
}
