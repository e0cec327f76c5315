/** The screen: shows the state of the call, and nothing that the state does not say. */
import type { ComponentChildren } from 'preact';
import { useEffect, useLayoutEffect, useRef, useState } from 'preact/hooks';
import { type Call, type Fault, idle, live, type Place, type Trouble } from '../call';
import type { Door, Entrance } from '../door';
import { type About, about, unknown } from '../line';
import { missing } from '../microphone';
import type { Telephone } from '../telephone';
import { allowing, faults, texts } from '../texts';
import { browserOf } from '../browser';
import { clock } from './clock';
import { CallIcon, HangUpIcon, MicrophoneIcon, SettingsIcon } from './icons';
import { Progress } from './execution';
import { Asked } from './question';
import { Sheet } from './sheet';
import { Task } from './task';
import { Words } from './transcript';
import { Voices } from './voices';

/** How often the numbers and the timer are brought up to date, ms. */
const NUMBERS_MS = 200;
/** When the page asks whether there is a newer one, ms. */
const LOOK_FIRST_MS = 1000;
const LOOK_MS = 300_000;
/** What only another link mends. */
const LINKS: readonly Fault[] = ['link_needed', 'link_invalid', 'session_over'];
/** How long news stay on the screen; the words keep the mark, ms. */
const NEWS_MS = 20_000;

interface Props {
  telephone: Telephone;
  door: Door;
  /** What the link that opened this page carried; null if it was opened without one. */
  token: string | null;
}

