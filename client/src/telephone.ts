/**
 * Does what the state of the call asks for, and tells the state machine what happened: the only place where the
 * network, the microphone, the speaker and the clock meet.
 */
import { type Call, connected, type Event, HANDSHAKE_MS, idle, live, next, SILENCE_MS } from './call';
import { chatUrl } from './line';
import { fault, Microphone, missing } from './microphone';
import { decode, encodeAudio } from './protocol';
import { Speaker } from './speaker';
import type { FromSpeaker } from './speaker.worklet';
import { Turnaround } from './turnaround';
import { Words } from './words';

/** One conversation's words; a new one begins whenever Moshi starts anew. */
export type Transcript = readonly string[];

/** Loudness of both voices, 0 to 1. */
export interface Levels {
  you: number;
  moshi: number;
}

/** What a curious caller, a bug report or a test wants to know. Counted over the whole call. */
export interface Numbers {
  /** Sound sent and decoded, ms. */
  sentMs: number;
  receivedMs: number;
  /** Sound that reached the ear, in the model's frames of 80 ms, and what of it was louder than silence, ms. */
  framesHeard: number;
  voicedMs: number;
  underruns: number;
  skippedMs: number;
  droppedMs: number;
  /** A frame's way to the line and back, ms; null until known. */
  turnaroundMs: number | null;
  /** Delay of the jitter buffer, ms. */
  bufferMs: number;
  /** Both together with the sound card: from the wire's microphone side to the ear, ms; null until known. */
  latencyMs: number | null;
}

/** How often the clock is looked at, ms. */
const TICK_MS = 250;
/** Spread of the waits, so that many callers do not come back in the same moment. */
const SPREAD = 0.2;
const FRAME_MS = 80;

interface Sound {
  context: AudioContext;
  microphone: Microphone;
  speaker: Speaker;
}

export class Telephone {
  #call = idle;
  #transcript: Transcript = [];
  #listeners = new Set<() => void>();
  #sound: Sound | null = null;
  /** Counts the calls, so that what one began does not end up in the next. */
  #calls = 0;
  #socket: WebSocket | null = null;
  #words = new Words();
  #turnaround = new Turnaround();
  #lastSound = 0;
  #lastTick = 0;
  #ticking: ReturnType<typeof setInterval> | undefined;
  #waiting: ReturnType<typeof setTimeout> | undefined;
  #sentMs = 0;
  #receivedMs = 0;
  /** The last report of a call that is over. */
  #lastReport: FromSpeaker | null = null;
  #awake: WakeLockSentinel | null = null;

