/**
 * Puts opus-recorder's workers into the page as they are.
 *
 * Its decoder looks for `decoderWorker.min.wasm` beside itself, under that very name, so the files cannot get hashed
 * names of their own. The folder carries the hash instead: assets/opus-<hash>/.
 */
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import type { Plugin } from 'vite';

const FILES = ['encoderWorker.min.js', 'decoderWorker.min.js', 'decoderWorker.min.wasm'] as const;
const TYPES: Record<string, string> = { js: 'text/javascript', wasm: 'application/wasm' };
const MODULE = 'virtual:opus';

export function opus(): Plugin {
  const folder = dirname(createRequire(import.meta.url).resolve('opus-recorder'));
  const contents = new Map(FILES.map((name) => [name, readFileSync(join(folder, name))]));
  const hash = createHash('sha256');
  for (const content of contents.values()) hash.update(content);
  const place = `assets/opus-${hash.digest('hex').slice(0, 10)}`;

  return {
    name: 'hotline-opus',
    resolveId: (id) => (id === MODULE ? `\0${MODULE}` : undefined),
    load: (id) =>
      id === `\0${MODULE}`
        ? `export const encoderUrl = '/${place}/encoderWorker.min.js';
           export const decoderUrl = '/${place}/decoderWorker.min.js';`
        : undefined,
    configureServer(server) {
      server.middlewares.use((request, response, next) => {
        const name = request.url?.startsWith(`/${place}/`) ? request.url.slice(place.length + 2) : '';
        const content = contents.get(name as (typeof FILES)[number]);
        if (!content) {
          next();
          return;
        }
        response.setHeader('Content-Type', TYPES[name.split('.').pop() ?? ''] ?? 'application/octet-stream');
        response.end(content);
      });
    },
    generateBundle() {
      for (const [name, source] of contents)
        this.emitFile({ type: 'asset', fileName: `${place}/${name}`, source });
    },
  };
}
