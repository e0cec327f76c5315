/** The call in numbers, for the curious and for bug reports. */
import { useEffect, useState } from 'preact/hooks';
import { report } from '../report';
import type { Telephone } from '../telephone';
import { texts } from '../texts';

/** How often they are brought up to date, ms. */
const EVERY_MS = 500;

export function NumbersPanel({ telephone, version }: { telephone: Telephone; version: string | null }) {
  const [open, setOpen] = useState(false);
  const [copied, setCopied] = useState(false);
  const [, tick] = useState(0);
  useEffect(() => {
    if (!open) return;
    const ticking = setInterval(() => tick((n) => n + 1), EVERY_MS);
    return () => clearInterval(ticking);
  }, [open]);
  const copy = async () => {
    const words = telephone.listening;
    const text = report({
      version,
      engine: telephone.engine,
      agent: navigator.userAgent,
      numbers: telephone.numbers,
      call: telephone.call,
      quality: telephone.quality,
      words: words === null ? 'unknown' : words.available ? 'heard' : `not heard (${words.reason})`,
    });
    await navigator.clipboard.writeText(text);
    setCopied(true);
  };
  return (
    <details class="numbers" onToggle={({ currentTarget }) => setOpen(currentTarget.open)}>
      <summary>{texts.numbers.title}</summary>
      {open && (
        <>
          <dl>
            {texts.numbers.rows(telephone.numbers).map(([name, value]) => (
              <div key={name}>
                <dt>{name}</dt>
                <dd>{value}</dd>
              </div>
            ))}
          </dl>
          <button type="button" class="plain" onClick={() => void copy()}>
            {copied ? texts.copied : texts.numbers.copy}
          </button>
          <p class="small">{texts.numbers.copyHelp}</p>
        </>
      )}
    </details>
  );
}
