import { describe, expect, it, vi } from 'vitest';
import { onlyOne } from '../src/onlyone';

/** Web Locks as their specification has them, for one name: one holder, who may be robbed. */
class Locks {
  #rob: (() => void) | null = null;

  request(
    _: string,
    { steal }: LockOptions,
    granted: (lock: Lock | null) => Promise<void> | undefined,
  ): Promise<void> {
    if (this.#rob && !steal) return Promise.resolve(granted(null));
    this.#rob?.();
    return new Promise((done, robbed) => {
      const rob = () => robbed(new DOMException('', 'AbortError'));
      this.#rob = rob;
      void granted({} as Lock)?.then(() => {
        if (this.#rob === rob) this.#rob = null;
        done();
      });
    });
  }
}
const browser = () => new Locks() as unknown as LockManager;
const never = () => expect.fail('nobody took it');

describe('one call in a browser', () => {
  it('is held by one tab, and free again when that hangs up', async () => {
    const locks = browser();
    const letGo = await onlyOne(false, never, locks);
    expect(await onlyOne(false, never, locks)).toBeNull();
    letGo?.();
    await vi.waitFor(async () => expect(await onlyOne(false, never, locks)).not.toBeNull());
  });

  it('is taken over by a tab that means to, and the other hears of it', async () => {
    const locks = browser();
    const taken = vi.fn();
    const letGo = await onlyOne(false, taken, locks);
    expect(await onlyOne(true, never, locks)).not.toBeNull();
    await vi.waitFor(() => expect(taken).toHaveBeenCalledOnce());
    letGo?.();
    expect(await onlyOne(false, never, locks), 'what was lost is not given up twice').toBeNull();
  });

  it('is not kept by a browser that has no locks, or gives none', async () => {
    expect(await onlyOne(false, never, null)).not.toBeNull();
    const none = { request: () => Promise.reject(new DOMException('', 'SecurityError')) };
    expect(await onlyOne(false, never, none as unknown as LockManager)).not.toBeNull();
  });
});
