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
  | 'elsewhere' // another tab of this browser has a call
  | 'taken' // another tab took the call over
  // The line said so, as kind 5 or by its close code
  | 'line_full'
  | 'line_down'
  | 'starting'
  | 'not_allowed'
  | 'restarting' // its engine is being stopped
  | 'call_in_use' // the line still holds our own broken connection
  | 'too_long' // a call may last only so long
  | 'refused' // any other code
  // The door said so (links, places)
  | 'link_needed' // this line opens with a link only
  | 'link_invalid' // wrong, spent, expired or revoked: the line does not say which
  | 'session_over' // what the link gave is no longer valid
  | 'call_over' // this call is over on the line's side
  | 'ticket_invalid' // too old, or shown before: the next one may do
  | 'hung_up' // whoever runs the line ended this call
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
  | 'joining' // a place on the line is asked for
  | 'queued' // others are before us
  | 'dialling' // a connection is being made
  | 'waiting' // for the next attempt
  | 'talking'
  | 'forgot' // the line is back, but with a Moshi that knows nothing of this call: the caller says whether to go on
  | 'ended' // by the caller
  | 'failed'; // by something that waiting does not mend

/** Where in the queue a caller stands: 1 is next. Null where the line does not say. */
export interface Place {
  position: number | null;
  /** How long it may take, ms. */
  waitMs: number | null;
}

