/** One call in this browser, however many tabs show the page: who calls holds a lock of this origin's (Web Locks). */

const NAME = 'hotline.call';

/**
 * Resolves to how to give the call up; to null if another tab has one and `steal` does not take it away.
 * `taken`: another tab took it. A tab that is closed, or that the system throws away, lets go by itself.
 */
export function onlyOne(
  steal: boolean,
  taken: () => void,
  locks: LockManager | null = 'locks' in navigator ? navigator.locks : null,
): Promise<(() => void) | null> {
  // A browser that has none (Safari before 15.4) can be asked twice: the line still keeps one place per session.
  if (!locks) return Promise.resolve(() => {});
  return new Promise((resolve) => {
    let held = false;
    locks
      .request(NAME, steal ? { steal: true } : { ifAvailable: true }, (lock) => {
        if (!lock) {
          resolve(null);
          return;
        }
        held = true;
        return new Promise<void>((done) => resolve(() => done()));
      })
      .catch(() => {
        if (held) taken();
        else resolve(() => {});
      });
  });
}
