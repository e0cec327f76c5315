/** The few pictures on the buttons. They take the colour of the text; what they mean is said beside them. */
import type { ComponentChildren } from 'preact';

function Icon({ children }: { children: ComponentChildren }) {
  return (
    <svg
      class="icon"
      viewBox="0 0 24 24"
      aria-hidden="true"
      fill="none"
      stroke="currentColor"
      stroke-width="1.8"
      stroke-linecap="round"
      stroke-linejoin="round"
    >
      {children}
    </svg>
  );
}

const HANDSET =
  'M5.2 3.5h2.6a1.5 1.5 0 0 1 1.5 1.2l.6 2.9a1.5 1.5 0 0 1-.5 1.4l-1.6 1.4a12 12 0 0 0 5.8 5.8l1.4-1.6a1.5 1.5 0 0 1 1.4-.5l2.9.6a1.5 1.5 0 0 1 1.2 1.5v2.6a1.7 1.7 0 0 1-1.8 1.7A15.6 15.6 0 0 1 3.5 5.3a1.7 1.7 0 0 1 1.7-1.8Z';

export const CallIcon = () => (
  <Icon>
    <path d={HANDSET} />
  </Icon>
);

export const HangUpIcon = () => (
  <Icon>
    <path d={HANDSET} transform="rotate(135 12 12) translate(-.6 -.6) scale(1.05)" />
  </Icon>
);

export const SettingsIcon = () => (
  <Icon>
    <path d="M4 7h9M19 7h1M4 17h1M11 17h9" />
    <circle cx="16" cy="7" r="2.6" />
    <circle cx="8" cy="17" r="2.6" />
  </Icon>
);

export const MicrophoneIcon = ({ off }: { off: boolean }) => (
  <Icon>
    <rect x="9" y="3" width="6" height="11.5" rx="3" />
    <path d="M5.5 11.5a6.5 6.5 0 0 0 13 0M12 18v3" />
    {off && <path d="M4 3.5l16 17" />}
  </Icon>
);
