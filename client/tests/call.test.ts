import { describe, expect, it } from 'vitest';
import { type Call, type Event, GIVE_UP_MS, idle, live, next, type Phase } from '../src/call';

/** Plays events, one second apart, from a given state. */
function played(events: Event[], from: Call = idle): Call {
  return events.reduce((call, event, i) => next(call, event, (i + 1) * 1000), from);
}

const CALL: Event = { type: 'call' };
const READY: Event = { type: 'ready' };
const ANSWERED: Event = { type: 'answered' };
const CUT: Event = { type: 'closed', code: 1006 };
const RETRY: Event = { type: 'retry' };
const HANGUP: Event = { type: 'hangup' };
const FULL: Event = { type: 'refused', code: 'line_full', message: 'Somebody else is talking.' };
const STARTING: Event = { type: 'refused', code: 'starting', message: 'Loading weights.' };

const states: Record<Phase, Call> = {
  idle,
  asking: played([CALL]),
  dialling: played([CALL, READY]),
  talking: played([CALL, READY, ANSWERED]),
  waiting: played([CALL, READY, ANSWERED, CUT]),
  ended: played([CALL, READY, ANSWERED, HANGUP]),
  failed: played([CALL, READY, FULL]),
};

it('the states used here are what they are called', () => {
  for (const [phase, call] of Object.entries(states)) expect(call.phase).toBe(phase);
});

/** Every event in every phase: where it leads. A dot means: nothing changes, the very same object. */
const TABLE: Record<string, { event: Event; leads: Record<Phase, Phase | '.'> }> = {
  call: {
    event: CALL,
    leads: {
      idle: 'asking',
      asking: '.',
      dialling: '.',
      talking: '.',
      waiting: '.',
      ended: 'asking',
      failed: 'asking',
    },
  },
  ready: {
    event: READY,
    leads: {
      idle: '.',
      asking: 'dialling',
      dialling: '.',
      talking: '.',
      waiting: '.',
      ended: '.',
      failed: '.',
    },
  },
  impossible: {
    event: { type: 'impossible', fault: 'microphone_refused' },
    leads: {
      idle: '.',
      asking: 'failed',
      dialling: 'failed',
      talking: 'failed',
      waiting: 'failed',
      ended: '.',
      failed: '.',
    },
  },
  answered: {
    event: ANSWERED,
    leads: {
      idle: '.',
      asking: '.',
      dialling: 'talking',
      talking: '.',
      waiting: '.',
      ended: '.',
      failed: '.',
    },
  },
  'refused, busy': {
    event: FULL,
    leads: {
      idle: '.',
      asking: '.',
      dialling: 'failed',
      talking: 'waiting',
      waiting: '.',
      ended: '.',
      failed: '.',
    },
  },
  'refused, starting': {
    event: STARTING,
    leads: {
      idle: '.',
      asking: '.',
      dialling: 'waiting',
      talking: 'waiting',
      waiting: '.',
      ended: '.',
      failed: '.',
    },
  },
  'refused, not allowed': {
    event: { type: 'refused', code: 'not_allowed', message: '' },
    leads: {
      idle: '.',
      asking: '.',
      dialling: 'failed',
      talking: 'failed',
      waiting: '.',
      ended: '.',
      failed: '.',
    },
  },
  closed: {
    event: CUT,
    leads: {
      idle: '.',
      asking: '.',
      dialling: 'failed',
      talking: 'waiting',
      waiting: '.',
      ended: '.',
      failed: '.',
    },
  },
  silence: {
    event: { type: 'silence' },
    leads: {
      idle: '.',
      asking: '.',
      dialling: '.',
      talking: 'waiting',
      waiting: '.',
      ended: '.',
      failed: '.',
    },
  },
  unanswered: {
    event: { type: 'unanswered' },
    leads: {
      idle: '.',
      asking: '.',
      dialling: 'failed',
      talking: '.',
      waiting: '.',
      ended: '.',
      failed: '.',
    },
  },
  retry: {
    event: RETRY,
    leads: {
      idle: '.',
      asking: '.',
      dialling: '.',
      talking: '.',
      waiting: 'dialling',
      ended: '.',
      failed: '.',
    },
  },
  offline: {
    event: { type: 'offline' },
    leads: {
      idle: '.',
      asking: '.',
      dialling: '.',
      talking: '.',
      waiting: 'waiting',
      ended: '.',
      failed: '.',
    },
  },
  mute: {
    event: { type: 'mute', muted: true },
    leads: {
      idle: '.',
      asking: 'asking',
      dialling: 'dialling',
      talking: 'talking',
      waiting: 'waiting',
      ended: '.',
      failed: '.',
    },
  },
  'microphone gone': {
    event: { type: 'microphone', present: false },
    leads: {
      idle: '.',
      asking: 'asking',
      dialling: 'dialling',
      talking: 'talking',
      waiting: 'waiting',
      ended: '.',
      failed: '.',
    },
  },
  'a late answer': {
    event: { type: 'latency', ms: 2000 },
    leads: {
      idle: '.',
      asking: '.',
      dialling: '.',
      talking: 'talking',
      waiting: '.',
      ended: '.',
      failed: '.',
    },
  },
  hangup: {
    event: HANGUP,
    leads: {
      idle: '.',
      asking: 'idle',
      dialling: 'ended',
      talking: 'ended',
      waiting: 'ended',
      ended: '.',
      failed: '.',
    },
  },
};

