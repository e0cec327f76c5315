/** Every word of ours on the page, in one place, ready to be translated. */
import type { Browser } from './browser';
import type { Fault } from './call';
import type { Rules } from './door';
import type { LineCheck } from './linecheck';
import type { Numbers } from './telephone';

interface Explanation {
  title: string;
  /** What to do about it. */
  mend: string;
}

export const texts = {
  name: 'Hotline',
  tagline: 'A phone call with Moshi',
  what: 'Talk as you would on the phone: Moshi listens while it speaks, and you may interrupt it.',
  machine: 'You talk to a machine. What it says is made up as it goes and may be wrong.',
  /** What is kept of a call; a line that does not say keeps nothing. */
  kept: (rules: Rules | null) => {
    if (!rules || rules.keptDays === 0) return 'Nothing of the call is kept: no sound, no words.';
    return rules.keptDays === null
      ? 'The words of the call are kept on the line; its sound is not.'
      : `The words of the call are kept on the line for ${rules.keptDays === 1 ? 'a day' : `${rules.keptDays} days`}; its sound is not.`;
  },
  headphones: 'Best with headphones.',

  call: 'Call Moshi',
  callAgain: 'Call again',
  callHere: 'Call from here instead',
  tryAgain: 'Try again',
  hangUp: 'Hang up',
  mute: 'Mute',
  unmute: 'Unmute',

  moshi: 'Moshi',
  you: 'You',
  muted: 'muted',

  asking: 'Waiting for the microphone',
  askingHelp: 'Your browser asks whether this page may listen. Please allow it.',
  dialling: 'Calling',
  diallingAgain: 'Calling again',
  waiting: 'Trying again by itself',
  talking: 'Connected',
  ended: 'Call ended',
  failed: 'No call',
  attempt: (n: number) => `Attempt ${n}`,
  duration: 'Length of the call',

  queued: 'Waiting for your turn',
  position: (n: number) => (n <= 1 ? 'You are next' : `You are number ${n}`),
  estimate: (ms: number) =>
    ms < 90_000 ? 'It may take about a minute.' : `It may take about ${Math.round(ms / 60_000)} minutes.`,
  queueHelp:
    'A sound tells you when it is your turn, and the call begins by itself. Your place is kept, also when the phone locks. Nothing of what you say is sent yet.',
  leaveQueue: 'Stop waiting',

  words: 'What is said',
  noWords: 'Say hello. What is said appears here.',
  wordless: (reason: string) =>
    `This line does not write down what you say at the moment${reason === '' ? '' : ` (${reason})`}.`,
  copy: 'Copy text',
  copied: 'Copied',
  save: 'Save text',
  fileName: (date: Date) => `hotline-${date.toISOString().slice(0, 16).replace(/[:T]/g, '-')}.txt`,
  anew: 'Moshi starts anew',
  forgot: 'The line is back, but Moshi forgot',
  forgotStatus: 'Moshi forgot',
  forgotHelp:
    'The conversation could not be saved: Moshi remembers nothing of what was said. You can go on with a fresh one; what is written here stays.',
  goOn: 'Start anew',
  resumedHelp: 'The connection broke and is back. Moshi remembers everything.',
  drainingHelp: (until: Date) =>
    `This line is about to be restarted. The call can last until ${until.toLocaleTimeString('en', { timeStyle: 'short' })}.`,
  slowHelp: 'The line is slow at the moment: Moshi answers late.',
  deafHelp: 'The microphone is gone, so Moshi hears silence. Plug it in again, or connect another one.',

  check: 'Check microphone and line',
  settings: 'Settings',
  quality: { good: 'Good connection', fair: 'Fair connection', poor: 'Poor connection' },
  echoHelp: 'Moshi hears itself through your loudspeaker. Headphones would help it to listen to you.',
  saveRecording: 'Save the recording',
  sheet: {
    title: 'Sound and line',
    close: 'Done',
    sound: 'Microphone and sound',
    testMicrophone: 'Test the microphone',
    level: 'Level',
    speak: 'Say something: the bar should move.',
    heard: 'You can be heard.',
    microphone: 'Microphone',
    speaker: 'Loudspeaker',
    automatic: 'What the system uses',
    volume: 'Volume',
    tone: 'Play a tone',
    line: 'Line',
    checkLine: 'Check the line (two seconds)',
    checking: 'Checking …',
    verdict: ({ roundTripMs, jitterMs, lost, verdict }: LineCheck) =>
      `${verdict === 'good' ? 'Good' : verdict === 'fair' ? 'Fair' : 'Poor'}: ${Math.round(roundTripMs)} ms to the line and back, ${
        lost > 0
          ? `${lost} of 10 questions were not answered.`
          : jitterMs < 30
            ? 'steady.'
            : `${Math.round(jitterMs)} ms more at times.`
      }${verdict === 'poor' ? ' Moshi will answer late; another network may help.' : ''}`,
    recording: 'Recording',
    record: 'Record this call',
    stopRecording: 'Stop recording',
    recordingHelp:
      'It stays on this device: your voice on the left, Moshi’s on the right. When it ends, you can save it.',
  },
  numbers: {
    title: 'Numbers',
    copy: 'Copy report',
    copyHelp: 'For a bug report. It holds these numbers and the browser’s name, and nothing that was said.',
    rows: (n: Numbers): [string, string][] => {
      const ms = (value: number | null) => (value === null ? '–' : `${Math.round(value)} ms`);
      return [
        ['Voice to voice', ms(n.latencyMs)],
        ['To the line and back', ms(n.turnaroundMs)],
        ['Of that, the engine', ms(n.engineMs)],
        ['Engine behind by', ms(n.engineLagMs)],
        ['Jitter buffer', ms(n.bufferMs)],
        ['Buffer ran dry', `${n.underruns} times`],
        ['Caught up by faster speech', ms(n.skippedMs)],
        ['Dropped here', ms(n.droppedMs)],
        ['Sound that never came', `${n.gaps} pages`],
        ['Lost at the engine', `${n.unheardFrames} of yours, ${n.unsaidFrames} of Moshi’s`],
        ['Sent, received', `${Math.round(n.sentMs / 1000)} s, ${Math.round(n.receivedMs / 1000)} s`],
        [
          'Sample rates',
          n.contextHz === 0
            ? '–'
            : `sound ${n.contextHz} Hz, microphone ${n.microphoneHz === 0 ? 'unknown' : `${n.microphoneHz} Hz`}, line 24000 Hz`,
        ],
        ['Connections that came back', `${n.resumed}`],
      ];
    },
  },
  asked: {
    title: (who: string) => (who === '' ? 'You are asked' : `${who} asks`),
    missing: 'The question cannot be shown',
    read: 'Read aloud',
    stopReading: 'Stop reading',
    choices: 'Possible answers',
    draft: 'Your answer',
    placeholder: 'Say it in the call, or type it here.',
    add: (words: string) => `Add what you said: “${words}”`,
    send: 'Send answer',
    sending: 'Sending …',
    decline: 'I cannot answer',
    settled: {
      answered: 'Answered. Thank you! ',
      declined: 'You said that you cannot answer. Thank you.',
      expired: 'The time for an answer is over.',
    },
    help: 'You can talk it over with Moshi, which knows nothing of the question. What you say becomes a draft; only your press sends it.',
  },
  task: {
    offer: 'Make a task of this call',
    help: 'An agent of this line can do what you talked about. You see and change it first; only your press hands it over.',
    drafting: 'Reading what you said …',
    title: 'The task',
    from: 'From what you said, not from what Moshi said.',
    step: (n: number) => `Step ${n}`,
    mark: 'Look twice: something could be lost by this.',
    remove: (n: number) => `Remove step ${n}`,
    add: 'Add a step',
    look: (n: number) =>
      n === 1
        ? 'Something could be lost by one of these steps. It is marked.'
        : `Something could be lost by ${n} of these steps. They are marked.`,
    send: 'Hand over',
    sending: 'Handing over …',
    forget: 'Forget it',
  },
  execution: {
    result: 'Result',
    waits: 'It waits for an answer.',
    getsAnswer: 'Your answer is on its way.',
    asksElsewhere: 'It has a question, and waits: who is to answer gets a message with a link.',
    states: {
      pending: 'It is about to begin.',
      running: 'It is being done.',
      completed: 'Done.',
      failed: 'It failed.',
      cancelled: 'It was cancelled.',
      expired: 'It waited too long and was given up.',
    } as Record<string, string>,
  },
  updated: 'This page has a newer version.',
  reload: 'Load it',

  attribution: { before: 'Moshi by ', name: 'Kyutai', after: ', CC-BY-4.0', url: 'https://kyutai.org' },
  version: (version: string) => `Hotline ${version}`,

  certificate: {
    title: 'Does your phone or browser distrust this page?',
    why: 'The warning means only that no public authority knows this line: the connection is encrypted all the same. This line signs its own certificate. Install its certificate authority once, and the warnings end. Do it only if you know who runs this line.',
    download: 'Download the certificate authority',
    profile: 'Open the profile for iPhone and iPad',
    steps: [
      {
        system: 'iPhone, iPad',
        text: 'Open the profile in Safari and allow it. Settings › General › VPN & Device Management: install it. Then Settings › General › About › Certificate Trust Settings: switch it on. Without this, Safari makes no calls here, even if you click the warning away.',
      },
      {
        system: 'Android',
        text: 'Settings › Security & privacy › More security settings › Encryption & credentials › Install a certificate › CA certificate, then choose the download.',
      },
    ],
  },
} as const;

