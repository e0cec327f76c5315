/** What the caller chose on this device: kept in this origin's storage, told to nobody. */

export interface Settings {
  /** Device ids as the browser gives them to this origin; null: its own choice. */
  microphone: string | null;
  speaker: string | null;
  /** 0 to 1. */
  volume: number;
}

const STORED = 'hotline.settings';

export function readSettings(stored: Storage = window.localStorage): Settings {
  try {
    const value: unknown = JSON.parse(stored.getItem(STORED) ?? '');
    const { microphone, speaker, volume } = value as Record<string, unknown>;
    return {
      microphone: typeof microphone === 'string' ? microphone : null,
      speaker: typeof speaker === 'string' ? speaker : null,
      volume: typeof volume === 'number' ? Math.min(1, Math.max(0, volume)) : 1,
    };
  } catch {
    return { microphone: null, speaker: null, volume: 1 };
  }
}

export function keepSettings(settings: Settings, stored: Storage = window.localStorage): void {
  try {
    stored.setItem(STORED, JSON.stringify(settings));
  } catch {
    // A private window may keep nothing: the choice then lasts for this visit.
  }
}
