import { describe, expect, it } from 'vitest';
import { type Call, type Event, GIVE_UP_MS, idle, live, next, type Phase } from '../src/call';

/** Plays events, one second apart, from a given state. */
function played(events: Event[], from: Call = idle): Call {
  return events.reduce((call, event, i) => next(call, event, (i + 1) * 1000), from);
}

const CALL: Event = { type: 'call' };
const READY: Event = { type: 'ready' };
const ADMITTED: Event = { type: 'admitted' };
const SECOND: Event = { type: 'queued', place: { position: 2, waitMs: 60_000 } };
const ANSWERED: Event = { type: 'answered', remembers: false };
const RESUMED: Event = { type: 'answered', remembers: true };
const CUT: Event = { type: 'closed', code: 1006 };
const RETRY: Event = { type: 'retry' };
const HANGUP: Event = { type: 'hangup' };
const FULL: Event = { type: 'refused', code: 'line_full', message: 'Somebody else is talking.' };
const STARTING: Event = { type: 'refused', code: 'starting', message: 'Loading weights.' };
const barred = (fault: 'unreachable' | 'call_over' | 'session_over' | 'starting'): Event => ({
  type: 'barred',
  fault,
  message: '',
});

const states: Record<Phase, Call> = {
  idle,
  asking: played([CALL]),
  joining: played([CALL, READY]),
  queued: played([CALL, READY, SECOND]),
  dialling: played([CALL, READY, ADMITTED]),
  talking: played([CALL, READY, ADMITTED, ANSWERED]),
  waiting: played([CALL, READY, ADMITTED, ANSWERED, CUT]),
  forgot: played([CALL, READY, ADMITTED, ANSWERED, CUT, RETRY, ANSWERED]),
  ended: played([CALL, READY, ADMITTED, ANSWERED, HANGUP]),
  failed: played([CALL, READY, ADMITTED, FULL]),
};
const PHASES = Object.keys(states) as Phase[];
const LIVE: Phase[] = ['asking', 'joining', 'queued', 'dialling', 'talking', 'waiting', 'forgot'];

it('the states used here are what they are called', () => {
  for (const [phase, call] of Object.entries(states)) expect(call.phase).toBe(phase);
});

const all = (phases: Phase[], to: Phase) => Object.fromEntries(phases.map((phase) => [phase, to]));
const inPlace = (phases: Phase[]) => Object.fromEntries(phases.map((phase) => [phase, phase]));

/** Every event, and where it leads. In the phases that are not named it changes nothing: the very same object. */
const TABLE: Record<Event['type'], [name: string, event: Event, leads: Partial<Record<Phase, Phase>>][]> = {
  call: [['call', CALL, { idle: 'asking', ended: 'asking', failed: 'asking' }]],
  ready: [['ready', READY, { asking: 'joining' }]],
  impossible: [['impossible', { type: 'impossible', fault: 'microphone_refused' }, all(LIVE, 'failed')]],
  admitted: [['admitted', ADMITTED, { joining: 'dialling', queued: 'dialling' }]],
  queued: [
    [
      'a better place',
      { type: 'queued', place: { position: 1, waitMs: 30_000 } },
      { joining: 'queued', queued: 'queued', dialling: 'queued' },
    ],
    ['the same place', SECOND, { joining: 'queued', dialling: 'queued' }],
  ],
  barred: [
    ['no way to the door', barred('unreachable'), all(['joining', 'queued', 'dialling'], 'failed')],
    ['the door is on its way up', barred('starting'), all(['joining', 'queued', 'dialling'], 'waiting')],
    ['the session is over', barred('session_over'), all(['joining', 'queued', 'dialling'], 'failed')],
    ['the place is gone', barred('call_over'), all(['joining', 'queued', 'dialling'], 'waiting')],
  ],
  answered: [
    ['answered', ANSWERED, { dialling: 'talking' }],
    ['answered by the same Moshi', RESUMED, { dialling: 'talking' }],
  ],
  anew: [['anew', { type: 'anew' }, { forgot: 'joining' }]],
  draining: [['draining', { type: 'draining', seconds: 60 }, { talking: 'talking' }]],
  refused: [
    ['refused, busy', FULL, { dialling: 'failed', talking: 'waiting' }],
    ['refused, starting', STARTING, { dialling: 'waiting', talking: 'waiting' }],
    [
      'refused, restarting',
      { type: 'refused', code: 'going_away', message: '' },
      { dialling: 'waiting', talking: 'waiting' },
    ],
    [
      'refused, still held',
      { type: 'refused', code: 'call_in_use', message: '' },
      { dialling: 'waiting', talking: 'waiting' },
    ],
    [
      'refused, not allowed',
      { type: 'refused', code: 'not_allowed', message: '' },
      { dialling: 'failed', talking: 'failed' },
    ],
    [
      'refused, an old ticket',
      { type: 'refused', code: 'ticket_invalid', message: '' },
      { dialling: 'waiting', talking: 'waiting' },
    ],
    [
      'refused, hung up by the line',
      { type: 'refused', code: 'operator', message: '' },
      { dialling: 'failed', talking: 'failed' },
    ],
    [
      'refused, too long',
      { type: 'refused', code: 'too_long', message: '' },
      { dialling: 'failed', talking: 'failed' },
    ],
  ],
  closed: [['closed', CUT, { dialling: 'failed', talking: 'waiting' }]],
  silence: [['silence', { type: 'silence' }, { talking: 'waiting' }]],
  unanswered: [['unanswered', { type: 'unanswered' }, { dialling: 'failed' }]],
  retry: [['retry', RETRY, { waiting: 'dialling' }]],
  offline: [['offline', { type: 'offline' }, { waiting: 'waiting' }]],
  mute: [['mute', { type: 'mute', muted: true }, inPlace(LIVE)]],
  microphone: [['microphone gone', { type: 'microphone', present: false }, inPlace(LIVE)]],
  latency: [['a late answer', { type: 'latency', ms: 2000 }, { talking: 'talking' }]],
  hangup: [['hangup', HANGUP, { ...all(LIVE, 'ended'), asking: 'idle' }]],
};

