import { defineConfig } from 'vite';
import { compressed } from './build/compressed.ts';
import { opus } from './build/opus.ts';

/** Where `npm run dev` finds a line to talk to, e.g. https://127.0.0.1:8998. */
const line = process.env.HOTLINE_URL ?? 'http://127.0.0.1:8998';

export default defineConfig({
  plugins: [opus(), compressed()],
  build: {
    target: 'es2022',
    // Everything is a file of its own: the Content-Security-Policy allows neither data: scripts nor inline ones.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
  },
  worker: { format: 'es' },
  server: {
    proxy: {
      '/api': { target: line, ws: true, secure: false },
      '/health': { target: line, secure: false },
    },
  },
});