export function App({ telephone, door, token }: Props) {
  const [, changed] = useState(0);
  useEffect(() => telephone.subscribe(() => changed((n) => n + 1)), [telephone]);
  const line = useLine();
  const levels = useRef(() => telephone.levels).current;
  const call = telephone.call;
  // Told before anybody presses a button that cannot work.
  const lacking = missing();
  const [entrance, enter] = useEntrance(door, token);
  const [sheet, setSheet] = useState(false);
  const session = entrance.state === 'open' ? entrance.session : null;
  const [execution, setExecution] = useState<string | null>(null);
  const [answered, setAnswered] = useState(false);
  useEffect(() => {
    if (session?.execution) setExecution(session.execution);
    telephone.onexecution = setExecution;
  }, [session, telephone]);
  // A link that only shows how something goes has nobody to talk to.
  const viewing = session?.purpose === 'view';
  // Something that carries out instructions, and a key that may give them: else nobody is offered what cannot be had.
  const tasks = session?.purpose === 'talk' && entrance.state === 'open' && entrance.rules?.tasks === true;
  const stale = useStale(line.version, live(call));
  useEffect(() => {
    // Nothing was said yet, nothing is open: nobody would miss anything. Each load has its own version to compare with.
    if (stale && call.phase === 'idle' && !sheet && !session?.question) window.location.reload();
  }, [stale, call.phase, sheet, session]);
  const controls = useRef<HTMLDivElement>(null);
  const busy = live(call);
  // The pressed button is gone, and with it the keyboard's place on the page: put it on the button that took its place.
  useLayoutEffect(() => {
    if (document.activeElement === document.body && call.phase !== 'idle')
      controls.current?.querySelector<HTMLElement>('.hangup, .dial')?.focus({ preventScroll: true });
  }, [busy]);
  const closed: Trouble | null =
    entrance.state === 'closed' ? { fault: entrance.fault, message: entrance.message } : null;
  const trouble: Trouble | null = lacking ? { fault: lacking, message: '' } : (call.trouble ?? closed);
  // What a link opened is over: nothing on this page opens it again.
  const shut = trouble !== null && LINKS.includes(trouble.fault);

  return (
    <Numbers telephone={telephone} call={call} fault={trouble?.fault}>
      <header class="top">
        <h1 class="mark">
          <img src="/favicon.svg" alt="" width="28" height="28" />
          {texts.name}
        </h1>
        <p class="status" role="status" data-phase={call.phase} data-quality={telephone.quality ?? undefined}>
          {telephone.quality ? texts.quality[telephone.quality] : status(call)}
        </p>
        {call.began !== null && <Timer began={call.began} ended={live(call) ? null : call.ended} />}
      </header>

      <div class="stage">
        <Voices
          levels={levels}
          live={call.phase === 'talking'}
          lost={call.phase === 'waiting'}
          muted={call.muted || call.deaf}
        />
        {call.phase === 'idle' && !trouble && !session?.question && !viewing && (
          <div class="hello">
            <h2>{texts.tagline}</h2>
            <p>{texts.what}</p>
          </div>
        )}
        {session?.question && (
          <Asked
            door={door}
            id={session.question}
            telephone={telephone}
            settled={(execution) => {
              setAnswered(true);
              setExecution(execution);
            }}
          />
        )}
        {session?.question && call.phase === 'idle' && !trouble && !answered && (
          <p class="hint">{texts.asked.help}</p>
        )}
        {execution && (
          <Progress door={door} id={execution} asked={session?.question ?? null} answered={answered} />
        )}
        {call.phase === 'asking' && (
          <div class="hello">
            <h2>{texts.asking}</h2>
            <p>{texts.askingHelp}</p>
          </div>
        )}
        {call.phase === 'queued' && call.place && <Queue place={call.place} />}
        {call.phase === 'forgot' && (
          <div class="notice" role="alert">
            <h2>{texts.forgot}</h2>
            <p>{texts.forgotHelp}</p>
          </div>
        )}
        {trouble && <Notice trouble={trouble} call={call} />}
        {call.phase === 'talking' && <Hints call={call} echo={telephone.echo} />}
        {telephone.transcript.length > 0 && (
          <Words transcript={telephone.transcript} deaf={wordless(telephone)} />
        )}
        {tasks && !busy && telephone.id !== null && call.began !== null && (
          <Task key={telephone.id} door={door} call={telephone.id} handed={setExecution} />
        )}
      </div>

      {/* Keys: a button that takes another's place is another element, or focus and a second press would go with it. */}
      <div class="controls" ref={controls}>
        {call.phase === 'forgot' && (
          <button key="anew" type="button" class="dial" onClick={() => telephone.anew()}>
            <CallIcon />
            <span>{texts.goOn}</span>
          </button>
        )}
        {busy ? (
          <>
            {call.phase !== 'forgot' && (
              <button
                key="mute"
                type="button"
                class="round"
                data-on={call.muted}
                onClick={() => telephone.mute(!call.muted)}
              >
                <MicrophoneIcon off={call.muted} />
                <span>{call.muted ? texts.unmute : texts.mute}</span>
              </button>
            )}
            <button key="settings" type="button" class="round" onClick={() => setSheet(true)}>
              <SettingsIcon />
              <span>{texts.settings}</span>
            </button>
            <button key="hangup" type="button" class="round hangup" onClick={() => telephone.hangUp()}>
              <HangUpIcon />
              <span>{call.phase === 'queued' ? texts.leaveQueue : texts.hangUp}</span>
            </button>
          </>
        ) : (
          !lacking &&
          !shut &&
          !viewing && (
            <>
              <button
                key="dial"
                type="button"
                class="dial"
                // Also while the line is still asked whether one may: the call itself waits for that.
                onClick={() =>
                  entrance.state === 'closed' ? enter() : telephone.dial(trouble?.fault === 'elsewhere')
                }
              >
                <CallIcon />
                <span>{entrance.state === 'closed' ? texts.tryAgain : again(call)}</span>
              </button>
              <button key="check" type="button" class="link" onClick={() => setSheet(true)}>
                {texts.check}
              </button>
            </>
          )
        )}
      </div>

      {sheet && <Sheet telephone={telephone} version={line.version} close={() => setSheet(false)} />}

      <footer class="foot">
        {!live(call) && telephone.recorded && (
          <p>
            <a href={telephone.recorded.url} download={telephone.recorded.name}>
              {texts.saveRecording}
            </a>
          </p>
        )}
        {stale && (
          <p role="status">
            {texts.updated}{' '}
            <button type="button" class="link" onClick={() => window.location.reload()}>
              {texts.reload}
            </button>
          </p>
        )}
        {!live(call) && (
          <p>
            {texts.machine} {texts.kept(entrance.state === 'open' ? entrance.rules : null)} {texts.headphones}
          </p>
        )}
        {!live(call) && line.authority && <Certificate url={line.authority} />}
        <p class="small">
          {texts.attribution.before}
          <a href={texts.attribution.url} target="_blank" rel="noreferrer">
            {texts.attribution.name}
          </a>
          {texts.attribution.after}
          {line.version && <span class="version"> · {texts.version(line.version)}</span>}
        </p>
      </footer>
    </Numbers>
  );
}

