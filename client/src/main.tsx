import { render } from 'preact';
import { Door, takeToken } from './door';
import { Telephone } from './telephone';
import { App } from './ui/app';

const place = document.getElementById('app');
if (place) {
  const door = new Door();
  // On a page that cannot call (plain http) the link stays in the address bar, for whoever mends the address.
  const token = window.isSecureContext ? takeToken() : null;
  render(<App telephone={new Telephone(door)} door={door} token={token} />, place);
}
