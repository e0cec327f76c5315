/**
 * The call as a state machine: what happened becomes what is, and nothing else happens in here.
 *
 * telephone.ts does what a state asks for (ask for the microphone, open a connection, wait) and reports back as events;
 * ui/ shows the state. Times are milliseconds of one clock.
 */

/** What can be wrong. texts.ts has the words for each. */
export type Fault =
  // This browser, this device
  | 'insecure' // plain http: browsers give no microphone
  | 'unsupported' // no microphone, worklets or WebAssembly in this browser
  | 'microphone_refused'
  | 'microphone_absent'
  | 'microphone_busy'
  | 'microphone_failed'
  | 'sound_failed' // the page's own sound machinery did not come up
  // The line said so, as kind 5 or by its close code
  | 'line_full'
  | 'line_down'
  | 'starting'
  | 'not_allowed'
  | 'refused' // any other code
  // The line said nothing
  | 'unreachable' // no connection, or cut before Moshi answered
  | 'no_answer' // connected, but Moshi never said hello
  | 'broken' // cut during the conversation
  | 'silent' // connected, but no sound any more
  | 'offline'; // this device has no network

export interface Trouble {
  fault: Fault;
  /** The line's own words, if it sent any. */
  message: string;
}

export type Phase =
  | 'idle'
  | 'asking' // for the microphone
  | 'dialling' // a connection is being made
  | 'waiting' // for the next attempt
  | 'talking'
  | 'ended' // by the caller
  | 'failed'; // by something that waiting does not mend

export interface Call {
  readonly phase: Phase;
  readonly muted: boolean;
  /** The microphone went away during the call; Moshi hears silence until it is back. */
  readonly deaf: boolean;
  /** Moshi answers much later than it should: the line or the network cannot keep up. */
  readonly slow: boolean;
  /** Numbers the connections of this page; a new number asks for a new connection, anything but dialling or talking for none. */
  readonly connection: number;
  /** Attempts since Moshi was last heard, the running one included. */
  readonly attempts: number;
  /** Conversations in this call. From the second on Moshi knows nothing of the ones before. */
  readonly conversations: number;
  /** Why it waits or failed; while it dials again, why it has to. */
  readonly trouble: Trouble | null;
  /** How long to wait before the next attempt, ms. */
  readonly delay: number;
  /** When the first conversation began, and when the call was over. */
  readonly began: number | null;
  readonly ended: number | null;
  /** When the call before this one ended, if there was one: the line may still be clearing up after it. */
  readonly before: number | null;
  /** Since when it has been trying to get through. */
  readonly tryingSince: number;
}

export type Event =
  | { type: 'call' }
  | { type: 'ready' } // microphone and sound are there
  | { type: 'impossible'; fault: Fault } // they are not
  | { type: 'answered' } // the engine's handshake
  | { type: 'refused'; code: string; message: string } // the line's kind 5
  | { type: 'closed'; code: number } // the connection is gone
  | { type: 'silence' } // no sound for too long
  | { type: 'unanswered' } // no handshake for too long
  | { type: 'retry' } // the wait is over, or the network is back
  | { type: 'offline' } // the device lost its network
  | { type: 'mute'; muted: boolean }
  | { type: 'microphone'; present: boolean }
  | { type: 'latency'; ms: number } // from the caller's voice to Moshi's, measured
  | { type: 'hangup' };

/** Without sound for this long a conversation is broken (the engine sends a frame every 80 ms), ms. */
export const SILENCE_MS = 2000;
/** How long a connected engine may take to say hello, ms. */
export const HANDSHAKE_MS = 10_000;
/** Waits before the attempts: a killed engine needs about 20 s to load its weights, a network change none. */
const BACKOFF_MS = [500, 1000, 2000, 4000, 5000];
/** A call is called slow from here on, and not any more from there, ms. */
const SLOW_MS = 1500;
const FAST_MS = 900;
/** How long a line may be busy with a call that its caller has hung up: it frees a vanished one's engine within 15 s. */
const CLEARING_MS = 15_000;
/** Afterwards it is for the caller to decide, ms. */
export const GIVE_UP_MS = 180_000;

export const idle: Call = {
  phase: 'idle',
  muted: false,
  deaf: false,
  slow: false,
  connection: 0,
  attempts: 0,
  conversations: 0,
  trouble: null,
  delay: 0,
  began: null,
  ended: null,
  before: null,
  tryingSince: 0,
};

