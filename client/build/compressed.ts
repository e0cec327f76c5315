/** Writes a .gz beside every file that gets smaller by it, for nginx's gzip_static: compressed once, well, at build time. */
import { readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import type { Plugin } from 'vite';

const TEXT_LIKE = /\.(html|js|css|svg|wasm|webmanifest)$/;
const WORTH_IT = 1024;

export function compressed(): Plugin {
  let out = '';
  return {
    name: 'hotline-compressed',
    apply: 'build',
    configResolved(config) {
      out = join(config.root, config.build.outDir);
    },
    closeBundle() {
      for (const name of readdirSync(out, { recursive: true, encoding: 'utf8' })) {
        const path = join(out, name);
        if (!TEXT_LIKE.test(name) || statSync(path).size < WORTH_IT) continue;
        const content = readFileSync(path);
        const small = gzipSync(content, { level: 9 });
        if (small.length < content.length) writeFileSync(`${path}.gz`, small);
      }
    },
  };
}
