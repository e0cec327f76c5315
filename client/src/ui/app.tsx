/** The screen: shows the state of the call, and nothing that the state does not say. */
import type { ComponentChildren } from 'preact';
import { useEffect, useRef, useState } from 'preact/hooks';
import { anew, type Call, type Fault, idle, live, type Trouble } from '../call';
import { type About, about, unknown } from '../line';
import { missing } from '../microphone';
import type { Telephone } from '../telephone';
import { faults, texts } from '../texts';
import { CallIcon, HangUpIcon, MicrophoneIcon } from './icons';
import { Words } from './transcript';
import { Voices } from './voices';

/** How often the numbers and the timer are brought up to date, ms. */
const NUMBERS_MS = 200;
/** How long news stay on the screen; the words keep the mark, ms. */
const NEWS_MS = 20_000;

export function App({ telephone }: { telephone: Telephone }) {
  const [, changed] = useState(0);
  useEffect(() => telephone.subscribe(() => changed((n) => n + 1)), [telephone]);
  const line = useLine();
  const levels = useRef(() => telephone.levels).current;
  const call = telephone.call;
  // Told before anybody presses a button that cannot work.
  const lacking = missing();
  const controls = useRef<HTMLDivElement>(null);
  const busy = live(call);
  // The pressed button is gone, and with it the keyboard's place on the page: put it on the button that took its place.
  useEffect(() => {
    if (document.activeElement === document.body && call.phase !== 'idle')
      controls.current?.querySelector<HTMLElement>('.hangup, .dial')?.focus({ preventScroll: true });
  }, [busy]);
  const trouble: Trouble | null = lacking ? { fault: lacking, message: '' } : call.trouble;

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
        {trouble && <Notice trouble={trouble} call={call} />}
        {call.phase === 'talking' && <Hints call={call} />}
        {telephone.transcript.length > 0 && <Words transcript={telephone.transcript} />}
      </div>

      <div class="controls" ref={controls}>
        {busy ? (
          <>
            <button
              type="button"
              class="round"
              data-on={call.muted}
              onClick={() => telephone.mute(!call.muted)}
            >
              <MicrophoneIcon off={call.muted} />
              <span>{call.muted ? texts.unmute : texts.mute}</span>
            </button>
            <button type="button" class="round hangup" onClick={() => telephone.hangUp()}>
              <HangUpIcon />
              <span>{texts.hangUp}</span>
            </button>
          </>
        ) : (
          !lacking && (
            <button type="button" class="dial" onClick={() => telephone.dial()}>
              <CallIcon />
              <span>{again(call)}</span>
            </button>
          )
        )}
      </div>

      <footer class="foot">
        {!live(call) && (
          <p>
            {texts.machine} {texts.headphones}
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
      {trouble.message && <p class="told">{trouble.message}</p>}
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

/** What the caller should know while talking. */
function Hints({ call }: { call: Call }) {
  const fresh = useFresh(call.conversations);
  const hints = [
    anew(call) && fresh && texts.anewHelp,
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
    case 'dialling':
      return call.conversations > 0 ? texts.diallingAgain : texts.dialling;
    case 'waiting':
      return call.trouble ? faults[call.trouble.fault].title : texts.waiting;
    case 'talking':
      return texts.talking;
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

/** 75,000 ms as 1:15, and hours only if there are any. */
export function clock(ms: number): string {
  const seconds = Math.floor(ms / 1000);
  const two = (n: number) => String(n).padStart(2, '0');
  const minutes = Math.floor(seconds / 60);
  return minutes < 60
    ? `${minutes}:${two(seconds % 60)}`
    : `${Math.floor(minutes / 60)}:${two(minutes % 60)}:${two(seconds % 60)}`;
}
