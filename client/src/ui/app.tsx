/** The screen: shows the state of the call, and nothing that the state does not say. */
import type { ComponentChildren } from 'preact';
import { useEffect, useRef, useState } from 'preact/hooks';
import { type Call, type Fault, idle, live, type Place, type Trouble } from '../call';
import type { Door, Entrance } from '../door';
import { type About, about, unknown } from '../line';
import { missing } from '../microphone';
import type { Telephone } from '../telephone';
import { faults, texts } from '../texts';
import { clock } from './clock';
import { CallIcon, HangUpIcon, MicrophoneIcon } from './icons';
import { Words } from './transcript';
import { Voices } from './voices';

/** How often the numbers and the timer are brought up to date, ms. */
const NUMBERS_MS = 200;
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
  const controls = useRef<HTMLDivElement>(null);
  const busy = live(call);
  // The pressed button is gone, and with it the keyboard's place on the page: put it on the button that took its place.
  useEffect(() => {
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
        <p class="status" role="status" data-phase={call.phase}>
          {status(call)}
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
        {call.phase === 'idle' && !trouble && (
          <div class="hello">
            <h2>{texts.tagline}</h2>
            <p>{texts.what}</p>
          </div>
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
        {call.phase === 'talking' && <Hints call={call} />}
        {telephone.transcript.length > 0 && (
          <Words transcript={telephone.transcript} deaf={wordless(telephone)} />
        )}
      </div>

      <div class="controls" ref={controls}>
        {call.phase === 'forgot' && (
          <button type="button" class="dial" onClick={() => telephone.anew()}>
            <CallIcon />
            <span>{texts.goOn}</span>
          </button>
        )}
        {busy ? (
          <>
            {call.phase !== 'forgot' && (
              <button
                type="button"
                class="round"
                data-on={call.muted}
                onClick={() => telephone.mute(!call.muted)}
              >
                <MicrophoneIcon off={call.muted} />
                <span>{call.muted ? texts.unmute : texts.mute}</span>
              </button>
            )}
            <button type="button" class="round hangup" onClick={() => telephone.hangUp()}>
              <HangUpIcon />
              <span>{call.phase === 'queued' ? texts.leaveQueue : texts.hangUp}</span>
            </button>
          </>
        ) : (
          !lacking &&
          !shut && (
            <button
              type="button"
              class="dial"
              disabled={entrance.state === 'looking'}
              onClick={() => (entrance.state === 'closed' ? enter() : telephone.dial())}
            >
              <CallIcon />
              <span>{entrance.state === 'closed' ? texts.tryAgain : again(call)}</span>
            </button>
          )
        )}
      </div>

      <footer class="foot">
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
function Hints({ call }: { call: Call }) {
  const back = useFresh(call.resumed);
  const hints = [
    call.until !== null && texts.drainingHelp(new Date(call.until)),
    call.resumed > 0 && back && texts.resumedHelp,
    call.deaf && texts.deafHelp,
    call.slow && texts.slowHelp,
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
  const { title, why, download, steps } = texts.certificate;
  return (
    <details class="certificate">
      <summary>{title}</summary>
      <p>{why}</p>
      <p>
        <a href={url} download>
          {download}
        </a>
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
      data-resumed={call.resumed}
    >
      {children}
    </main>
  );
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
  return call.phase === 'failed' ? texts.tryAgain : texts.callAgain;
}