export interface Call {
  readonly phase: Phase;
  readonly muted: boolean;
  /** The microphone went away during the call; Moshi hears silence until it is back. */
  readonly deaf: boolean;
  /** Moshi answers much later than it should: the line or the network cannot keep up. */
  readonly slow: boolean;
  /** Numbers the connections of this page; a new number asks for a new connection, anything but dialling or talking for none. */
  readonly connection: number;
  /** The line gave this call a place: a broken connection comes back to it. */
  readonly admitted: boolean;
  readonly place: Place | null;
  /** Attempts since Moshi was last heard, the running one included. */
  readonly attempts: number;
  /** Conversations in this call. From the second on Moshi knows nothing of the ones before. */
  readonly conversations: number;
  /** There is a conversation to go back to: an engine that answers without its memory is not the one we want. */
  readonly held: boolean;
  /** How often the connection came back with Moshi's memory whole. */
  readonly resumed: number;
  /** When the line will end this call, since its engine is being stopped. */
  readonly until: number | null;
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
  | { type: 'admitted' } // there is a place for this call
  | { type: 'queued'; place: Place } // there will be
  | { type: 'barred'; fault: Fault; message: string } // there is none
  | { type: 'answered'; remembers: boolean } // the engine's handshake; is it the conversation that broke?
  | { type: 'anew' } // the caller wants to go on although Moshi forgot
  | { type: 'draining'; seconds: number } // the engine is being stopped
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
/** Trouble that a call which was never answered waits out. */
const WORTH_WAITING: readonly Fault[] = [
  'starting',
  'restarting',
  'call_in_use',
  'call_over',
  'ticket_invalid',
];
/** Trouble that no waiting mends, whatever was before. */
const FINAL: readonly Fault[] = [
  'not_allowed',
  'too_long',
  'hung_up',
  'link_needed',
  'link_invalid',
  'session_over',
];
/** Afterwards it is for the caller to decide, ms. */
export const GIVE_UP_MS = 180_000;

export const idle: Call = {
  phase: 'idle',
  muted: false,
  deaf: false,
  slow: false,
  connection: 0,
  admitted: false,
  place: null,
  attempts: 0,
  conversations: 0,
  held: false,
  resumed: 0,
  until: null,
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
      return call.phase === 'asking' ? join({ ...call, tryingSince: now }) : call;
    case 'admitted':
      return call.phase === 'joining' || call.phase === 'queued'
        ? dial({
            ...call,
            admitted: true,
            place: null,
            tryingSince: call.phase === 'queued' ? now : call.tryingSince,
          })
        : call;
    case 'queued':
      // Who was called and did not come in time is called again: back to the queue, with the place kept.
      return (call.phase === 'joining' ||
        call.phase === 'queued' ||
        (call.phase === 'dialling' && !call.held)) &&
        !same(call.place, event.place)
        ? { ...call, phase: 'queued', place: event.place, trouble: null }
        : call;
    case 'barred':
      return call.phase === 'joining' || call.phase === 'queued' || call.phase === 'dialling'
        ? barred(call, { fault: event.fault, message: event.message }, now)
        : call;
    case 'anew':
      return call.phase === 'forgot' ? join({ ...call, admitted: false, tryingSince: now }) : call;
    case 'draining':
      return call.phase === 'talking' && call.until === null
        ? { ...call, until: now + event.seconds * 1000 }
        : call;
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
      if (call.phase !== 'dialling') return call;
      if (call.held && !event.remembers) return forgot(call);
      return {
        ...call,
        phase: 'talking',
        attempts: 0,
        held: true,
        conversations: call.held ? call.conversations : call.conversations + 1,
        resumed: call.held ? call.resumed + 1 : call.resumed,
        trouble: null,
        slow: false,
        began: call.began ?? now,
      };
    case 'retry':
      if (call.phase !== 'waiting') return call;
      return call.admitted ? dial(call) : join(call);
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
  return call.phase !== 'idle' && call.phase !== 'ended' && call.phase !== 'failed';
}

/** Does this state want a connection? */
export function connected(call: Call): boolean {
  return call.phase === 'dialling' || call.phase === 'talking';
}

function join(call: Call): Call {
  return { ...call, phase: 'joining', attempts: call.attempts + 1 };
}

/** An attempt is counted once: who comes from asking for a place has counted it there. */
function dial(call: Call): Call {
  const attempts = call.phase === 'waiting' ? call.attempts + 1 : call.attempts;
  return { ...call, phase: 'dialling', connection: call.connection + 1, attempts };
}

function forgot(call: Call): Call {
  return { ...call, phase: 'forgot', held: false, admitted: false, trouble: null, attempts: 0, until: null };
}

function same(a: Place | null, b: Place): boolean {
  return a !== null && a.position === b.position && a.waitMs === b.waitMs;
}

/** The door did not let this call in, or does not know it any more. */
function barred(call: Call, trouble: Trouble, now: number): Call {
  if (trouble.fault !== 'call_over') return lost(call, trouble, now);
  // The place is gone. With it a conversation, if there was one; else a new place is asked for.
  if (call.held) return forgot(call);
  return lost({ ...call, admitted: false, place: null }, trouble, now);
}

/** The connection is gone: try again if that can help, else give up. */
function lost(call: Call, trouble: Trouble, now: number): Call {
  const tryingSince = call.phase === 'talking' ? now : call.tryingSince;
  // A call that was answered once is worth waiting for. One that never was fails at once and in words, except when the
  // line itself says that it is on its way up, or when the one who keeps it busy is this caller's own last call.
  const ownFault = trouble.fault === 'line_full' && call.before !== null && now - call.before < CLEARING_MS;
  const worthIt = FINAL.includes(trouble.fault)
    ? false
    : call.conversations > 0 || WORTH_WAITING.includes(trouble.fault) || ownFault;
  if (!worthIt || now - tryingSince >= GIVE_UP_MS) return over(call, 'failed', trouble, now);
  const delay = BACKOFF_MS[Math.min(call.attempts, BACKOFF_MS.length - 1)] ?? 0;
  // What the line says beats what is guessed from a cut: keep the better explanation while it goes on.
  const guessed = trouble.fault === 'unreachable' && call.trouble !== null;
  return {
    ...call,
    phase: 'waiting',
    trouble: guessed ? call.trouble : trouble,
    delay,
    tryingSince,
    place: null,
    until: null,
  };
}

function over(call: Call, phase: 'idle' | 'ended' | 'failed', trouble: Trouble | null, now: number): Call {
  return {
    ...call,
    phase,
    trouble,
    ended: now,
    deaf: false,
    admitted: false,
    held: false,
    place: null,
    until: null,
  };
}

/** The line's own word for why it refuses, as one of ours. */
export function refusal(code: string): Fault {
  switch (code) {
    case 'line_full':
    case 'line_down':
    case 'starting':
    case 'not_allowed':
    case 'call_in_use':
    case 'too_long':
    case 'link_needed':
    case 'ticket_invalid':
      return code;
    case 'queue_full':
      return 'line_full';
    case 'database_down':
      return 'line_down';
    case 'operator':
    case 'revoked':
      return 'hung_up';
    case 'going_away':
      return 'restarting';
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
