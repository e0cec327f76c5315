import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { EventParser, follow, type ServerEvent, SIGN_OF_LIFE_MS } from '../src/events';

describe('a stream of events', () => {
  const STREAM = ': hello\n\nid: 1\nevent: waiting\ndata: {"position":2}\n\ndata: a\ndata: b\nid: 2\n\n';
  const WANTED = [
    { type: 'waiting', data: '{"position":2}' },
    { type: 'message', data: 'a\nb' },
  ];

  it('is cut into events, wherever the network cut it', () => {
    for (let size = 1; size <= STREAM.length; size++) {
      const parser = new EventParser();
      const events: ServerEvent[] = [];
      for (let i = 0; i < STREAM.length; i += size) events.push(...parser.add(STREAM.slice(i, i + size)));
      expect(events).toEqual(WANTED);
      expect(parser.lastId).toBe('2');
    }
  });

  it.each(['\r\n', '\r'])('may end its lines with %j', (end) => {
    const parser = new EventParser();
    const events = STREAM.replaceAll('\n', end)
      .split('')
      .flatMap((character) => parser.add(character));
    expect([...events, ...parser.add(':')]).toEqual(WANTED);
  });

  it('knows an event only when it is whole: half of one is none after a break', () => {
    const parser = new EventParser();
    expect(parser.add('id: 7\nevent: ready\ndata: {"tick')).toEqual([]);
    parser.begin();
    expect(parser.lastId).toBe('');
    expect(parser.add('data: x\n\n')).toEqual([{ type: 'message', data: 'x' }]);
  });
});

describe('following one', () => {
  beforeEach(() => void vi.useFakeTimers());
  afterEach(() => void vi.useRealTimers());

  /** A server whose n-th stream says this and then breaks, or stays open when it says null at last. */
  function server(streams: (string | null)[][]) {
    const asked: string[] = [];
    const events: string[] = [];
    const over = vi.fn();
    const following = follow({
      open: (lastId, signal) => {
        const pieces = streams[asked.length];
        asked.push(lastId);
        if (!pieces) return Promise.reject(new Error('404'));
        const body = new ReadableStream<Uint8Array<ArrayBuffer>>({
          start(controller) {
            for (const piece of pieces) if (piece) controller.enqueue(new TextEncoder().encode(piece));
            if (pieces.at(-1) !== null) controller.close();
            signal.addEventListener('abort', () => {
              try {
                controller.error(new Error('aborted'));
              } catch {
                // It was closed before.
              }
            });
          },
        });
        return Promise.resolve(new Response(body));
      },
      fatal: (error) => error instanceof Error && error.message === '404',
      event: ({ data }) => events.push(data),
      over,
    });
    return { asked, events, over, following };
  }

  it('goes on where it broke', async () => {
    const { asked, events, over } = server([['id: 1\ndata: a\n\n'], ['id: 2\ndata: b\n\n', null]]);
    await vi.advanceTimersByTimeAsync(2000);
    expect(events).toEqual(['a', 'b']);
    expect(asked).toEqual(['', '1']);
    expect(over).not.toHaveBeenCalled();
  });

  it('ends when the line says that there is nothing to follow', async () => {
    const { over, asked } = server([[]]);
    await vi.advanceTimersByTimeAsync(60_000);
    expect(over).toHaveBeenCalledOnce();
    expect(asked).toHaveLength(2);
  });

  it('takes a stream without a sign of life for dead', async () => {
    const { asked } = server([['id: 1\ndata: a\n\n', null], [null]]);
    await vi.advanceTimersByTimeAsync(SIGN_OF_LIFE_MS - 2000);
    expect(asked).toHaveLength(1);
    await vi.advanceTimersByTimeAsync(5000);
    expect(asked).toHaveLength(2);
  });

  it('looks at once when the page wakes up', async () => {
    const { asked, following } = server([['data: a\n\n', null], [null]]);
    await vi.advanceTimersByTimeAsync(SIGN_OF_LIFE_MS / 2 + 1000);
    following.wake();
    await vi.advanceTimersByTimeAsync(600);
    expect(asked).toHaveLength(2);
  });

  it('stops when it is told to', async () => {
    const { asked, following, over } = server([[null], [null]]);
    await vi.advanceTimersByTimeAsync(10);
    following.stop();
    await vi.advanceTimersByTimeAsync(120_000);
    expect(asked).toHaveLength(1);
    expect(over).not.toHaveBeenCalled();
  });
});
