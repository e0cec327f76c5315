/** What one may want to set, try or know: microphone, sound, line, numbers. A dialog, so that Escape and focus work. */
import { useEffect, useRef, useState } from 'preact/hooks';
import type { Fault } from '../call';
import { checkLine, type LineCheck } from '../linecheck';
import { Rehearsal, Unheard } from '../rehearsal';
import { canChooseSpeaker } from '../speaker';
import type { Telephone } from '../telephone';
import { faults, texts } from '../texts';
import { NumbersPanel } from './numbers';
import { live } from '../call';

/** How often the meter moves, ms. */
const METER_MS = 60;
/** Loud enough to be understood (RMS). */
const HEARD = 0.02;

interface Props {
  telephone: Telephone;
  version: string | null;
  close: () => void;
}

export function Sheet({ telephone, version, close }: Props) {
  const dialog = useRef<HTMLDialogElement>(null);
  const calling = live(telephone.call);
  useEffect(() => dialog.current?.showModal(), []);
  return (
    <dialog class="sheet" ref={dialog} aria-labelledby="sheet-title" onClose={close}>
      <div class="sheet-top">
        <h2 id="sheet-title">{texts.sheet.title}</h2>
        <button type="button" class="link" onClick={() => dialog.current?.close()}>
          {texts.sheet.close}
        </button>
      </div>
      <Devices telephone={telephone} calling={calling} />
      <Line />
      {calling && telephone.recording !== null && <Recording telephone={telephone} />}
      <NumbersPanel telephone={telephone} version={version} />
    </dialog>
  );
}

function Devices({ telephone, calling }: { telephone: Telephone; calling: boolean }) {
  const [rehearsal, setRehearsal] = useState<Rehearsal | null>(null);
  const [trouble, setTrouble] = useState<Fault | null>(null);
  const [devices, refresh] = useDevices();
  const { settings } = telephone;
  useEffect(() => () => rehearsal?.close(), [rehearsal]);

  const begin = () => {
    setTrouble(null);
    Rehearsal.begin(settings.microphone, settings.speaker).then(
      (begun) => {
        setRehearsal(begun);
        refresh();
      },
      (error: unknown) => setTrouble(error instanceof Unheard ? error.fault : 'microphone_failed'),
    );
  };
  const level = calling ? () => telephone.levels.you : rehearsal ? () => rehearsal.level : null;
  return (
    <section aria-labelledby="sheet-sound">
      <h3 id="sheet-sound">{texts.sheet.sound}</h3>
      {level ? (
        <Meter level={level} />
      ) : (
        <button type="button" class="plain" onClick={begin}>
          {texts.sheet.testMicrophone}
        </button>
      )}
      {trouble && (
        <div class="notice" role="alert" data-fault={trouble}>
          <h4>{faults[trouble].title}</h4>
          <p>{faults[trouble].mend}</p>
        </div>
      )}
      <Choice
        label={texts.sheet.microphone}
        devices={devices.filter(({ kind }) => kind === 'audioinput')}
        chosen={settings.microphone}
        choose={(device) => {
          telephone.chooseMicrophone(device);
          rehearsal?.chooseMicrophone(device);
        }}
      />
      {canChooseSpeaker() && (
        <Choice
          label={texts.sheet.speaker}
          devices={devices.filter(({ kind }) => kind === 'audiooutput')}
          chosen={settings.speaker}
          choose={(device) => {
            telephone.chooseSpeaker(device);
            rehearsal?.chooseSpeaker(device);
          }}
        />
      )}
      <label class="field">
        <span>{texts.sheet.volume}</span>
        <input
          type="range"
          min="0"
          max="100"
          step="5"
          value={Math.round(settings.volume * 100)}
          onInput={({ currentTarget }) => {
            telephone.volume = Number(currentTarget.value) / 100;
          }}
        />
      </label>
      {rehearsal && !calling && (
        <button type="button" class="plain" onClick={() => rehearsal.tone(settings.volume)}>
          {texts.sheet.tone}
        </button>
      )}
    </section>
  );
}

function Meter({ level }: { level: () => number }) {
  const meter = useRef<HTMLMeterElement>(null);
  const [heard, setHeard] = useState(false);
  useEffect(() => {
    const ticking = setInterval(() => {
      const now = level();
      if (meter.current) meter.current.value = Math.min(1, Math.sqrt(now) * 1.8);
      if (now > HEARD) setHeard(true);
    }, METER_MS);
    return () => clearInterval(ticking);
  }, [level]);
  return (
    <div class="field">
      <label for="sheet-level">{texts.sheet.level}</label>
      <meter id="sheet-level" ref={meter} min="0" max="1" value="0" />
      <p role="status" class="small">
        {heard ? texts.sheet.heard : texts.sheet.speak}
      </p>
    </div>
  );
}

interface ChoiceProps {
  label: string;
  devices: MediaDeviceInfo[];
  chosen: string | null;
  choose: (device: string | null) => void;
}

/** Only where there is something to choose from, and names to choose by: browsers tell them after the permission. */
function Choice({ label, devices, chosen, choose }: ChoiceProps) {
  const named = devices.filter(
    ({ deviceId, label: name }) => deviceId !== '' && deviceId !== 'default' && name !== '',
  );
  if (named.length === 0) return null;
  return (
    <label class="field">
      <span>{label}</span>
      <select
        value={named.some(({ deviceId }) => deviceId === chosen) ? (chosen ?? '') : ''}
        onChange={({ currentTarget }) => choose(currentTarget.value === '' ? null : currentTarget.value)}
      >
        <option value="">{texts.sheet.automatic}</option>
        {named.map(({ deviceId, label: name }) => (
          <option key={deviceId} value={deviceId}>
            {name}
          </option>
        ))}
      </select>
    </label>
  );
}

function Line() {
  const [state, setState] = useState<'idle' | 'running' | 'silent' | LineCheck>('idle');
  const run = () => {
    setState('running');
    checkLine().then(setState, () => setState('silent'));
  };
  return (
    <section aria-labelledby="sheet-line">
      <h3 id="sheet-line">{texts.sheet.line}</h3>
      <button type="button" class="plain" disabled={state === 'running'} onClick={run}>
        {state === 'running' ? texts.sheet.checking : texts.sheet.checkLine}
      </button>
      <p role="status" class="linecheck">
        {state === 'silent' && faults.unreachable.title}
        {typeof state === 'object' && texts.sheet.verdict(state)}
      </p>
    </section>
  );
}

function Recording({ telephone }: { telephone: Telephone }) {
  return (
    <section aria-labelledby="sheet-recording">
      <h3 id="sheet-recording">{texts.sheet.recording}</h3>
      <button
        type="button"
        class="plain"
        aria-pressed={telephone.recording === true}
        onClick={() => telephone.record(telephone.recording !== true)}
      >
        {telephone.recording === true ? texts.sheet.stopRecording : texts.sheet.record}
      </button>
      <p class="small">{texts.sheet.recordingHelp}</p>
    </section>
  );
}

function useDevices(): [MediaDeviceInfo[], () => void] {
  const [devices, setDevices] = useState<MediaDeviceInfo[]>([]);
  const refresh = () => void navigator.mediaDevices.enumerateDevices().then(setDevices);
  useEffect(() => {
    refresh();
    navigator.mediaDevices.addEventListener('devicechange', refresh);
    return () => navigator.mediaDevices.removeEventListener('devicechange', refresh);
  }, []);
  return [devices, refresh];
}
