/** Two seconds that tell how long this network takes to the line and back, before anybody calls. */

export interface LineCheck {
  /** There and back, ms: the middle, and what the slow ones needed more. */
  roundTripMs: number;
  jitterMs: number;
  lost: number;
  verdict: 'good' | 'fair' | 'poor';
}

/** Small, answered by nginx itself: it measures the way and no engine. */
const PATH = '/health/startup';
const SECONDS = 2;
const EVERY_MS = 200;
const PATIENCE_MS = 1500;

/** Rejects when the line does not answer at all. */
export async function checkLine(
  get: typeof fetch = (...request) => window.fetch(...request),
): Promise<LineCheck> {
  // The first one makes the connection, which the call will have to make as well, but only once.
  await get(PATH, { cache: 'no-store', signal: AbortSignal.timeout(10_000) });
  const trips: Promise<number | null>[] = [];
  for (let sent = 0; sent < (SECONDS * 1000) / EVERY_MS; sent++) {
    trips.push(trip(get));
    await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
  }
  return judged(await Promise.all(trips));
}

async function trip(get: typeof fetch): Promise<number | null> {
  const began = performance.now();
  try {
    await get(PATH, { cache: 'no-store', signal: AbortSignal.timeout(PATIENCE_MS) });
    return performance.now() - began;
  } catch {
    return null;
  }
}

/** Moshi itself takes some 200 ms: a way that takes as long again makes it twice as slow to answer. */
export function judged(trips: readonly (number | null)[]): LineCheck {
  const times = trips.filter((time) => time !== null).toSorted((a, b) => a - b);
  const at = (share: number) =>
    times[Math.min(times.length - 1, Math.floor(times.length * share))] ?? Infinity;
  const roundTripMs = at(0.5);
  const jitterMs = times.length === 0 ? Infinity : at(0.9) - roundTripMs;
  const lost = trips.length - times.length;
  const verdict =
    roundTripMs > 300 || jitterMs > 250 || lost > 1
      ? 'poor'
      : roundTripMs > 120 || jitterMs > 80 || lost > 0
        ? 'fair'
        : 'good';
  return { roundTripMs, jitterMs, lost, verdict };
}