/** Why there is no call, or why it waits: what happened, what to do, and what the line itself said. */
function Notice({ trouble, call }: { trouble: Trouble; call: Call }) {
  const { title, mend } = faults[trouble.fault];
  return (
    <div class="notice" role={live(call) ? undefined : 'alert'} data-fault={trouble.fault}>
      <h2>{title}</h2>
      <p>{mend}</p>
      {trouble.fault === 'microphone_refused' && (
        <p class="allow">{allowing[browserOf(navigator.userAgent, navigator.maxTouchPoints > 1)]}</p>
      )}
      {trouble.message && !LINKS.includes(trouble.fault) && <p class="told">{trouble.message}</p>}
      {live(call) && (
        <p class="trying">
          <span class="spinner" aria-hidden="true" />
          {texts.waiting}
          {call.attempts > 1 && <span class="attempt"> · {texts.attempt(call.attempts)}</span>}
        </p>
      )}
    </div>
  );
}

/** Where one stands while others talk. */
function Queue({ place }: { place: Place }) {
  const { position, waitMs } = place;
  return (
    <div class="hello queue" role="status">
      <h2>{position === null ? texts.queued : texts.position(position)}</h2>
      {waitMs !== null && <p>{texts.estimate(waitMs)}</p>}
      <p>{texts.queueHelp}</p>
    </div>
  );
}

/** What the caller should know while talking. */
function Hints({ call, echo }: { call: Call; echo: boolean }) {
  const back = useFresh(call.resumed);
  const hints = [
    call.until !== null && texts.drainingHelp(new Date(call.until)),
    call.resumed > 0 && back && texts.resumedHelp,
    call.deaf && texts.deafHelp,
    call.slow && texts.slowHelp,
    echo && texts.echoHelp,
  ].filter((hint) => hint !== false);
  return (
    <div role="status" class="hints">
      {hints.map((hint) => (
        <p key={hint} class="note">
          {hint}
        </p>
      ))}
    </div>
  );
}

function Certificate({ url }: { url: string }) {
  const { title, why, download, profile, steps } = texts.certificate;
  return (
    <details class="certificate">
      <summary>{title}</summary>
      <p>{why}</p>
      <p>
        <a href={url} download>
          {download}
        </a>
      </p>
      <p>
        {/* Opened, not downloaded: only then Safari offers to install it. */}
        <a href={url.replace(/\.pem$/, '.mobileconfig')}>{profile}</a>
      </p>
      <dl>
        {steps.map(({ system, text }) => (
          <div key={system}>
            <dt>{system}</dt>
            <dd>{text}</dd>
          </div>
        ))}
      </dl>
    </details>
  );
}

function Timer({ began, ended }: { began: number; ended: number | null }) {
  const [now, setNow] = useState(Date.now());
  useEffect(() => {
    if (ended !== null) return;
    const ticking = setInterval(() => setNow(Date.now()), NUMBERS_MS);
    return () => clearInterval(ticking);
  }, [ended]);
  return (
    <time class="timer" role="timer" aria-label={texts.duration}>
      {clock((ended ?? Math.max(now, began)) - began)}
    </time>
  );
}