describe.each(Object.values(TABLE).flat())('%s', (_, event, leads) => {
  it.each(PHASES.map((from) => [from, leads[from] ?? '.'] as const))('in %s leads to %s', (from, to) => {
    const before = states[from];
    const result = next(before, event, 9000);
    if (to === '.') expect(result).toBe(before);
    else {
      expect(result).not.toBe(before);
      expect(result.phase).toBe(to);
    }
  });
});

describe('a place on the line', () => {
  const queued = { type: 'queued', place: { position: 2, waitMs: null } } as const;

  it('is shown while one waits for it, and forgotten when it is there', () => {
    expect(states.queued.place).toEqual({ position: 2, waitMs: 60_000 });
    expect(played([ADMITTED], states.queued).place).toBeNull();
    expect(played([HANGUP], states.queued).place).toBeNull();
  });

  it('is kept over a break: the next attempt dials at once', () => {
    expect(states.waiting.admitted).toBe(true);
    expect(played([RETRY], states.waiting).phase).toBe('dialling');
  });

  it('that the line let go before Moshi answered is asked for once more', () => {
    const gone = played([barred('call_over')], states.dialling);
    expect(gone).toMatchObject({ phase: 'waiting', admitted: false });
    expect(played([RETRY], gone).phase).toBe('joining');
    expect(played([RETRY, queued], gone).phase).toBe('queued');
  });

  it('counts as one attempt, whether it was asked for or not', () => {
    expect(states.dialling.attempts).toBe(1);
    expect(played([RETRY], played([barred('call_over')], states.dialling)).attempts).toBe(2);
    expect(played([RETRY, ADMITTED], played([barred('call_over')], states.dialling)).attempts).toBe(2);
  });

  it('the time in the queue does not count as time without an answer', () => {
    const turn = next(states.queued, ADMITTED, 900_000);
    expect(next(turn, STARTING, 901_000).phase).toBe('waiting');
  });
});

describe("Moshi's memory", () => {
  const again = played([RETRY], states.waiting);

  it('comes back with the same conversation', () => {
    const resumed = played([RESUMED], again);
    expect(resumed).toMatchObject({ phase: 'talking', conversations: 1, resumed: 1, trouble: null });
  });

  it('when it is lost, the caller is asked before a new one begins', () => {
    expect(played([ANSWERED], again)).toMatchObject({ phase: 'forgot', conversations: 1, admitted: false });
  });

  it('when the line let the call go, it is lost as well', () => {
    expect(played([barred('call_over')], again).phase).toBe('forgot');
  });

  it('a new one is a new conversation of the same call', () => {
    const anew = played([{ type: 'anew' }, ADMITTED, ANSWERED], states.forgot);
    expect(anew).toMatchObject({ phase: 'talking', conversations: 2, resumed: 0 });
    expect(anew.began).toBe(states.talking.began);
  });

  it('a new one that the line has no room for is waited for', () => {
    const full = played([{ type: 'anew' }, ADMITTED, FULL], states.forgot);
    expect(full.phase).toBe('waiting');
    expect(played([RETRY, ANSWERED], full)).toMatchObject({ phase: 'talking', conversations: 2 });
  });

  it('is not missed by a call that breaks before it was answered', () => {
    const waiting = played([STARTING], states.dialling);
    expect(played([RETRY, ANSWERED], waiting)).toMatchObject({ phase: 'talking', conversations: 1 });
  });
});

