/** A question that somebody asks by this line: read it, talk it over, answer by a press. */
import { useEffect, useRef, useState } from 'preact/hooks';
import { added, blank, chosen, type Draft, spoken, typed } from '../answer';
import { type Door, known, type Question } from '../door';
import type { Telephone } from '../telephone';
import { faults, texts } from '../texts';

interface Props {
  door: Door;
  id: string;
  telephone: Telephone;
  /** It was settled, or always had been; what runs because of it, if anything. */
  settled: (execution: string | null) => void;
}

export function Asked({ door, id, telephone, settled }: Props) {
  const [question, setQuestion] = useState<Question | null>(null);
  const [trouble, setTrouble] = useState<string | null>(null);
  const load = () => {
    setTrouble(null);
    door.question(id).then(
      (found) => {
        setQuestion(found);
        if (found.state !== 'open') settled(found.execution);
      },
      (error: unknown) => setTrouble(words(error)),
    );
  };
  useEffect(load, [door, id]);
  const done = (after: Question) => {
    setQuestion(after);
    settled(after.execution);
  };
  if (!question)
    return trouble === null ? null : (
      <div class="notice" role="alert">
        <h2>{texts.asked.missing}</h2>
        <p>{trouble}</p>
        <button type="button" class="plain" onClick={load}>
          {texts.tryAgain}
        </button>
      </div>
    );
  return (
    <article class="asked" aria-label={texts.asked.title(question.askedBy)}>
      <p class="small">{texts.asked.title(question.askedBy)}</p>
      {/* Text and nothing but text: who asks may have been told what to ask by a stranger. */}
      <h2 dir="auto">{question.question}</h2>
      {question.context !== '' && (
        <p class="context" dir="auto">
          {question.context}
        </p>
      )}
      <ReadAloud text={`${question.question} ${question.context}`} telephone={telephone} />
      {question.state === 'open' ? (
        <Answer question={question} door={door} telephone={telephone} done={done} reload={load} />
      ) : (
        <p class="settled" role="status">
          {texts.asked.settled[question.state]}
          {question.answer !== null && <q dir="auto">{question.answer}</q>}
        </p>
      )}
    </article>
  );
}

interface AnswerProps {
  question: Question;
  door: Door;
  telephone: Telephone;
  done: (after: Question) => void;
  reload: () => void;
}

function Answer({ question, door, telephone, done, reload }: AnswerProps) {
  const [draft, setDraft] = useState<Draft>(blank);
  const [sending, setSending] = useState(false);
  const [trouble, setTrouble] = useState<string | null>(null);
  /** One word per answer: the same press, sent again, is the same answer. */
  const once = useRef<{ text: string; word: string } | null>(null);

  useEffect(() => {
    telephone.onturn = (turn) => setDraft((before) => spoken(before, turn));
    return () => {
      telephone.onturn = () => {};
    };
  }, [telephone]);

  const act = async (doing: () => Promise<Question>) => {
    setSending(true);
    setTrouble(null);
    try {
      done(await doing());
    } catch (error) {
      setTrouble(words(error));
      // Somebody else, or this very answer on its way, settled it: look.
      if (known(error).status === 409) reload();
    } finally {
      setSending(false);
    }
  };
  const send = () => {
    const text = draft.text.trim();
    if (once.current?.text !== text) once.current = { text, word: crypto.randomUUID() };
    const { word } = once.current;
    return act(() => door.answer(question.id, text, word));
  };

  return (
    <form
      class="answer"
      onSubmit={(event) => {
        event.preventDefault();
        if (draft.text.trim() !== '' && !sending) void send();
      }}
    >
      {question.choices.length > 0 && (
        <div class="choices" role="group" aria-label={texts.asked.choices}>
          {question.choices.map((choice) => (
            <button
              key={choice}
              type="button"
              class="choice"
              dir="auto"
              aria-pressed={draft.text === choice}
              onClick={() => setDraft((before) => chosen(before, choice))}
            >
              {choice}
            </button>
          ))}
        </div>
      )}
      <label>
        <span>{texts.asked.draft}</span>
        <textarea
          rows={3}
          dir="auto"
          maxLength={10_000}
          value={draft.text}
          placeholder={texts.asked.placeholder}
          onInput={({ currentTarget }) => setDraft((before) => typed(before, currentTarget.value))}
        />
      </label>
      {draft.spoken !== '' && (
        <button type="button" class="link" onClick={() => setDraft(added)}>
          {texts.asked.add(draft.spoken)}
        </button>
      )}
      {trouble !== null && (
        <p role="alert" class="told">
          {trouble}
        </p>
      )}
      <div class="choices">
        <button type="submit" class="send" disabled={sending || draft.text.trim() === ''}>
          {sending ? texts.asked.sending : texts.asked.send}
        </button>
        <button
          type="button"
          class="plain"
          disabled={sending}
          onClick={() => void act(() => door.decline(question.id))}
        >
          {texts.asked.decline}
        </button>
      </div>
    </form>
  );
}

/** By the browser's own voice. Whoever talks with Moshi is muted meanwhile, or it would answer the question. */
function ReadAloud({ text, telephone }: { text: string; telephone: Telephone }) {
  const [reading, setReading] = useState(false);
  useEffect(
    () => () => {
      if ('speechSynthesis' in window) window.speechSynthesis.cancel();
    },
    [],
  );
  if (!('speechSynthesis' in window)) return null;
  const read = () => {
    if (reading) {
      window.speechSynthesis.cancel();
      return;
    }
    const utterance = new SpeechSynthesisUtterance(text);
    const quiet = !telephone.call.muted;
    const end = () => {
      setReading(false);
      if (quiet) telephone.mute(false);
    };
    utterance.onend = end;
    utterance.onerror = end;
    if (quiet) telephone.mute(true);
    setReading(true);
    window.speechSynthesis.speak(utterance);
  };
  return (
    <button type="button" class="link" aria-pressed={reading} onClick={read}>
      {reading ? texts.asked.stopReading : texts.asked.read}
    </button>
  );
}

/** What to tell of a refusal. */
export function words(error: unknown): string {
  const refused = known(error);
  return refused.message === '' ? faults[refused.fault].mend : refused.message;
}
