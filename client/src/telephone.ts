/**
 * Does what the state of the call asks for, and tells the state machine what happened: the only place where the
 * network, the microphone, the speaker and the clock meet.
 */
import { type Call, connected, type Event, HANDSHAKE_MS, idle, live, next, SILENCE_MS } from './call';
import { type Door, known, place, type Ticket, ticket } from './door';
import { EchoEar } from './echo';
import { follow } from './events';
import { chatUrl } from './line';
import { type News, news, remembers, type Words as Listening } from './metadata';
import { fault, Microphone, missing } from './microphone';
import { onlyOne } from './onlyone';
import { decode, encodeAudio, encodeHello } from './protocol';
import { type Quality, QualityJudge } from './quality';
import { canRecord, ending, Recorder } from './recorder';
import { keepSettings, readSettings, type Settings } from './settings';
import { chooseSpeaker, Speaker } from './speaker';
import type { FromSpeaker } from './speaker.worklet';
import { begun, heard, said, settled, type Transcript } from './transcript';
import { Turnaround } from './turnaround';
import { Words } from './words';

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
  /** What the engine says of itself: its own share of the turnaround, and how far it is behind; null if it does not. */
  engineMs: number | null;
  engineLagMs: number | null;
  /** Frames of 80 ms lost at the engine: ours, that it never heard, and Moshi's, that it never sent. */
  unheardFrames: number;
  unsaidFrames: number;
  /** Pages of sound that never came. */
  gaps: number;
  /** What the sound runs at here, Hz; 0 until known. */
  contextHz: number;
  microphoneHz: number;
  /** Connections that broke and came back with Moshi's memory whole. */
  resumed: number;
}

/** How often the clock is looked at, ms. */
const TICK_MS = 250;
/** Spread of the waits, so that many callers do not come back in the same moment. */
const SPREAD = 0.2;
const FRAME_MS = 80;
/** How long a resumed engine may take to say that it remembers; one that does not know metadata never says it, ms. */
const WELCOME_MS = 1500;
/** A ticket that has less than this left is not worth a try, ms. */
const TICKET_SPARE_MS = 3000;
/** Closing with this code tells the engine that the call is not over: it keeps the conversation for a while. */
const BROKEN = 4000;

const NO_ENGINE = { turnaroundMs: null, lagMs: null, unheard: 0, unsaid: 0 };

interface Sound {
  context: AudioContext;
  microphone: Microphone;
  speaker: Speaker;
}

export class Telephone {
  #call = idle;
  readonly #door: Door;
  #transcript: Transcript = [];
  #listening: Listening | null = null;
  #engineName: string | null = null;
  #engine: { turnaroundMs: number | null; lagMs: number | null; unheard: number; unsaid: number } = NO_ENGINE;
  /** What the line calls this call, and the ticket that is good for its next connection. */
  #id: string | null = null;
  /** What it called the latest one, over or not. */
  #latest: string | null = null;
  #ticket: Ticket | null = null;
  #stream: ReturnType<typeof follow> | null = null;
  #welcome: ReturnType<typeof setTimeout> | undefined;
  /** When the latest connection was asked for. */
  #asked = 0;
  #settings: Settings = readSettings();
  #judge = new QualityJudge();
  #quality: Quality | null = null;
  #judged = 0;
  #ear = new EchoEar();
  #echo = false;
  #gaps = 0;
  #hertz = { context: 0, microphone: 0 };
  #recorder: Recorder | null = null;
  #recording: { url: string; name: string } | null = null;
  /** The caller finished a turn; what was said in it. */
  onturn: (text: string) => void = () => {};
  /** Something runs because of this call; its id. */
  onexecution: (id: string) => void = () => {};
  #listeners = new Set<() => void>();
  #sound: Sound | null = null;
  /** Ends this tab's claim to be the one that calls. */
  #letGo: (() => void) | null = null;
  #here = false;
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

