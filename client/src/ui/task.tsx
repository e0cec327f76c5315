/** From talk to task: what the caller said as an instruction, to be changed and handed over by a press. */
import { useEffect, useRef, useState } from 'preact/hooks';
import { type Door, known } from '../door';
import { type Draft, drafted, instruction, longer, marked, typed, without } from '../task';
import { texts } from '../texts';
import { words } from './question';

interface Props {
  door: Door;
  /** The call that it is drafted from. */
  call: string;
  /** It was handed over; the execution. */
  handed: (execution: string) => void;
}

export function Task({ door, call, handed }: Props) {
  const [draft, setDraft] = useState<Draft | null>(null);
  const [busy, setBusy] = useState(false);
  const [trouble, setTrouble] = useState<string | null>(null);
  /** One word per instruction: the same press, sent again, is the same task. */
  const once = useRef<{ text: string; word: string } | null>(null);

  // The pressed button is gone: the keyboard's place is at the top of what it brought.
  const title = useRef<HTMLHeadingElement>(null);
  const open = draft !== null;
  useEffect(() => {
    if (open) title.current?.focus();
  }, [open]);

  const act = async (doing: () => Promise<void>) => {
    setBusy(true);
    setTrouble(null);
    try {
      await doing();
    } catch (error) {
      setTrouble(words(error));
      // Nothing was heard: then it is typed.
      if (known(error).code === 'nothing_said') setDraft(drafted([]));
    } finally {
      setBusy(false);
    }
  };
  const propose = () => act(async () => setDraft(drafted((await door.propose(call)).steps)));
  const send = (text: string) =>
    act(async () => {
      if (once.current?.text !== text) once.current = { text, word: crypto.randomUUID() };
      const { id } = await door.handOver(text, once.current.word);
      setDraft(null);
      handed(id);
    });
  const said = trouble !== null && (
    <p role="alert" class="told">
      {trouble}
    </p>
  );

  if (!draft)
    return (
      <div class="offer">
        <button type="button" class="plain" disabled={busy} onClick={() => void propose()}>
          {busy ? texts.task.drafting : texts.task.offer}
        </button>
        <p class="hint">{texts.task.help}</p>
        {said}
      </div>
    );
  const text = instruction(draft);
  const risky = marked(draft);
  return (
    <form
      class="asked task"
      aria-labelledby="task-title"
      onSubmit={(event) => {
        event.preventDefault();
        if (text !== '' && !busy) void send(text);
      }}
    >
      <h2 id="task-title" ref={title} tabIndex={-1}>
        {texts.task.title}
      </h2>
      <p class="small">{texts.task.from}</p>
      <ol class="steps">
        {draft.map((step, n) => (
          <li key={n} data-destructive={step.destructive}>
            <textarea
              rows={1}
              dir="auto"
              aria-label={texts.task.step(n + 1)}
              aria-describedby={step.destructive ? `mark-${n}` : undefined}
              value={step.text}
              onInput={({ currentTarget }) => setDraft(typed(draft, n, currentTarget.value))}
            />
            <button
              type="button"
              class="link"
              aria-label={texts.task.remove(n + 1)}
              onClick={() => setDraft(without(draft, n))}
            >
              ×
            </button>
            {step.destructive && (
              <p class="mark-step" id={`mark-${n}`}>
                {texts.task.mark}
              </p>
            )}
          </li>
        ))}
      </ol>
      <button type="button" class="link" onClick={() => setDraft(longer(draft))}>
        {texts.task.add}
      </button>
      {risky > 0 && <p class="mark-step">{texts.task.look(risky)}</p>}
      {said}
      <div class="choices">
        <button type="submit" class="send" disabled={busy || text === ''}>
          {busy ? texts.task.sending : texts.task.send}
        </button>
        <button type="button" class="plain" disabled={busy} onClick={() => setDraft(null)}>
          {texts.task.forget}
        </button>
      </div>
    </form>
  );
}