describe.each(Object.entries(TABLE))('%s', (_, { event, leads }) => {
  it.each(Object.entries(leads))('in %s leads to %s', (from, to) => {
    const before = states[from as Phase];
    const result = next(before, event, 9000);
    if (to === '.') expect(result).toBe(before);
    else expect(result.phase).toBe(to);
  });
});

describe('connections', () => {
  it('each attempt asks for a new one, over calls too', () => {
    expect(states.dialling.connection).toBe(1);
    expect(played([RETRY], states.waiting).connection).toBe(2);
    expect(played([CALL, READY], played([RETRY, HANGUP], states.waiting)).connection).toBe(3);
  });

  it('a broken one is explained while the next is tried', () => {
    expect(played([RETRY], states.waiting).trouble?.fault).toBe('broken');
    expect(played([RETRY, ANSWERED], states.waiting).trouble).toBeNull();
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
    const call = played([RETRY, CUT, RETRY, CUT, RETRY, ANSWERED, CUT], states.waiting);
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

  it('counts the conversations: from the second on Moshi starts anew', () => {
    expect(states.talking.conversations).toBe(1);
    expect(played([RETRY, ANSWERED], states.waiting).conversations).toBe(2);
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
    const call = played([RETRY, ANSWERED], states.waiting);
    expect(call.began).toBe(states.talking.began);
    expect(next(call, HANGUP, 77_000).ended).toBe(77_000);
  });
});

describe('a line that is busy right after hanging up', () => {
  const again = next(next(states.ended, CALL, 5000), READY, 5100);
  it('is waited for: it is still clearing up after the own last call', () =>
    expect(next(again, FULL, 6000).phase).toBe('waiting'));
  it('is busy with somebody else later on', () => expect(next(again, FULL, 30_000).phase).toBe('failed'));
  it('is busy with somebody else if there was no last call', () => {
    const tried = next(next(states.failed, CALL, 5000), READY, 5100);
    expect(next(tried, FULL, 6000).phase).toBe('failed');
  });
});

it('a new call forgets the old one', () => {
  const again = next(played([{ type: 'mute', muted: true }, HANGUP], states.talking), CALL, 50_000);
  expect(again).toMatchObject({ muted: false, conversations: 0, began: null, trouble: null });
});

it('only a live call can be hung up', () => {
  const living = Object.entries(states).filter(([, call]) => live(call));
  expect(living.map(([phase]) => phase)).toEqual(['asking', 'dialling', 'talking', 'waiting']);
});
