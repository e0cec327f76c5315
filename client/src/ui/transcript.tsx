/** What Moshi says, as it says it. It stays readable after the call. */
import { useEffect, useRef } from 'preact/hooks';
import type { Transcript } from '../telephone';
import { texts } from '../texts';

/** Closer to the end than this, the text follows what is said, px. */
const NEAR = 48;

export function Words({ transcript }: { transcript: Transcript }) {
  const place = useRef<HTMLElement>(null);
  const following = useRef(true);

  useEffect(() => {
    const box = place.current;
    if (box && following.current) box.scrollTop = box.scrollHeight;
  }, [transcript]);

  const empty = transcript.every((words) => words.trim() === '');
  return (
    // Not read aloud as it grows: who uses a screen reader hears Moshi itself.
    <section
      class="words"
      ref={place}
      aria-label={texts.words}
      aria-live="off"
      // biome-ignore lint/a11y/noNoninteractiveTabindex: what scrolls must be reachable by keyboard (WCAG 2.1.1)
      tabIndex={0}
      onScroll={({ currentTarget: box }) => {
        following.current = box.scrollHeight - box.scrollTop - box.clientHeight < NEAR;
      }}
    >
      {empty && transcript.length < 2 && <p class="hint">{texts.noWords}</p>}
      {transcript.map((words, n) => (
        <div key={n}>
          {n > 0 && <p class="divider">{texts.anew}</p>}
          <p class="said">{words.trimStart()}</p>
        </div>
      ))}
    </section>
  );
}
