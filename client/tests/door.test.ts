import { describe, expect, it } from 'vitest';
import { Door, known, takeToken } from '../src/door';

const TOKEN = 'k'.repeat(43);
const SOON = new Date(Date.now() + 3_600_000).toISOString();

function storage(content: Record<string, string> = {}): Storage {
  const map = new Map(Object.entries(content));
  return {
    getItem: (key: string) => map.get(key) ?? null,
    setItem: (key: string, value: string) => void map.set(key, value),
    removeItem: (key: string) => void map.delete(key),
  } as Storage;
}

/** A line that answers by `METHOD path`; everything else is not there. */
function line(answers: Record<string, [status: number, body: unknown]>) {
  const asked: { what: string; key: string | null; body: unknown }[] = [];
  const get: typeof fetch = (path, options?: RequestInit) => {
    const what = `${options?.method ?? 'GET'} ${path as string}`;
    const headers = new Headers(options?.headers);
    const body = typeof options?.body === 'string' ? (JSON.parse(options.body) as unknown) : null;
    asked.push({ what, key: headers.get('Authorization'), body });
    const [status, answer] = answers[what] ?? [404, { code: 'not_found' }];
    return Promise.resolve(new Response(JSON.stringify(answer), { status }));
  };
  return { get, asked };
}

const LINKS: Record<string, [number, unknown]> = {
  'GET /api/line': [200, { access: 'links', transcript: { kept: true, days: 30 }, words: true }],
  'POST /api/links/redeem': [200, { key: 'secret', expires_at: SOON, purpose: 'answer', question_id: 'q1' }],
};
const INVALID: [number, unknown] = [404, { code: 'link_invalid', detail: 'Ask for a new one.' }];

describe("a link's token", () => {
  const opened = (hash: string, pending = storage()) => {
    const shown: string[] = [];
    const token = takeToken(
      { hash, pathname: '/', search: '' } as Location,
      {
        state: null,
        replaceState: (_: unknown, __: string, url: string) => shown.push(url),
      } as unknown as History,
      pending,
    );
    return { token, shown, pending };
  };

  it('is taken out of the address bar', () => {
    expect(opened(`#t=${TOKEN}`)).toMatchObject({ token: TOKEN, shown: ['/'] });
  });

  it('survives a reload until the line answered', () => {
    const { pending } = opened(`#t=${TOKEN}`);
    expect(opened('', pending).token).toBe(TOKEN);
  });

  it('ends where a chat app went on with its full stop', () => {
    expect(opened(`#t=${TOKEN}.`).token).toBe(TOKEN);
  });

  it('is none where the fragment is something else', () => {
    expect(opened('#top')).toMatchObject({ token: null, shown: [] });
  });
});

describe('who opens the page', () => {
  it('on a line of before links and places, simply calls', async () => {
    const door = new Door(line({}).get, storage(), storage());
    expect(await door.enter(null)).toEqual({ state: 'open', rules: null, session: null });
    expect(await door.call()).toEqual({ state: 'direct' });
  });

  it('on an open line needs no link', async () => {
    const { get } = line({ 'GET /api/line': [200, { access: 'open', transcript: { kept: false } }] });
    expect(await new Door(get, storage(), storage()).enter(null)).toEqual({
      state: 'open',
      rules: { access: 'open', keptDays: 0, words: false, tasks: false },
      session: null,
    });
  });

  it('on a line of links needs one', async () => {
    const door = new Door(line(LINKS).get, storage(), storage());
    expect(await door.enter(null)).toMatchObject({ state: 'closed', fault: 'link_needed' });
  });

  it('with a link gets a key, keeps it, and shows it with everything it asks', async () => {
    const stored = storage();
    const { get, asked } = line({
      ...LINKS,
      'POST /api/calls': [201, { id: 'c1', state: 'ready', ticket: 't1', ticket_expires_at: SOON }],
    });
    const entrance = await new Door(get, stored, storage()).enter(TOKEN);
    expect(entrance).toMatchObject({ state: 'open', session: { purpose: 'answer', question: 'q1' } });
    expect(asked[1]?.body).toEqual({ token: TOKEN });
    // Another page load, without the link.
    const later = new Door(get, stored, storage());
    expect(await later.enter(null)).toMatchObject({ state: 'open', session: { key: 'secret' } });
    expect(await later.call()).toMatchObject({ state: 'ready', id: 'c1', ticket: { word: 't1' } });
    expect(asked.at(-1)).toMatchObject({ key: 'Bearer secret', body: { question_id: 'q1' } });
  });

  it('who taps the same link again finds the session that it opened, and spends nothing', async () => {
    const stored = storage();
    const { get, asked } = line(LINKS);
    await new Door(get, stored, storage()).enter(TOKEN);
    expect(await new Door(get, stored, storage()).enter(TOKEN)).toMatchObject({ state: 'open' });
    expect(asked.filter(({ what }) => what.includes('redeem'))).toHaveLength(1);
  });

  it('with a link that opens nothing is told so, once', async () => {
    const pending = storage({ 'hotline.link': TOKEN });
    const { get } = line({ ...LINKS, 'POST /api/links/redeem': INVALID });
    expect(await new Door(get, storage(), pending).enter(TOKEN)).toEqual({
      state: 'closed',
      fault: 'link_invalid',
      message: 'Ask for a new one.',
    });
    expect(pending.getItem('hotline.link')).toBeNull();
    expect(await new Door(get, storage(), pending).enter('')).toMatchObject({ fault: 'link_invalid' });
  });

  it('with a link, when the line does not answer, can try again', async () => {
    const pending = storage({ 'hotline.link': TOKEN });
    const { get } = line({ ...LINKS, 'POST /api/links/redeem': [502, {}] });
    expect(await new Door(get, storage(), pending).enter(TOKEN)).toMatchObject({ fault: 'unreachable' });
    expect(pending.getItem('hotline.link')).toBe(TOKEN);
  });

  it('whose session has run out is told so', async () => {
    const stored = storage();
    await new Door(line(LINKS).get, stored, storage()).enter(TOKEN);
    const door = new Door(line(LINKS).get, stored, storage());
    expect(await door.enter(null, Date.now() + 7_200_000)).toMatchObject({ fault: 'session_over' });
    expect(stored.getItem('hotline.session')).toBeNull();
  });

  it('whose session the line does not know any more is told so, and forgets it', async () => {
    const stored = storage();
    const { get } = line({ ...LINKS, 'POST /api/calls': [401, { code: 'key_unknown' }] });
    const door = new Door(get, stored, storage());
    await door.enter(TOKEN);
    const error = await door.call().catch(known);
    expect(error).toMatchObject({ fault: 'session_over', status: 401 });
    expect(stored.getItem('hotline.session')).toBeNull();
  });
});

