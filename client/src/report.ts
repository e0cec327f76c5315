/** What a bug report needs, and nothing that was said, no address, no name, no key. Pure. */
import type { Call } from './call';
import type { Numbers } from './telephone';

export interface Circumstances {
  version: string | null;
  engine: string | null;
  /** The browser as it calls itself. */
  agent: string;
  numbers: Numbers;
  call: Call;
  quality: string | null;
  words: string;
}

export function report({ version, engine, agent, numbers, call, quality, words }: Circumstances): string {
  const lines: [string, string | number | null][] = [
    ['hotline', version ?? 'unknown'],
    ['engine', engine ?? 'unknown'],
    ['browser', agent],
    ['state', call.phase],
    ['trouble', call.trouble?.fault ?? 'none'],
    ['quality', quality],
    ['words', words],
    ['seconds', call.began === null ? 0 : Math.round(((call.ended ?? Date.now()) - call.began) / 1000)],
    ['conversations', call.conversations],
    ['connections', call.connection],
    ...Object.entries(numbers).map(([name, value]: [string, number | null]): [string, number | null] => [
      name,
      value === null ? null : Math.round(value * 10) / 10,
    ]),
  ];
  return lines.map(([name, value]) => `${name}: ${value ?? 'unknown'}`).join('\n');
}
