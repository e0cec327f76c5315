/** Which browser this is: to say where its microphone switch is, and not to ask Firefox what it cannot answer (speaker.ts). */

export type Browser =
  'chrome' | 'chrome_android' | 'edge' | 'firefox' | 'firefox_android' | 'safari' | 'safari_ios' | 'other';

export function browserOf(agent: string, touch = false): Browser {
  const android = /Android/.test(agent);
  // iPads say that they are Macs, but no Mac has a touch screen. All browsers there are Safari underneath.
  if (/iPhone|iPad|iPod/.test(agent) || (/Macintosh/.test(agent) && touch)) return 'safari_ios';
  if (/Firefox\//.test(agent)) return android ? 'firefox_android' : 'firefox';
  if (/Edg\//.test(agent)) return 'edge';
  if (/Chrome\/|Chromium\//.test(agent)) return android ? 'chrome_android' : 'chrome';
  if (/Safari\//.test(agent)) return 'safari';
  return 'other';
}