/** What went wrong, and what to do about it. The line's own words, if it sent any, stand below. */
export const faults: Record<Fault, Explanation> = {
  insecure: {
    title: 'No microphone over plain http',
    mend: 'Browsers give the microphone to secure pages only. Open this page with https:// in front.',
  },
  unsupported: {
    title: 'This browser cannot make calls',
    mend: 'It lacks the microphone, AudioWorklet or WebAssembly. A current Chrome, Edge, Firefox or Safari has all three; browsers inside other apps often do not.',
  },
  microphone_refused: {
    title: 'The microphone is not allowed',
    mend: 'This page may not listen, so there is nothing to send. It can be allowed again:',
  },
  microphone_absent: {
    title: 'No microphone found',
    mend: 'Plug one in or switch it on, and try again.',
  },
  microphone_busy: {
    title: 'The microphone is in use',
    mend: 'Another app or another call holds it. Close that, and try again.',
  },
  microphone_failed: {
    title: 'The microphone does not work here',
    mend: 'The browser did not say why. Close other apps that use it, reload this page, and try again.',
  },
  sound_failed: {
    title: 'The sound could not start',
    mend: 'A part of this page did not load or stopped. Reload the page, and try again.',
  },
  elsewhere: {
    title: 'You are in a call already',
    mend: 'Another tab or window of this browser has it. Go on there, or call from here instead: the call there then ends.',
  },
  taken: {
    title: 'The call went to another tab',
    mend: 'You called from another tab or window of this browser, so the call here ended.',
  },
  line_full: {
    title: 'The line is busy',
    mend: 'Somebody else is talking to Moshi. Try again in a few minutes.',
  },
  line_down: {
    title: 'The line is down',
    mend: 'Moshi does not run at the moment. Try again later, or tell whoever runs this line.',
  },
  starting: {
    title: 'Moshi is waking up',
    mend: 'It is still loading. This page calls by itself as soon as it is there.',
  },
  not_allowed: {
    title: 'This line is not open to you',
    mend: 'Ask whoever runs it for a new link.',
  },
  restarting: {
    title: 'The line is being restarted',
    mend: 'Whoever runs it is changing something. This page calls by itself as soon as it is back.',
  },
  call_in_use: {
    title: 'One moment',
    mend: 'The line still holds the broken connection. It lets go within some seconds.',
  },
  too_long: {
    title: 'The call was long enough',
    mend: 'A call on this line may last only so long. You can call again at once; Moshi starts anew.',
  },
  link_needed: {
    title: 'This line opens with a link',
    mend: 'Ask whoever runs it for one, and open it on this device. It works once it is tapped; nothing is to be typed.',
  },
  link_invalid: {
    title: 'This link opens nothing',
    mend: 'It may have been used up, taken back, or cut short when it was copied. Ask whoever sent it for a new one.',
  },
  session_over: {
    title: 'Your link has run out',
    mend: 'What it opened is closed again. Ask whoever sent it for a new one.',
  },
  ticket_invalid: {
    title: 'One moment',
    mend: 'What opens the line for this call grew old on its way. The page asks for another one.',
  },
  hung_up: {
    title: 'The line ended the call',
    mend: 'Whoever runs it hung up, or took the link back that opened it.',
  },
  call_over: {
    title: 'Your place on the line is gone',
    mend: 'The line let it go, perhaps since this page slept too long. It asks for a new one.',
  },
  refused: {
    title: 'The line refused the call',
    mend: 'Try again later, or tell whoever runs this line.',
  },
  unreachable: {
    title: 'The line does not answer',
    mend: 'Check your network and try again. If other pages load, the line itself may be down.',
  },
  no_answer: {
    title: 'Moshi does not pick up',
    mend: 'The line is there, but Moshi did not answer. Try again in a moment.',
  },
  broken: {
    title: 'The connection broke',
    mend: 'The network failed for a moment, or Moshi had to restart.',
  },
  silent: {
    title: 'Moshi fell silent',
    mend: 'No sound came for two seconds, so this call is given up for a new one.',
  },
  offline: {
    title: 'You are offline',
    mend: 'This device has no network. The call goes on when it is back.',
  },
};

