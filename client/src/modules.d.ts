/** Made by build/opus.ts: where opus-recorder's workers are served. */
declare module 'virtual:opus' {
  export const encoderUrl: string;
  export const decoderUrl: string;
}