  constructor(door: Door) {
    this.#door = door;
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

  /** What the engine calls itself; null if it does not. */
  get engine(): string | null {
    return this.#engineName;
  }

  /** Whether the engine listens for the caller's words; null while it does not say. */
  get listening(): Listening | null {
    return this.#listening;
  }

  /** What the line calls the latest call; null where it keeps no places. */
  get id(): string | null {
    return this.#latest;
  }

  get settings(): Settings {
    return this.#settings;
  }

  /** The connection in a word; null while nobody talks. */
  get quality(): Quality | null {
    return this.#call.phase === 'talking' ? this.#quality : null;
  }

  /** Moshi was heard through the microphone in this call: headphones would help. */
  get echo(): boolean {
    return this.#echo;
  }

  /** Is the call being recorded? Null where it cannot be. */
  get recording(): boolean | null {
    return canRecord() ? this.#recorder !== null : null;
  }

  /** The finished recording of the latest call, to be saved. */
  get recorded(): { url: string; name: string } | null {
    return this.#recording;
  }

  set volume(volume: number) {
    this.#keep({ volume });
    if (this.#sound) this.#sound.speaker.volume = volume;
  }

  chooseMicrophone(device: string | null): void {
    this.#keep({ microphone: device });
    void this.#sound?.microphone.choose(device);
  }

  chooseSpeaker(device: string | null): void {
    this.#keep({ speaker: device });
    if (this.#sound) void chooseSpeaker(this.#sound.context, device);
  }

  #keep(change: Partial<Settings>): void {
    this.#settings = { ...this.#settings, ...change };
    keepSettings(this.#settings);
    this.#tell();
  }

  /** Begins or ends a recording, which stays on this device. */
  record(on: boolean): void {
    if (!on) {
      void this.#endRecording();
    } else if (this.#sound && !this.#recorder) {
      const { context, microphone, speaker } = this.#sound;
      this.#recorder = new Recorder(context, microphone.node, speaker.node);
    }
    this.#tell();
  }

  async #endRecording(): Promise<void> {
    const recorder = this.#recorder;
    this.#recorder = null;
    if (!recorder) return;
    const blob = await recorder.stop();
    if (this.#recording) URL.revokeObjectURL(this.#recording.url);
    const name = `hotline-${new Date().toISOString().slice(0, 16).replace(/[:T]/g, '-')}.${ending(blob)}`;
    this.#recording = { url: URL.createObjectURL(blob), name };
    this.#tell();
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
      engineMs: this.#engine.turnaroundMs,
      engineLagMs: this.#engine.lagMs,
      unheardFrames: this.#engine.unheard,
      unsaidFrames: this.#engine.unsaid,
      gaps: this.#gaps + (this.#sound?.speaker.gaps ?? 0),
      contextHz: this.#hertz.context,
      microphoneHz: this.#hertz.microphone,
      resumed: this.#call.resumed,
    };
  }

  /** Calls `listener` after every change of the call or the transcript. Returns how to stop that. */
  subscribe(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** To be called from a tap or a click: browsers give sound only then. `here`: a call in another tab ends for it. */
  dial(here = false): void {
    this.#here = here;
    this.#happened({ type: 'call' });
  }

  hangUp(): void {
    this.#happened({ type: 'hangup' });
  }

  /** Goes on with a Moshi that knows nothing of this call. */
  anew(): void {
    this.#happened({ type: 'anew' });
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
      this.#disconnect(after.phase === 'waiting' && this.#id !== null);
    if (before.admitted && !after.admitted) this.#leave();
    if (after.phase === 'asking') void this.#prepare();
    if (after.phase === 'joining') void this.#join();
    if (after.phase === 'dialling') void this.#connect();
    if (after.phase === 'talking') this.#converse();
    if (after.phase === 'waiting') {
      const delay = after.delay * (1 + SPREAD * (Math.random() - 0.5));
      this.#waiting = setTimeout(() => this.#happened({ type: 'retry' }), delay);
    }
    if (!live(after)) {
      this.#leave();
      this.#release();
    }
  }

  async #prepare(): Promise<void> {
    const mine = ++this.#calls;
    this.#transcript = [];
    this.#latest = null;
    this.#listening = null;
    this.#engine = NO_ENGINE;
    this.#sentMs = 0;
    this.#receivedMs = 0;
    this.#turnaround = new Turnaround();
    this.#judge = new QualityJudge();
    this.#quality = null;
    this.#ear = new EchoEar();
    this.#echo = false;
    this.#gaps = 0;
    this.#lastReport = null;
    const lacking = missing();
    if (lacking) {
      this.#happened({ type: 'impossible', fault: lacking });
      return;
    }
    // Made and resumed here, within the tap: later it would stay silent.
    const context = new AudioContext({ latencyHint: 'interactive' });
    void context.resume();
    const still = () => mine === this.#calls && this.#call.phase === 'asking';
    const letGo = await onlyOne(this.#here, () => {
      if (mine === this.#calls) this.#happened({ type: 'impossible', fault: 'taken' });
    });
    if (!letGo || !still()) {
      letGo?.();
      void context.close();
      if (still()) this.#happened({ type: 'impossible', fault: 'elsewhere' });
      return;
    }
    this.#letGo = letGo;
    void chooseSpeaker(context, this.#settings.speaker);
    const [listening, spoken] = await Promise.allSettled([
      Microphone.open(context, this.#settings.microphone),
      Speaker.open(context),
    ]);
    const microphone = listening.status === 'fulfilled' ? listening.value : null;
    const speaker = spoken.status === 'fulfilled' ? spoken.value : null;
    const wanted = still();
    if (!wanted || !microphone || !speaker) {
      microphone?.close();
      speaker?.close();
      void context.close();
      if (!wanted) return;
      const reason = listening.status === 'rejected' ? fault(listening.reason) : 'sound_failed';
      this.#happened({ type: 'impossible', fault: reason });
      return;
    }
    this.#sound = { context, microphone, speaker };
    this.#hertz = { context: context.sampleRate, microphone: microphone.sampleRate ?? 0 };
    speaker.volume = this.#settings.volume;
    speaker.onreport = ({ level }) => {
      if (this.#echo || this.#call.phase !== 'talking' || this.#call.muted) return;
      if (!this.#ear.hears(level, microphone.level)) return;
      this.#echo = true;
      this.#tell();
    };
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

  /** Asks for a place, and waits for it if others are before us. */
  async #join(): Promise<void> {
    const mine = this.#calls;
    this.#leave();
    const still = () => mine === this.#calls && this.#call.phase === 'joining';
    try {
      const admission = await this.#door.call();
      if (!still()) {
        if (admission.state !== 'direct') this.#door.leave(admission.id);
        return;
      }
      if (admission.state === 'direct') {
        this.#happened({ type: 'admitted' });
        return;
      }
      this.#id = admission.id;
      this.#latest = admission.id;
      this.#listen(admission.id);
      if (admission.state === 'waiting') {
        this.#happened({ type: 'queued', place: admission.place });
      } else {
        this.#ticket = admission.ticket;
        this.#happened({ type: 'admitted' });
      }
    } catch (error) {
      const { fault: reason, message } = known(error);
      if (still()) this.#happened({ type: 'barred', fault: reason, message });
    }
  }

  /** Follows what the line says about this call, in the queue and while one talks. */
  #listen(id: string): void {
    this.#stream = follow({
      open: (lastId, signal) =>
        this.#door.events(`/api/calls/${encodeURIComponent(id)}/events`, lastId, signal),
      fatal: (error) => {
        const { status } = known(error);
        return status >= 400 && status < 500 && status !== 408 && status !== 429;
      },
      event: ({ type, data }) => {
        if (this.#id === id) this.#told(type, json(data));
      },
      over: (error) => {
        // A line without this stream still has calls; only who waits for a turn cannot do without.
        if (this.#id !== id || this.#call.phase !== 'queued') return;
        const { status, fault: reason, message } = known(error);
        this.#happened({ type: 'barred', fault: status === 404 ? 'call_over' : reason, message });
      },
    });
  }

  #told(type: string, value: Record<string, unknown>): void {
    switch (type) {
      case 'waiting':
        this.#happened({ type: 'queued', place: place(value) });
        break;
      case 'ready':
      case 'called': {
        if (this.#call.phase !== 'queued') break;
        this.#ticket = ticket(value);
        this.#sound?.speaker.ring();
        this.#happened({ type: 'admitted' });
        break;
      }
      case 'execution':
        if (typeof value.id === 'string') this.onexecution(value.id);
        break;
      case 'ended': {
        this.#stream?.stop();
        const { reason } = value;
        if (this.#call.phase === 'queued') {
          this.#happened({ type: 'barred', fault: 'call_over', message: '' });
        } else if (reason === 'operator' || reason === 'revoked') {
          // Anything else the engine itself tells, or a break that will come back to a call which is over.
          this.#happened({ type: 'refused', code: reason, message: '' });
        }
        break;
      }
    }
  }

  /** Gives back what the line holds for this call. */
  #leave(): void {
    this.#stream?.stop();
    this.#stream = null;
    this.#ticket = null;
    if (this.#id !== null) this.#door.leave(this.#id);
    this.#id = null;
  }

  async #connect(): Promise<void> {
    this.#lastSound = performance.now();
    const mine = this.#call.connection;
    const still = () => this.#call.phase === 'dialling' && this.#call.connection === mine;
    let word: string | null = null;
    if (this.#id !== null) {
      const held = this.#ticket;
      this.#ticket = null;
      try {
        const good = held !== null && held.expires - Date.now() > TICKET_SPARE_MS;
        word = (good ? held : await this.#door.ticket(this.#id)).word;
      } catch (error) {
        const { fault: reason, code, message } = known(error);
        if (!still()) return;
        if (code === 'call_waiting') {
          this.#happened({ type: 'queued', place: { position: null, waitMs: null } });
          return;
        }
        if (reason === 'call_over') this.#id = null;
        this.#happened({ type: 'barred', fault: reason, message });
        return;
      }
      if (!still()) return;
    }
    this.#lastSound = performance.now();
    this.#asked = performance.now();
    const socket = new WebSocket(chatUrl(word));
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
        this.#greet();
        break;
      case 'audio':
        this.#sound?.speaker.play(message.bytes);
        break;
      case 'text':
        this.#say(this.#words.add(message.piece));
        break;
      case 'metadata': {
        const told = news(message.value);
        if (told) this.#learn(told);
        break;
      }
      case 'error':
        this.#happened({ type: 'refused', code: message.code, message: message.message });
        break;
    }
  }

  /** The engine has this connection. Whether it has the conversation too, its welcome says. */
  #greet(): void {
    if (this.#call.phase !== 'dialling') return;
    this.#socket?.send(encodeHello());
    if (!this.#call.held || this.#id === null) {
      this.#happened({ type: 'answered', remembers: false });
      return;
    }
    this.#welcome = setTimeout(() => this.#happened({ type: 'answered', remembers: false }), WELCOME_MS);
  }

  #learn(told: News): void {
    switch (told.type) {
      case 'welcome':
        this.#listening = told.words ?? this.#listening;
        this.#engineName = told.engine;
        // Within the same conversation only: without an id of our own, an engine cannot know which one we mean.
        if (this.#call.phase === 'dialling' && this.#call.held && this.#id !== null) {
          clearTimeout(this.#welcome);
          const mind = remembers(told, performance.now() - this.#asked);
          this.#happened({ type: 'answered', remembers: mind });
        }
        break;
      case 'status':
        this.#engine = { ...this.#engine, turnaroundMs: told.turnaroundMs, lagMs: told.lagMs };
        return;
      case 'dropped':
        this.#engine = { ...this.#engine, unheard: told.heardFrames, unsaid: told.saidFrames };
        return;
      case 'draining':
        this.#happened({ type: 'draining', seconds: told.seconds });
        return;
      case 'words':
        this.#listening = { available: told.available, reason: told.reason };
        break;
      case 'transcript':
        // Moshi's own words come as kind 2 from every engine, sooner.
        if (told.who === 'you') {
          this.#listening ??= { available: true, reason: '' };
          this.#transcript = heard(this.#transcript, told.text, told.final, Date.now());
        }
        break;
      case 'turn_end':
        this.onturn(told.text);
        break;
    }
    this.#tell();
  }

  #say(words: string): void {
    if (words === '') return;
    this.#transcript = said(this.#transcript, words, Date.now());
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
    if (this.#transcript.length < this.#call.conversations) this.#transcript = begun(this.#transcript);
    sound.speaker.reset();
    sound.microphone.start((pages, ms) => {
      if (socket.readyState !== WebSocket.OPEN) return;
      socket.send(encodeAudio(pages));
      this.#sentMs += ms;
      this.#turnaround.sent(ms, performance.now());
    });
  }

  /** `back`: it broke, and this call will come back to it. */
  #disconnect(back: boolean): void {
    clearTimeout(this.#welcome);
    this.#sound?.microphone.stop();
    this.#sound?.speaker.reset();
    this.#say(this.#words.end());
    this.#transcript = settled(this.#transcript);
    const socket = this.#socket;
    this.#socket = null;
    socket?.close(back ? BROKEN : 1000);
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
    if (this.#call.phase === 'talking' && now - this.#judged > 1000) {
      this.#judged = now;
      const quality = this.#judge.judge(this.numbers, now);
      if (quality !== this.#quality) {
        this.#quality = quality;
        this.#tell();
      }
    }
    if (this.#call.phase === 'dialling' && quiet > HANDSHAKE_MS) this.#happened({ type: 'unanswered' });
  }

  #wake(): void {
    if (document.visibilityState !== 'visible') return;
    this.#stream?.wake();
    if (!this.#sound) return;
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
    this.#letGo?.();
    this.#letGo = null;
    void this.#awake?.release();
    this.#awake = null;
    const sound = this.#sound;
    this.#sound = null;
    if (!sound) return;
    this.#lastReport = sound.speaker.report;
    this.#gaps = sound.speaker.gaps;
    void this.#endRecording();
    sound.microphone.close();
    sound.speaker.close();
    void sound.context.close();
  }
}

/** What an event carries; nothing that we understand is nothing. */
function json(data: string): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(data);
    return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};
  } catch {
    return {};
  }
}