interface Frame {
  telephone: Telephone;
  call: Call;
  fault: Fault | undefined;
  children: ComponentChildren;
}

/** The page's frame. Carries the numbers of the call as data attributes: for tests, and for whoever opens the inspector. */
function Numbers({ telephone, call, fault, children }: Frame) {
  const place = useRef<HTMLElement>(null);
  useEffect(() => {
    const show = () => {
      const main = place.current;
      if (!main) return;
      for (const [name, value] of Object.entries<number | null>({ ...telephone.numbers })) {
        const attribute = `data-${name.replace(/[A-Z]/g, (capital) => `-${capital.toLowerCase()}`)}`;
        if (value === null) main.removeAttribute(attribute);
        else main.setAttribute(attribute, String(Math.round(value)));
      }
    };
    show();
    if (!live(call)) return;
    const ticking = setInterval(show, NUMBERS_MS);
    return () => clearInterval(ticking);
  }, [telephone, call]);
  return (
    <main
      class="page"
      ref={place}
      data-state={call.phase}
      data-fault={fault}
      data-muted={call.muted}
      data-conversations={call.conversations}
    >
      {children}
    </main>
  );
}

/**
 * Did the line get a newer page since this one was loaded? It is loaded at once where nobody would miss anything: with no
 * call and nothing said yet. Otherwise the caller says when.
 */
function useStale(version: string | null, busy: boolean): boolean {
  const [stale, setStale] = useState(false);
  useEffect(() => {
    if (version === null || busy) return;
    const look = () => {
      if (document.visibilityState !== 'visible') return;
      void about().then((now) => setStale(now.version !== null && now.version !== version));
    };
    // Right after a call, whenever the page is looked at again, and now and then.
    const first = setTimeout(look, LOOK_FIRST_MS);
    const ticking = setInterval(look, LOOK_MS);
    document.addEventListener('visibilitychange', look);
    return () => {
      clearTimeout(first);
      clearInterval(ticking);
      document.removeEventListener('visibilitychange', look);
    };
  }, [version, busy]);
  return stale;
}

/** True for a while after `value` changed. */
function useFresh(value: number): boolean {
  const [old, setOld] = useState<number | null>(null);
  useEffect(() => {
    const ageing = setTimeout(() => setOld(value), NEWS_MS);
    return () => clearTimeout(ageing);
  }, [value]);
  return old !== value;
}

/** Whether one may call from here, and how to ask once more. */
function useEntrance(door: Door, token: string | null): [Entrance, () => void] {
  const [entrance, setEntrance] = useState<Entrance>({ state: 'looking' });
  const enter = () => {
    setEntrance({ state: 'looking' });
    void door.enter(token).then(setEntrance);
  };
  useEffect(enter, [door, token]);
  return [entrance, enter];
}

/** Why the caller's own words are not in the transcript; null where they are, or where nobody ever promised them. */
function wordless({ listening }: Telephone): string | null {
  if (listening?.available !== false) return null;
  return texts.wordless(listening.reason);
}

function useLine(): About {
  const [line, setLine] = useState(unknown);
  useEffect(() => {
    void about().then(setLine);
  }, []);
  return line;
}

function status(call: Call): string {
  switch (call.phase) {
    case 'idle':
    case 'asking':
      return '';
    case 'joining':
    case 'dialling':
      return call.conversations > 0 ? texts.diallingAgain : texts.dialling;
    case 'waiting':
      return call.trouble ? faults[call.trouble.fault].title : texts.waiting;
    case 'queued':
      return texts.queued;
    case 'talking':
      return texts.talking;
    case 'forgot':
      return texts.forgotStatus;
    case 'ended':
      return texts.ended;
    case 'failed':
      return texts.failed;
  }
}

function again(call: Call): string {
  if (call.phase === idle.phase) return texts.call;
  if (call.trouble?.fault === 'elsewhere') return texts.callHere;
  return call.phase === 'failed' ? texts.tryAgain : texts.callAgain;
}
