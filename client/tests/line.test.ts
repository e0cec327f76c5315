import { describe, expect, it } from 'vitest';
import { about, chatUrl } from '../src/line';

/** A network that knows these answers; anything else fails. */
function network(answers: Record<string, unknown>, status = 200): typeof fetch {
  return ((path: string) =>
    path in answers
      ? Promise.resolve(new Response(JSON.stringify(answers[path]), { status }))
      : Promise.reject(new TypeError('Failed to fetch'))) as typeof fetch;
}

describe('what the page knows about its line', () => {
  it('is the running version, and whether the line has an authority of its own', async () =>
    expect(
      await about(
        network({
          '/line.json': { version: '1.0', authority: '/hotline-ca.pem' },
          '/health': { version: '1.1', status: 'ok' },
        }),
      ),
    ).toEqual({ version: '1.1', authority: '/hotline-ca.pem' }));

  it('is the shipped version when the line does not say its own', async () =>
    expect(await about(network({ '/line.json': { version: '1.0', authority: null } }))).toEqual({
      version: '1.0',
      authority: null,
    }));

  it('is read from an unhealthy line too', async () =>
    expect((await about(network({ '/health': { version: '1.1' } }, 503))).version).toBe('1.1'));

  it.each([[{}], [{ '/health': [] }], [{ '/health': { version: 7 }, '/line.json': 'no' }]])(
    'is nothing when nobody says anything sensible: %j',
    async (answers) => expect(await about(network(answers))).toEqual({ version: null, authority: null }),
  );
});

describe('where calls go', () => {
  it.each([
    ['https://voice.example.org/', 'wss://voice.example.org/api/chat'],
    ['https://203.0.113.9:40123/#token', 'wss://203.0.113.9:40123/api/chat'],
    ['https://[2001:db8::1]:8998/', 'wss://[2001:db8::1]:8998/api/chat'],
    ['http://localhost:8998/index.html?x', 'ws://localhost:8998/api/chat'],
  ])('from %s to %s', (page, wanted) => expect(chatUrl(null, new URL(page))).toBe(wanted));

  it('with a ticket, which no character of its own takes apart', () =>
    expect(chatUrl('a+b/c=&d', new URL('https://localhost/#t=x'))).toBe(
      'wss://localhost/api/chat?ticket=a%2Bb%2Fc%3D%26d',
    ));
});
