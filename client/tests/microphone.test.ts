import { describe, expect, it } from 'vitest';
import { fault, missing } from '../src/microphone';

describe('why there is no microphone', () => {
  it.each([
    ['NotAllowedError', 'microphone_refused'],
    ['SecurityError', 'microphone_refused'],
    ['NotFoundError', 'microphone_absent'],
    ['OverconstrainedError', 'microphone_absent'],
    ['NotReadableError', 'microphone_busy'],
    ['AbortError', 'microphone_failed'],
    ['SomethingNewError', 'microphone_failed'],
  ])('%s is %s', (name, wanted) => expect(fault(new DOMException('', name))).toBe(wanted));

  it('what is no exception at all is a failure without a reason', () => {
    for (const odd of [undefined, null, 'no', 7]) expect(fault(odd)).toBe('microphone_failed');
  });
});

describe('what a browser lacks', () => {
  const able = {
    isSecureContext: true,
    navigator: { mediaDevices: {} },
    AudioWorkletNode: {},
    WebAssembly: {},
  };
  const scope = (parts: object) => ({ ...able, ...parts }) as unknown as Window & typeof globalThis;

  it('nothing', () => expect(missing(scope({}))).toBeNull());
  it('a secure page comes first: without it the rest is missing too', () =>
    expect(missing(scope({ isSecureContext: false, navigator: {} }))).toBe('insecure'));
  it('a microphone', () => expect(missing(scope({ navigator: {} }))).toBe('unsupported'));
  it.each(['AudioWorkletNode', 'WebAssembly'])('%s', (part) => {
    const rest = Object.fromEntries(Object.entries(able).filter(([name]) => name !== part));
    expect(missing(rest as unknown as Window & typeof globalThis)).toBe('unsupported');
  });
});