/** How to allow the microphone again, by browser. */
export const allowing: Record<Browser, string> = {
  chrome:
    'Click the symbol at the left of the address, switch Microphone on, and try again. If there is none, the system’s own settings have a switch for the browser’s microphone.',
  chrome_android:
    'Tap the symbol at the left of the address, then Permissions › Microphone › Allow, and try again. If it is not there: Android’s Settings › Apps › Chrome › Permissions › Microphone.',
  edge: 'Click the padlock at the left of the address, set Microphone to Allow, and try again. On Windows also look at Settings › Privacy & security › Microphone.',
  firefox:
    'Click the crossed-out microphone at the left of the address, remove “Blocked”, and try again. Firefox then asks once more.',
  firefox_android:
    'Tap the padlock at the left of the address, then the microphone, so that it says “Allowed”, and try again.',
  safari:
    'Choose Safari › Settings for This Website in the menu, set Microphone to Allow, and try again. On a Mac also look at System Settings › Privacy & Security › Microphone.',
  safari_ios:
    'Tap the symbol at the left of the address, then Website Settings › Microphone › Allow, and try again. If it stays like this: Settings › Privacy & Security › Microphone.',
  other:
    'Tap the symbol beside the address, allow the microphone for this page, and try again. If it stays like this, look at the browser’s microphone permission in your system’s settings.',
};
