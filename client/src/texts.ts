/** Every word of ours on the page, in one place, ready to be translated. */
import type { Fault } from './call';

interface Explanation {
  title: string;
  /** What to do about it. */
  mend: string;
}

export const texts = {
  name: 'Hotline',
  tagline: 'A phone call with Moshi',
  what: 'Talk as you would on the phone: Moshi listens while it speaks, and you may interrupt it.',
  machine:
    'You talk to a machine. What it says is made up as it goes and may be wrong. This page keeps nothing of the call.',
  headphones: 'Best with headphones.',

  call: 'Call Moshi',
  callAgain: 'Call again',
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

  words: 'What Moshi says',
  noWords: 'Say hello. Moshi’s words appear here.',
  anew: 'Moshi starts anew',
  anewHelp: 'The line is back. Moshi starts anew: it remembers nothing of what was said before.',
  slowHelp: 'The line is slow at the moment: Moshi answers late.',
  deafHelp: 'The microphone is gone, so Moshi hears silence. Plug it in again, or connect another one.',

  attribution: { before: 'Moshi by ', name: 'Kyutai', after: ', CC-BY-4.0', url: 'https://kyutai.org' },
  version: (version: string) => `Hotline ${version}`,

  certificate: {
    title: 'Does your phone or browser distrust this page?',
    why: 'This line signs its own certificate. Install its certificate authority once, and the warnings end. Do it only if you know who runs this line.',
    download: 'Download the certificate authority',
    steps: [
      {
        system: 'iPhone, iPad',
        text: 'Open the download in Safari and allow the profile. Settings › General › VPN & Device Management: install it. Then Settings › General › About › Certificate Trust Settings: switch it on. Without this, Safari makes no calls here.',
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
    mend: 'Tap the symbol beside the address, allow the microphone for this page, and try again. If it stays like this, look at the microphone permission of the browser itself in your system’s settings.',
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
