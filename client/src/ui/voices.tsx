/** Both voices as two bodies of light, a large and a small one, that swell with their loudness. */
import { useEffect, useRef } from 'preact/hooks';
import type { Levels } from '../telephone';
import { texts } from '../texts';

/** Speech is quiet as a number (0.05) and loud to the ear: a root brings it to the eye's scale. */
const shown = (level: number) => Math.min(1, Math.sqrt(level) * 1.6);
/** How much of the way to a lower level is gone per picture: up at once, down slowly. */
const FALL = 0.2;
/** At most 30 pictures a second: the page's one thread also hands the sound on. */
const PICTURE_MS = 30;

interface Props {
  levels: () => Levels;
  /** Sound goes both ways. */
  live: boolean;
  /** There is a call, and nobody to be heard in it: both bodies fade. */
  lost: boolean;
  muted: boolean;
}

export function Voices({ levels, live, lost, muted }: Props) {
  const moshi = useRef<HTMLDivElement>(null);
  const you = useRef<HTMLDivElement>(null);

  useEffect(() => {
    if (!live) return;
    const now = { you: 0, moshi: 0 };
    let latest = 0;
    let picture = requestAnimationFrame(function draw(time: number) {
      picture = requestAnimationFrame(draw);
      if (time - latest < PICTURE_MS) return;
      latest = time;
      const heard = levels();
      for (const [who, place] of [
        ['moshi', moshi],
        ['you', you],
      ] as const) {
        const level = shown(heard[who]);
        now[who] = level > now[who] ? level : now[who] + (level - now[who]) * FALL;
        place.current?.style.setProperty('--level', now[who].toFixed(3));
      }
    });
    return () => {
      cancelAnimationFrame(picture);
      for (const place of [moshi, you]) place.current?.style.removeProperty('--level');
    };
  }, [live, levels]);

  return (
    <div class="voices" data-live={live} data-lost={lost}>
      <div class="voice moshi" ref={moshi}>
        <div class="orb" aria-hidden="true" />
        <span class="name">{texts.moshi}</span>
      </div>
      <div class="voice you" ref={you} data-muted={muted}>
        <div class="orb" aria-hidden="true" />
        <span class="name">
          {texts.you}
          {muted && <span class="tag"> {texts.muted}</span>}
        </span>
      </div>
    </div>
  );
}
