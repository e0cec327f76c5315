import { describe, expect, it } from 'vitest';
import { decode, encodeAudio } from '../src/protocol';

const utf8 = new TextEncoder();
const message = (kind: number, payload: string | Uint8Array = '') => {
  const bytes = typeof payload === 'string' ? utf8.encode(payload) : payload;
  return Uint8Array.of(kind, ...bytes).buffer;
};

describe('what comes in', () => {
  it('0 is the handshake', () => expect(decode(message(0))).toEqual({ kind: 'handshake' }));
  it('1 is audio, byte for byte', () =>
    expect(decode(message(1, Uint8Array.of(0, 255, 1)))).toEqual({
      kind: 'audio',
      bytes: Uint8Array.of(0, 255, 1),
    }));
  it('2 is a piece of text, UTF-8', () =>
    expect(decode(message(2, ' naïve 🙂'))).toEqual({ kind: 'text', piece: ' naïve 🙂' }));
  it('4 is metadata, a JSON object', () => {
    expect(decode(message(4, '{"type":"hello"}'))).toEqual({ kind: 'metadata', value: { type: 'hello' } });
    for (const broken of ['', '{', '[1]', 'null', '"hello"']) expect(decode(message(4, broken))).toBeNull();
  });
  it('5 is an error', () =>
    expect(decode(message(5, '{"code":"line_full","message":"Busy."}'))).toEqual({
      kind: 'error',
      code: 'line_full',
      message: 'Busy.',
    }));
  it('5 is an error even when nobody can read it', () => {
    for (const broken of ['', '{', '[]', '{"code":5}'])
      expect(decode(message(5, broken))).toEqual({ kind: 'error', code: 'unknown', message: '' });
  });
  it('6 is a ping', () => expect(decode(message(6))).toEqual({ kind: 'ping' }));
  it('other kinds, empty messages and text frames are ignored', () => {
    for (const other of [
      message(3, 'x'),
      message(7),
      message(255),
      new ArrayBuffer(0),
      'hello',
      null,
      undefined,
    ])
      expect(decode(other)).toBeNull();
  });
});

it('what goes out is the kind and the pages', () =>
  expect(encodeAudio(Uint8Array.of(79, 103))).toEqual(Uint8Array.of(1, 79, 103)));