/** What is, after `event` happened to `call` at `now` (ms). The same object when it changes nothing. */
export function next(call: Call, event: Event, now: number): Call {
  switch (event.type) {
    case 'call':
      return live(call)
        ? call
        : {
            ...idle,
            phase: 'asking',
            connection: call.connection,
            before: call.began === null ? null : call.ended,
            tryingSince: now,
          };
    case 'ready':
      return call.phase === 'asking' ? dial({ ...call, tryingSince: now }) : call;
    case 'impossible':
      return live(call) ? over(call, 'failed', { fault: event.fault, message: '' }, now) : call;
    case 'hangup':
      return live(call) ? over(call, call.phase === 'asking' ? 'idle' : 'ended', null, now) : call;
    case 'mute':
      return live(call) && call.muted !== event.muted ? { ...call, muted: event.muted } : call;
    case 'microphone':
      return live(call) && call.deaf === event.present ? { ...call, deaf: !event.present } : call;
    case 'latency': {
      // Between the two limits it stays what it was called: a word that flickers helps nobody.
      const slow = event.ms > (call.slow ? FAST_MS : SLOW_MS);
      return call.phase === 'talking' && slow !== call.slow ? { ...call, slow } : call;
    }
    case 'answered':
      return call.phase === 'dialling'
        ? {
            ...call,
            phase: 'talking',
            attempts: 0,
            conversations: call.conversations + 1,
            trouble: null,
            slow: false,
            began: call.began ?? now,
          }
        : call;
    case 'retry':
      return call.phase === 'waiting' ? dial(call) : call;
    case 'offline':
      return call.phase === 'waiting' ? { ...call, trouble: { fault: 'offline', message: '' } } : call;
    case 'refused':
      return connected(call) ? lost(call, { fault: refusal(event.code), message: event.message }, now) : call;
    case 'closed':
      return connected(call) ? lost(call, { fault: closing(call, event.code), message: '' }, now) : call;
    case 'silence':
      return call.phase === 'talking' ? lost(call, { fault: 'silent', message: '' }, now) : call;
    case 'unanswered':
      return call.phase === 'dialling' ? lost(call, { fault: 'no_answer', message: '' }, now) : call;
  }
}

/** Is there a call that can be hung up? */
export function live(call: Call): boolean {
  return call.phase === 'asking' || call.phase === 'waiting' || connected(call);
}

/** Does this state want a connection? */
export function connected(call: Call): boolean {
  return call.phase === 'dialling' || call.phase === 'talking';
}

/** Did Moshi lose its memory in this call? */
export function anew(call: Call): boolean {
  return call.phase === 'talking' && call.conversations > 1;
}

function dial(call: Call): Call {
  return { ...call, phase: 'dialling', connection: call.connection + 1, attempts: call.attempts + 1 };
}

/** The connection is gone: try again if that can help, else give up. */
function lost(call: Call, trouble: Trouble, now: number): Call {
  const tryingSince = call.phase === 'talking' ? now : call.tryingSince;
  // A call that was answered once is worth waiting for. One that never was fails at once and in words, except when the
  // line itself says that it is on its way up, or when the one who keeps it busy is this caller's own last call.
  const ownFault = trouble.fault === 'line_full' && call.before !== null && now - call.before < CLEARING_MS;
  const worthIt =
    call.conversations > 0 ? trouble.fault !== 'not_allowed' : trouble.fault === 'starting' || ownFault;
  if (!worthIt || now - tryingSince >= GIVE_UP_MS) return over(call, 'failed', trouble, now);
  const delay = BACKOFF_MS[Math.min(call.attempts, BACKOFF_MS.length - 1)] ?? 0;
  // What the line says beats what is guessed from a cut: keep the better explanation while it goes on.
  const guessed = trouble.fault === 'unreachable' && call.trouble !== null;
  return { ...call, phase: 'waiting', trouble: guessed ? call.trouble : trouble, delay, tryingSince };
}

function over(call: Call, phase: 'idle' | 'ended' | 'failed', trouble: Trouble | null, now: number): Call {
  return { ...call, phase, trouble, ended: now, deaf: false };
}

function refusal(code: string): Fault {
  switch (code) {
    case 'line_full':
    case 'line_down':
    case 'starting':
    case 'not_allowed':
      return code;
    default:
      return 'refused';
  }
}

/** Close codes of RFC 6455 as the line uses them when it could not send its words. */
function closing(call: Call, code: number): Fault {
  if (code === 1008) return 'not_allowed';
  if (code === 1013) return 'line_down';
  return call.phase === 'talking' ? 'broken' : 'unreachable';
}
