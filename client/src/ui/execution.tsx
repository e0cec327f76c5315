/** What runs because of a question or a talk, live. */
import { useEffect, useState } from 'preact/hooks';
import { type Door, type Execution, execution as read, known } from '../door';
import { follow } from '../events';
import { texts } from '../texts';

const FINAL = ['completed', 'failed', 'cancelled', 'expired'];

interface Props {
  door: Door;
  id: string;
  /** The question that this page asks, and whether it has its end. */
  asked: string | null;
  answered: boolean;
}

export function Progress({ door, id, asked, answered }: Props) {
  const [execution, setExecution] = useState<Execution | null>(null);
  useEffect(() => {
    const path = `/api/executions/${encodeURIComponent(id)}`;
    let over = false;
    const look = () =>
      void door.execution(id).then(
        (now) => {
          if (!over) setExecution(now);
        },
        () => undefined,
      );
    look();
    const stream = follow({
      open: (lastId, signal) => door.events(`${path}/events`, lastId, signal),
      fatal: (error) => known(error).status >= 400 && known(error).status < 500,
      event: ({ data }) => {
        // An event may carry the whole or only its news: what counts is what the line says now.
        try {
          const told = JSON.parse(data) as Record<string, unknown>;
          if (typeof told.instruction === 'string' && typeof told.state === 'string')
            setExecution(read(told));
          else look();
        } catch {
          look();
        }
      },
      over: () => undefined,
    });
    const wake = () => stream.wake();
    document.addEventListener('visibilitychange', wake);
    return () => {
      over = true;
      stream.stop();
      document.removeEventListener('visibilitychange', wake);
    };
  }, [door, id]);
  if (!execution) return null;
  const { state, instruction, result, error } = execution;
  return (
    <article class="asked execution" data-state={state}>
      <p role="status" class="state">
        {!FINAL.includes(state) && <span class="spinner" aria-hidden="true" />}
        {state === 'waiting_for_input'
          ? waiting(execution.question === null || execution.question === asked, answered)
          : (texts.execution.states[state] ?? state)}
      </p>
      {instruction !== '' && (
        <p class="context" dir="auto">
          {instruction}
        </p>
      )}
      {result !== null && (
        <pre class="result" dir="auto" tabIndex={0} aria-label={texts.execution.result}>
          {result}
        </pre>
      )}
      {error !== null && (
        <p role="alert" class="told" dir="auto">
          {error}
        </p>
      )}
    </article>
  );
}

/** `here`: what it waits for is asked on this page. */
function waiting(here: boolean, answered: boolean): string {
  if (!here) return texts.execution.asksElsewhere;
  return answered ? texts.execution.getsAnswer : texts.execution.waits;
}
