import { defineConfig } from 'vitest/config';
import { opus } from './build/opus.ts';

export default defineConfig({ plugins: [opus()], test: { include: ['tests/**/*.test.ts'] } });