  constructor() {
    window.addEventListener('online', () => this.#happened({ type: 'retry' }));
    window.addEventListener('offline', () => this.#happened({ type: 'offline' }));
    // A phone that sleeps or takes another call stops our sound; the caller's return is the time to go on.
    document.addEventListener('visibilitychange', () => this.#wake());
    window.addEventListener('pagehide', () => this.hangUp());
  }

  get call(): Call {
    return this.#call;
  }

  get transcript(): Transcript {
    return this.#transcript;
  }

  get levels(): Levels {
    return {
      you: this.#sound && !this.#call.muted ? this.#sound.microphone.level : 0,
      moshi: this.#sound?.speaker.report?.level ?? 0,
    };
  }

  get numbers(): Numbers {
    const report = this.#sound ? this.#sound.speaker.report : this.#lastReport;
    const bufferMs = report?.delayMs ?? 0;
    const turnaroundMs = this.#turnaround.median;
    return {
      sentMs: this.#sentMs,
      receivedMs: this.#receivedMs,
      framesHeard: Math.floor((report?.playedMs ?? 0) / FRAME_MS),
      voicedMs: report?.voicedMs ?? 0,
      underruns: report?.underruns ?? 0,
      skippedMs: report?.skippedMs ?? 0,
      droppedMs: report?.droppedMs ?? 0,
      turnaroundMs,
      bufferMs,
      latencyMs:
        turnaroundMs === null ? null : turnaroundMs + bufferMs + (this.#sound?.speaker.outputMs ?? 0),
    };
  }

  /** Calls `listener` after every change of the call or the transcript. Returns how to stop that. */
  subscribe(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** To be called from a tap or a click: browsers give sound only then. */
  dial(): void {
    this.#happened({ type: 'call' });
  }

  hangUp(): void {
    this.#happened({ type: 'hangup' });
  }

  mute(muted: boolean): void {
    this.#happened({ type: 'mute', muted });
  }

  #happened(event: Event): void {
    const before = this.#call;
    const after = next(before, event, Date.now());
    if (after === before) return;
    this.#call = after;
    this.#follow(before, after);
    this.#tell();
  }

  #tell(): void {
    for (const listener of this.#listeners) listener();
  }

  /** What the step from one state to another asks for. */
  #follow(before: Call, after: Call): void {
    if (after.muted !== before.muted && this.#sound) this.#sound.microphone.muted = after.muted;
    if (before.phase === after.phase && before.connection === after.connection) return;

    clearTimeout(this.#waiting);
    if (connected(before) && (!connected(after) || before.connection !== after.connection))
      this.#disconnect();
    if (after.phase === 'asking') void this.#prepare();
    if (after.phase === 'dialling') this.#connect();
    if (after.phase === 'talking') this.#converse();
    if (after.phase === 'waiting') {
      const delay = after.delay * (1 + SPREAD * (Math.random() - 0.5));
      this.#waiting = setTimeout(() => this.#happened({ type: 'retry' }), delay);
    }
    if (!live(after)) this.#release();
  }

  async #prepare(): Promise<void> {
    const mine = ++this.#calls;
    this.#transcript = [];
    this.#sentMs = 0;
    this.#receivedMs = 0;
    this.#turnaround = new Turnaround();
    this.#lastReport = null;
    const lacking = missing();
    if (lacking) {
      this.#happened({ type: 'impossible', fault: lacking });
      return;
    }
    // Made and resumed here, within the tap: later it would stay silent.
    const context = new AudioContext({ latencyHint: 'interactive' });
    void context.resume();
    const [heard, spoken] = await Promise.allSettled([Microphone.open(context), Speaker.open(context)]);
    const microphone = heard.status === 'fulfilled' ? heard.value : null;
    const speaker = spoken.status === 'fulfilled' ? spoken.value : null;
    const wanted = mine === this.#calls && this.#call.phase === 'asking';
    if (!wanted || !microphone || !speaker) {
      microphone?.close();
      speaker?.close();
      void context.close();
      if (!wanted) return;
      const reason = heard.status === 'rejected' ? fault(heard.reason) : 'sound_failed';
      this.#happened({ type: 'impossible', fault: reason });
      return;
    }
    this.#sound = { context, microphone, speaker };
    microphone.muted = this.#call.muted;
    microphone.onpresence = (present) => this.#happened({ type: 'microphone', present });
    speaker.onfault = () => this.#happened({ type: 'impossible', fault: 'sound_failed' });
    // What cannot be decoded is no sound: a line that sends nothing else is as good as silent.
    speaker.ondecoded = (ms) => {
      this.#lastSound = performance.now();
      this.#receivedMs += ms;
      this.#turnaround.received(ms, performance.now());
    };
    this.#lastTick = performance.now();
    this.#ticking = setInterval(() => this.#tick(), TICK_MS);
    void this.#stayAwake();
    this.#happened({ type: 'ready' });
  }

  #connect(): void {
    this.#lastSound = performance.now();
    const socket = new WebSocket(chatUrl());
    socket.binaryType = 'arraybuffer';
    this.#socket = socket;
    socket.onmessage = ({ data }: MessageEvent<unknown>) => {
      if (this.#socket === socket) this.#receive(data);
    };
    socket.onclose = ({ code }) => {
      if (this.#socket === socket) this.#happened({ type: 'closed', code });
    };
  }

  #receive(data: unknown): void {
    const message = decode(data);
    switch (message?.kind) {
      case 'handshake':
        this.#happened({ type: 'answered' });
        break;
      case 'audio':
        this.#sound?.speaker.play(message.bytes);
        break;
      case 'text':
        this.#say(this.#words.add(message.piece));
        break;
      case 'error':
        this.#happened({ type: 'refused', code: message.code, message: message.message });
        break;
    }
  }

  #say(words: string): void {
    if (words === '') return;
    this.#transcript = [...this.#transcript.slice(0, -1), (this.#transcript.at(-1) ?? '') + words];
    this.#tell();
  }

  /** The engine is there: from now on sound goes both ways. */
  #converse(): void {
    const socket = this.#socket;
    const sound = this.#sound;
    if (!socket || !sound) return;
    this.#lastSound = performance.now();
    this.#turnaround = new Turnaround();
    this.#words = new Words();
    this.#transcript = [...this.#transcript, ''];
    sound.speaker.reset();
    sound.microphone.start((pages, ms) => {
      if (socket.readyState !== WebSocket.OPEN) return;
      socket.send(encodeAudio(pages));
      this.#sentMs += ms;
      this.#turnaround.sent(ms, performance.now());
    });
  }

  #disconnect(): void {
    this.#sound?.microphone.stop();
    this.#sound?.speaker.reset();
    this.#say(this.#words.end());
    const socket = this.#socket;
    this.#socket = null;
    socket?.close(1000);
  }

  #tick(): void {
    const now = performance.now();
    const slept = now - this.#lastTick > SILENCE_MS;
    this.#lastTick = now;
    // After a sleep what came in meanwhile is still to be handled: look again at the next tick.
    if (slept) return;
    // While the device holds our sound back (another call, the lock screen), silence is our own.
    if (this.#sound?.context.state !== 'running') {
      this.#lastSound = now;
      this.#wake();
      return;
    }
    const quiet = now - this.#lastSound;
    if (this.#call.phase === 'talking' && quiet > SILENCE_MS) this.#happened({ type: 'silence' });
    const late = this.numbers.latencyMs;
    if (late !== null) this.#happened({ type: 'latency', ms: late });
    if (this.#call.phase === 'dialling' && quiet > HANDSHAKE_MS) this.#happened({ type: 'unanswered' });
  }

  #wake(): void {
    if (document.visibilityState !== 'visible' || !this.#sound) return;
    if (this.#sound.context.state !== 'running') void this.#sound.context.resume().catch(() => {});
    void this.#stayAwake();
  }

  /** Keeps the screen on: a phone that locks itself would end the call. */
  async #stayAwake(): Promise<void> {
    if (!('wakeLock' in navigator) || (this.#awake && !this.#awake.released)) return;
    const lock = await navigator.wakeLock.request('screen').catch(() => null);
    if (live(this.#call)) this.#awake = lock;
    else void lock?.release();
  }

  #release(): void {
    clearInterval(this.#ticking);
    void this.#awake?.release();
    this.#awake = null;
    const sound = this.#sound;
    this.#sound = null;
    if (!sound) return;
    this.#lastReport = sound.speaker.report;
    sound.microphone.close();
    sound.speaker.close();
    void sound.context.close();
  }
}
