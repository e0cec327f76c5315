/** What an engine tells about a call (kind 4, DESIGN.md), as far as this page knows what to do with it. */

export type News =
  /** The engine heard our hello. `ageS`: how long it has had this call; `resumed`: whether it says itself that it went on. */
  | { type: 'welcome'; engine: string; ageS: number | null; resumed: boolean | null; words: Words | null }
  /** Once a second: from the last byte of a frame to the first of its answer; how far the engine is behind. */
  | { type: 'status'; turnaroundMs: number; lagMs: number }
  /** Frames of 80 ms that were lost so far: of ours unheard, of Moshi's unsaid. */
  | { type: 'dropped'; heardFrames: number; saidFrames: number }
  | { type: 'draining'; seconds: number }
  | { type: 'transcript'; who: 'moshi' | 'you'; text: string; final: boolean }
  /** The caller finished speaking: the whole turn. */
  | { type: 'turn_end'; text: string }
  | ({ type: 'words' } & Words);

/** Whether the engine listens for the caller's words. */
export interface Words {
  available: boolean;
  reason: string;
}

/** Null for what this page does not know or what lacks its parts: newer engines may say more. */
export function news(value: Record<string, unknown>): News | null {
  switch (value.type) {
    case 'welcome':
      return {
        type: 'welcome',
        engine: text(value.engine) ?? '',
        ageS: number(value.age_s),
        resumed: typeof value.resumed === 'boolean' ? value.resumed : null,
        words: words(value.words),
      };
    case 'status': {
      const turnaroundMs = number(value.turnaround_ms);
      return turnaroundMs === null
        ? null
        : { type: 'status', turnaroundMs, lagMs: number(value.lag_ms) ?? 0 };
    }
    case 'dropped':
      return {
        type: 'dropped',
        heardFrames: number(value.heard_frames) ?? 0,
        saidFrames: number(value.said_frames) ?? 0,
      };
    case 'draining':
      return { type: 'draining', seconds: number(value.seconds) ?? 0 };
    case 'transcript': {
      const said = text(value.text);
      return said === null
        ? null
        : {
            type: 'transcript',
            who: value.who === 'moshi' ? 'moshi' : 'you',
            text: said,
            final: value.final === true,
          };
    }
    case 'turn_end': {
      const said = text(value.text);
      return said === null ? null : { type: 'turn_end', text: said };
    }
    case 'words': {
      const known = words(value);
      return known && { type: 'words', ...known };
    }
    default:
      return null;
  }
}

/** A fresh conversation cannot be older than its connection; the engine rounds to 0.1 s. */
const SLACK_MS = 250;

/**
 * Is this the conversation that broke? `sinceMs`: how long ago the connection was asked for. A conversation that is
 * older than its connection was there before it.
 */
export function remembers(welcome: News & { type: 'welcome' }, sinceMs: number): boolean {
  if (welcome.resumed !== null) return welcome.resumed;
  return welcome.ageS !== null && welcome.ageS * 1000 > sinceMs + SLACK_MS;
}

function words(value: unknown): Words | null {
  if (typeof value === 'boolean') return { available: value, reason: '' };
  if (typeof value !== 'object' || value === null) return null;
  const { available, reason } = value as Record<string, unknown>;
  return typeof available === 'boolean' ? { available, reason: text(reason) ?? '' } : null;
}

function text(value: unknown): string | null {
  return typeof value === 'string' ? value : null;
}

function number(value: unknown): number | null {
  return typeof value === 'number' && Number.isFinite(value) ? value : null;
}