it('a line that is being stopped says until when the call can last; the break forgets it', () => {
  const told = next(states.talking, { type: 'draining', seconds: 60 }, 10_000);
  expect(told.until).toBe(70_000);
  expect(next(told, { type: 'draining', seconds: 60 }, 20_000)).toBe(told);
  expect(played([CUT], told).until).toBeNull();
});

describe('connections', () => {
  it('each attempt asks for a new one, over calls too', () => {
    expect(states.dialling.connection).toBe(1);
    expect(played([RETRY], states.waiting).connection).toBe(2);
    expect(played([CALL, READY, ADMITTED], played([RETRY, HANGUP], states.waiting)).connection).toBe(3);
  });

  it('a broken one is explained while the next is tried', () => {
    expect(played([RETRY], states.waiting).trouble?.fault).toBe('broken');
    expect(played([RETRY, RESUMED], states.waiting).trouble).toBeNull();
  });

  it("the line's own words replace a guess, a guess does not replace them", () => {
    const told = played([RETRY, STARTING], states.waiting);
    expect(told.trouble).toEqual({ fault: 'starting', message: 'Loading weights.' });
    expect(played([RETRY, CUT], told).trouble?.fault).toBe('starting');
  });

  it('waits longer from attempt to attempt, up to 5 s', () => {
    let call = states.waiting;
    const delays = [call.delay];
    for (let i = 0; i < 6; i++) {
      call = played([RETRY, CUT], call);
      delays.push(call.delay);
    }
    expect(delays).toEqual([500, 1000, 2000, 4000, 5000, 5000, 5000]);
  });

  it('starts with short waits again after Moshi was heard', () => {
    const call = played([RETRY, CUT, RETRY, CUT, RETRY, RESUMED, CUT], states.waiting);
    expect(call.delay).toBe(500);
  });

  it('gives up after three minutes, with the last reason', () => {
    const broke = states.waiting.tryingSince;
    const trying = next(states.waiting, RETRY, broke + GIVE_UP_MS - 1);
    expect(next(trying, STARTING, broke + GIVE_UP_MS - 1).phase).toBe('waiting');
    const given = next(trying, STARTING, broke + GIVE_UP_MS);
    expect(given.phase).toBe('failed');
    expect(given.trouble?.fault).toBe('starting');
  });

  it('a line that is busy when the call comes back is waited for: it is our own old call', () => {
    expect(played([RETRY, FULL], states.waiting).phase).toBe('waiting');
  });
});

describe('close codes without words', () => {
  const fault = (from: Call, code: number) => next(from, { type: 'closed', code }, 9000).trouble?.fault;
  it('1008 means not allowed, 1013 not now, anything else unreachable or broken', () => {
    expect(fault(states.dialling, 1008)).toBe('not_allowed');
    expect(fault(states.dialling, 1013)).toBe('line_down');
    expect(fault(states.dialling, 1006)).toBe('unreachable');
    expect(fault(states.talking, 1006)).toBe('broken');
    expect(fault(states.talking, 1000)).toBe('broken');
  });
});

it('a slow call is called so until it is clearly fast again', () => {
  const measured = (from: Call, ms: number) => next(from, { type: 'latency', ms }, 9000);
  const slow = measured(states.talking, 1600);
  expect([states.talking.slow, slow.slow]).toEqual([false, true]);
  expect(measured(slow, 1200)).toBe(slow);
  expect(measured(slow, 800).slow).toBe(false);
  expect(measured(states.talking, 1200)).toBe(states.talking);
});

describe('the clock', () => {
  it('runs from the first answer to the end, through breaks', () => {
    const call = played([RETRY, RESUMED], states.waiting);
    expect(call.began).toBe(states.talking.began);
    expect(next(call, HANGUP, 77_000).ended).toBe(77_000);
  });
});

describe('a line that is busy right after hanging up', () => {
  const again = next(next(next(states.ended, CALL, 5000), READY, 5100), ADMITTED, 5200);
  it('is waited for: it is still clearing up after the own last call', () =>
    expect(next(again, FULL, 6000).phase).toBe('waiting'));
  it('is busy with somebody else later on', () => expect(next(again, FULL, 30_000).phase).toBe('failed'));
  it('is busy with somebody else if there was no last call', () => {
    const tried = next(next(next(states.failed, CALL, 5000), READY, 5100), ADMITTED, 5200);
    expect(next(tried, FULL, 6000).phase).toBe('failed');
  });
});

it('a new call forgets the old one', () => {
  const again = next(played([{ type: 'mute', muted: true }, HANGUP], states.talking), CALL, 50_000);
  expect(again).toMatchObject({ muted: false, conversations: 0, began: null, trouble: null });
});

it('only a live call can be hung up', () => {
  const living = Object.entries(states).filter(([, call]) => live(call));
  expect(living.map(([phase]) => phase)).toEqual(LIVE);
});
