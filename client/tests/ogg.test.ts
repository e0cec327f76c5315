import { describe, expect, it } from 'vitest';
import { OggPages, page, silence } from '../src/ogg';

const BEGINS = 2;
const stream = [
  page(BEGINS, 0, Uint8Array.of(1)),
  page(0, 1, Uint8Array.of(2, 2)),
  page(0, 2, new Uint8Array(200)),
];
const all = Uint8Array.from(stream.flatMap((p) => [...p]));

describe('pages', () => {
  it('come out of one message with several', () => expect(new OggPages().add(all)).toEqual(stream));

  it('come out whole, wherever the messages are cut', () => {
    for (const size of [1, 3, 7, 26, 27, 28, 100]) {
      const pages = new OggPages();
      const got = [];
      for (let i = 0; i < all.length; i += size) got.push(...pages.add(all.subarray(i, i + size)));
      expect(got).toEqual(stream);
      expect(pages.dropped).toBe(0);
    }
  });

  it('each has a buffer of its own, from its start: the decoder reads the whole buffer', () => {
    for (const got of new OggPages().add(all)) {
      expect(got.byteOffset).toBe(0);
      expect(got.buffer.byteLength).toBe(got.length);
    }
  });

  it('before the beginning of a stream are dropped: the decoder would crash', () => {
    const pages = new OggPages();
    expect(pages.add(page(0, 9, Uint8Array.of(5)))).toEqual([]);
    expect(pages.dropped).toBe(29);
    expect(pages.add(all)).toEqual(stream);
  });

  it('that never came are counted by the numbers of those that did; a new stream counts anew', () => {
    const pages = new OggPages();
    pages.add(all);
    expect(pages.gaps).toBe(0);
    pages.add(page(0, 6, Uint8Array.of(1)));
    expect(pages.gaps).toBe(3);
    pages.add(all);
    expect(pages.gaps).toBe(3);
  });

  it('are found again after garbage', () => {
    const pages = new OggPages();
    const garbage = new TextEncoder().encode('this is no Ogg page at all, Og, OggOggO');
    expect(pages.add(Uint8Array.of(...garbage, ...all))).toEqual(stream);
    expect(pages.dropped).toBe(garbage.length);
  });

  it('whose sound looks like another page are left out', () => {
    const evil = page(0, 3, new TextEncoder().encode('..OggS..'));
    expect(new OggPages().add(Uint8Array.of(...all, ...evil))).toEqual(stream);
  });

  it('do not pile up while garbage comes in', () => {
    const pages = new OggPages();
    for (let i = 0; i < 100; i++) pages.add(new Uint8Array(1000));
    expect(pages.dropped).toBeGreaterThan(99_900);
  });
});

it('the shortest stream is three pages: head, tags, sound', () => {
  const got = new OggPages().add(silence());
  expect(got.map((p) => p[18])).toEqual([0, 1, 2]);
  expect(new TextDecoder().decode(got[0]?.subarray(28, 36))).toBe('OpusHead');
  expect(got[0]?.length).toBe(28 + 19);
});
