import { render } from 'preact';
import { Telephone } from './telephone';
import { App } from './ui/app';

const place = document.getElementById('app');
if (place) render(<App telephone={new Telephone()} />, place);
