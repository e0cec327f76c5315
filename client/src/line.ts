/** What the page knows about the line it came from, apart from the call itself. */

export interface About {
  /** The line's version; null if nobody says. */
  version: string | null;
  /** Where to download the line's own certificate authority; null if its certificate comes from a public one. */
  authority: string | null;
}

export const unknown: About = { version: null, authority: null };

/** The line's /api/chat, as a WebSocket URL. A WebSocket cannot carry a key: it shows a ticket, once. */
export function chatUrl(
  ticket: string | null,
  location: Pick<Location, 'href' | 'protocol'> = window.location,
): string {
  const url = new URL('/api/chat', location.href);
  if (ticket !== null) url.searchParams.set('ticket', ticket);
  url.protocol = location.protocol === 'http:' ? 'ws:' : 'wss:';
  return url.href;
}

/**
 * Reads line.json, which the deployment puts beside the page, and the running line's version from /health. Whatever is
 * missing stays unknown: a page that cannot say its version can still make a call.
 */
export async function about(get: typeof fetch = fetch): Promise<About> {
  const [deployed, health] = await Promise.all([read(get, '/line.json'), read(get, '/health')]);
  return {
    version: text(health.version) ?? text(deployed.version),
    authority: text(deployed.authority),
  };
}

/** A JSON object, whatever the status: /health answers 503 with a body that has the version, too. */
async function read(get: typeof fetch, path: string): Promise<Record<string, unknown>> {
  try {
    const response = await get(path, { cache: 'no-store', signal: AbortSignal.timeout(5000) });
    const value: unknown = await response.json();
    return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};
  } catch {
    return {};
  }
}

function text(value: unknown): string | null {
  return typeof value === 'string' && value !== '' ? value : null;
}
