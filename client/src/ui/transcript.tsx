/** What both sides say, as they say it. It stays readable after the call. */
import { useEffect, useRef, useState } from 'preact/hooks';
import { empty, plain, type Transcript } from '../transcript';
import { texts } from '../texts';
import { clock } from './clock';

/** Closer to the end than this, the text follows what is said, px. */
const NEAR = 48;
/** How long a button says that it did what it was pressed for, ms. */
const DONE_MS = 2500;

interface Props {
  transcript: Transcript;
  /** Why the caller's words are missing, if they are and the line says so. */
  deaf: string | null;
}

export function Words({ transcript, deaf }: Props) {
  const place = useRef<HTMLElement>(null);
  const following = useRef(true);

  useEffect(() => {
    const box = place.current;
    if (box && following.current) box.scrollTop = box.scrollHeight;
  }, [transcript]);

  const nothing = empty(transcript);
  return (
    <div class="talk">
      {/* Not read aloud as it grows: who uses a screen reader hears Moshi itself. */}
      <section
        class="words"
        ref={place}
        aria-label={texts.words}
        aria-live="off"
        // What scrolls must be reachable by keyboard (WCAG 2.1.1).
        tabIndex={0}
        onScroll={({ currentTarget: box }) => {
          following.current = box.scrollHeight - box.scrollTop - box.clientHeight < NEAR;
        }}
      >
        {nothing && transcript.length < 2 && <p class="hint">{texts.noWords}</p>}
        {transcript.map((lines, n) => (
          <div key={n}>
            {n > 0 && <p class="divider">{texts.anew}</p>}
            {lines.map((line, m) => (
              <p key={m} class="said" data-who={line.who} data-final={line.final}>
                <span class="who">{line.who === 'moshi' ? texts.moshi : texts.you}</span>
                <span class="text" dir="auto">
                  {line.text}
                </span>
              </p>
            ))}
          </div>
        ))}
      </section>
      {(!nothing || deaf !== null) && (
        <div class="tools">
          {deaf !== null && <p class="hint">{deaf}</p>}
          {!nothing && <Tools transcript={transcript} />}
        </div>
      )}
    </div>
  );
}

/** Copy, and save as a file: the page itself keeps nothing. */
function Tools({ transcript }: { transcript: Transcript }) {
  const [copied, setCopied] = useState(false);
  const text = () => plain(transcript, { moshi: texts.moshi, you: texts.you, anew: texts.anew }, clock);
  useEffect(() => {
    if (!copied) return;
    const ageing = setTimeout(() => setCopied(false), DONE_MS);
    return () => clearTimeout(ageing);
  }, [copied]);
  return (
    <>
      <button
        type="button"
        class="link"
        onClick={() => void navigator.clipboard.writeText(text()).then(() => setCopied(true))}
      >
        {copied ? texts.copied : texts.copy}
      </button>
      <button type="button" class="link" onClick={() => save(text(), texts.fileName(new Date()))}>
        {texts.save}
      </button>
    </>
  );
}

function save(text: string, name: string): void {
  const url = URL.createObjectURL(new Blob([`${text}\n`], { type: 'text/plain;charset=utf-8' }));
  const link = document.createElement('a');
  link.href = url;
  link.download = name;
  link.click();
  // Safari still reads it a moment later.
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