describe('who calls before the line has answered whether one may', () => {
  const late = (answers: Record<string, [number, unknown]>, token: string | null) => {
    const { get, asked } = line(answers);
    const door = new Door(get, storage(), storage());
    void door.enter(token);
    return { call: door.call(), asked };
  };

  it('calls with what the link opened, once it is open', async () => {
    const ready: [number, unknown] = [201, { id: 'c1', state: 'ready', ticket: 't1' }];
    const { call, asked } = late({ ...LINKS, 'POST /api/calls': ready }, TOKEN);
    expect(await call).toMatchObject({ state: 'ready', id: 'c1' });
    expect(asked.at(-1)).toMatchObject({ what: 'POST /api/calls', key: 'Bearer secret' });
  });

  it('is told when one may not, and nothing is asked for', async () => {
    const { call, asked } = late(LINKS, null);
    expect(await call.catch(known)).toMatchObject({ fault: 'link_needed' });
    expect(asked.map(({ what }) => what)).toEqual(['GET /api/line']);
  });
});

describe('a task', () => {
  it('is drafted from a call, with its marks', async () => {
    const steps = [{ text: 'Delete it.', destructive: true }, { text: 'Say so.' }];
    const { get, asked } = line({ 'POST /api/instructions/propose': [200, { steps }] });
    const { steps: got } = await new Door(get, storage(), storage()).propose('c1');
    expect(got).toEqual([steps[0], { text: 'Say so.', destructive: false }]);
    expect(asked[0]?.body).toEqual({ call_id: 'c1' });
  });

  it('is handed over under a word of its own', async () => {
    const { get, asked } = line({ 'POST /api/executions': [201, { id: 'e1', state: 'pending' }] });
    const door = new Door(get, storage(), storage());
    expect(await door.handOver('Look.', 'once')).toMatchObject({ id: 'e1', state: 'pending' });
    expect(asked[0]?.body).toEqual({ instruction: 'Look.', idempotency_key: 'once' });
  });
});

describe('what the line refuses', () => {
  const refused = async (status: number, body: unknown) =>
    known(
      await new Door(line({ 'POST /api/calls': [status, body] }).get, storage(), storage())
        .call()
        .catch(known),
    );

  it.each([
    [401, {}, 'link_needed'],
    [403, { code: 'wrong_scope' }, 'not_allowed'],
    [409, { code: 'call_over' }, 'call_over'],
    [429, { code: 'too_many_requests' }, 'refused'],
    [503, { code: 'starting', detail: 'Loading weights.' }, 'starting'],
    [503, { code: 'line_down' }, 'line_down'],
    [503, { code: 'queue_full', detail: 'Too many wait.' }, 'line_full'],
    [404, { code: 'call_unknown' }, 'call_over'],
    [503, { code: 'something_new' }, 'refused'],
    [502, null, 'unreachable'],
  ])('with %i %j is %s', async (status, body, fault) => {
    expect((await refused(status, body)).fault).toBe(fault);
  });

  it('keeps its own words', async () => {
    expect((await refused(503, { code: 'starting', detail: 'Loading weights.' })).message).toBe(
      'Loading weights.',
    );
  });
});

it('a place in the queue', async () => {
  const { get } = line({
    'POST /api/calls': [201, { id: 'c1', state: 'waiting', position: 3, estimated_wait_s: 90 }],
  });
  expect(await new Door(get, storage(), storage()).call()).toEqual({
    state: 'waiting',
    id: 'c1',
    place: { position: 3, waitMs: 90_000 },
  });
});
