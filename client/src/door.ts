/**
 * The door of the line, as the orchestrator keeps it: links, places, questions. Speaks HTTP and remembers the session;
 * what the page does about it is telephone.ts's and the screen's business.
 *
 * A link's token stands in the URL's fragment, which no server and no preview ever sees. It is redeemed by POST for a
 * key, which lives in this origin's own storage and travels as a bearer header (DESIGN.md, "Safety": no cookies).
 */
import { type Fault, type Place, refusal } from './call';

export type Purpose = 'talk' | 'answer' | 'view';

/** What a link opened. */
export interface Session {
  key: string;
  /** ms since 1970. */
  expires: number;
  purpose: Purpose;
  question: string | null;
  execution: string | null;
  /** SHA-256 of the token: the same link, tapped again, finds the session that it opened. */
  link: string;
}

/** What the line says about itself before anybody calls. */
export interface Rules {
  access: 'open' | 'links';
  /** For how many days what was said is kept; 0: it is not; null: the line does not say. */
  keptDays: number | null;
  /** The line listens for the caller's words. */
  words: boolean;
  /** An agent of the line carries out what callers hand over. */
  tasks: boolean;
}

/** May one call from here? */
export type Entrance =
  | { state: 'looking' }
  /** `rules`: null on a line that knows neither links nor places, where one simply calls. */
  | { state: 'open'; rules: Rules | null; session: Session | null }
  | { state: 'closed'; fault: Fault; message: string };

/** A call as the line answers for it. */
export type Admission =
  /** The line keeps no places: the engine itself says whether there is room. */
  | { state: 'direct' }
  | { state: 'ready'; id: string; ticket: Ticket }
  | { state: 'waiting'; id: string; place: Place };

export interface Ticket {
  word: string;
  /** ms since 1970. */
  expires: number;
}

export interface Question {
  id: string;
  question: string;
  context: string;
  choices: string[];
  askedBy: string;
  state: 'open' | 'answered' | 'declined' | 'expired';
  /** ms since 1970; null: it waits as long as it must. */
  deadline: number | null;
  answer: string | null;
  /** What runs because of it, if the line says so. */
  execution: string | null;
}

export interface Execution {
  id: string;
  state: string;
  instruction: string;
  /** What it asked last. */
  question: string | null;
  result: string | null;
  error: string | null;
}

/** What a call could become: an instruction, step by step, that is only shown. */
export interface Proposal {
  steps: Step[];
}

export interface Step {
  text: string;
  /** Something could be lost by it. */
  destructive: boolean;
}

/** The door said no, or said nothing (status 0). */
export class Refused extends Error {
  readonly status: number;
  readonly code: string;
  readonly fault: Fault;

  constructor(status: number, code: string, message: string, fault: Fault) {
    super(message);
    this.status = status;
    this.code = code;
    this.fault = fault;
  }
}

const STORED = 'hotline.session';
const PENDING = 'hotline.link';
const TIMEOUT_MS = 10_000;
/** An agent drafts as long as the line lets it. */
const DRAFTING_MS = 65_000;
/** A token is base64url; chat apps like to take the full stop behind a link for a part of it. */
const FRAGMENT = /^#t=([A-Za-z0-9_-]*)/;

/** Takes the token out of the address bar, so that nobody reads it over a shoulder or shares it by accident. */
export function takeToken(
  location: Location = window.location,
  history: History = window.history,
  pending: Storage = window.sessionStorage,
): string | null {
  const token = FRAGMENT.exec(location.hash)?.[1];
  if (token === undefined) return pending.getItem(PENDING);
  history.replaceState(history.state, '', location.pathname + location.search);
  // Until the line answered: a reload in a tunnel must not lose the link.
  pending.setItem(PENDING, token);
  return token;
}

export class Door {
  readonly #fetch: typeof fetch;
  readonly #stored: Storage;
  readonly #pending: Storage;
  #session: Session | null;
  /** The line is from before links and places: there is no door to knock at. */
  #doorless = false;
  /** Whether one may call from here; who calls before that is known waits for it. */
  #entrance: Promise<Entrance> | null = null;

  constructor(
    get: typeof fetch = (...request) => window.fetch(...request),
    stored: Storage = window.localStorage,
    pending: Storage = window.sessionStorage,
  ) {
    this.#fetch = get;
    this.#stored = stored;
    this.#pending = pending;
    this.#session = readSession(stored.getItem(STORED));
  }

  get session(): Session | null {
    return this.#session;
  }

  /** Finds out whether one may call, and redeems `token` if the page was opened by a link. */
  enter(token: string | null, now = Date.now()): Promise<Entrance> {
    this.#entrance = this.#enter(token, now);
    return this.#entrance;
  }

  async #enter(token: string | null, now: number): Promise<Entrance> {
    const rules = await this.#rules();
    if (token === '') return { state: 'closed', fault: 'link_invalid', message: '' };
    if (token !== null) {
      try {
        await this.#redeem(token);
      } catch (error) {
        const refused = known(error);
        // A line without links answers 404 in other words: then the link's address alone is enough.
        const without = refused.status === 404 && refused.code !== 'link_invalid';
        if (!without) {
          if (refused.fault !== 'unreachable') this.#pending.removeItem(PENDING);
          return { state: 'closed', fault: refused.fault, message: refused.message };
        }
      }
      this.#pending.removeItem(PENDING);
    }
    const session = this.#session;
    if (session && session.expires <= now) {
      this.forget();
      if (rules?.access !== 'open') return { state: 'closed', fault: 'session_over', message: '' };
    }
    if (rules?.access === 'links' && !this.#session)
      return { state: 'closed', fault: 'link_needed', message: '' };
    return { state: 'open', rules, session: this.#session };
  }

  /** Forgets what a link opened, on this device only. */
  forget(): void {
    this.#session = null;
    this.#stored.removeItem(STORED);
  }

  async #redeem(token: string): Promise<void> {
    const link = await digest(token);
    if (this.#session?.link === link && this.#session.expires > Date.now()) return;
    const body = await this.#ask('POST', '/api/links/redeem', { token });
    const session: Session = {
      key: text(body.key) ?? '',
      expires: time(body.expires_at) ?? Number.POSITIVE_INFINITY,
      purpose: body.purpose === 'answer' || body.purpose === 'view' ? body.purpose : 'talk',
      question: text(body.question_id),
      execution: text(body.execution_id),
      link,
    };
    this.#session = session;
    this.#stored.setItem(STORED, JSON.stringify(session));
  }

  async #rules(): Promise<Rules | null> {
    try {
      const body = await this.#ask('GET', '/api/line');
      const kept = object(body.transcript);
      return {
        access: body.access === 'links' ? 'links' : 'open',
        keptDays: kept.kept === true ? (number(kept.days) ?? null) : kept.kept === false ? 0 : null,
        words: body.words === true,
        tasks: body.tasks === true,
      };
    } catch (error) {
      this.#doorless = known(error).status === 404;
      return null;
    }
  }

  /** Asks for a place. */
  async call(): Promise<Admission> {
    const entrance = await this.#entrance;
    if (entrance?.state === 'closed') throw new Refused(0, '', entrance.message, entrance.fault);
    if (this.#doorless) return { state: 'direct' };
    const question = this.#session?.question;
    try {
      return admission(await this.#ask('POST', '/api/calls', question ? { question_id: question } : {}));
    } catch (error) {
      const { status, code } = known(error);
      if ((status === 404 && code !== 'call_unknown') || status === 405) return { state: 'direct' };
      throw error;
    }
  }

  /** A new ticket for the same call. */
  async ticket(call: string): Promise<Ticket> {
    return ticket(await this.#ask('POST', `/api/calls/${encodeURIComponent(call)}/ticket`)) ?? never();
  }

  /** Gives the place back, or hangs up. Works while the page is being closed, too. */
  leave(call: string): void {
    void this.#send('DELETE', `/api/calls/${encodeURIComponent(call)}`, undefined, { keepalive: true }).catch(
      () => undefined,
    );
  }

  /** The stream of what happens to a call, or to an execution. */
  events(path: string, lastId: string, signal: AbortSignal): Promise<Response> {
    const headers: Record<string, string> = { Accept: 'text/event-stream' };
    if (lastId !== '') headers['Last-Event-ID'] = lastId;
    return this.#send('GET', path, undefined, { headers, signal });
  }

  async question(id: string): Promise<Question> {
    return question(await this.#ask('GET', `/api/questions/${encodeURIComponent(id)}`));
  }

  /** `once`: the same press, sent again after a broken connection, is one answer. */
  async answer(id: string, words: string, once: string): Promise<Question> {
    const path = `/api/questions/${encodeURIComponent(id)}/answer`;
    return question(await this.#ask('POST', path, { text: words, idempotency_key: once }));
  }

  async decline(id: string): Promise<Question> {
    return question(await this.#ask('POST', `/api/questions/${encodeURIComponent(id)}/decline`));
  }

  /** Drafts an instruction from what the caller said in a call. Nothing is carried out. */
  async propose(call: string): Promise<Proposal> {
    return proposal(await this.#ask('POST', '/api/instructions/propose', { call_id: call }, DRAFTING_MS));
  }

  /** Hands an instruction over. `once`: the same press, sent again, is the same task. */
  async handOver(instruction: string, once: string): Promise<Execution> {
    return execution(await this.#ask('POST', '/api/executions', { instruction, idempotency_key: once }));
  }

  async execution(id: string): Promise<Execution> {
    return execution(await this.#ask('GET', `/api/executions/${encodeURIComponent(id)}`));
  }

  async #ask(
    method: string,
    path: string,
    body?: unknown,
    patience = TIMEOUT_MS,
  ): Promise<Record<string, unknown>> {
    const response = await this.#send(method, path, body, { signal: AbortSignal.timeout(patience) });
    return object(await response.json().catch(() => null));
  }

  async #send(method: string, path: string, body: unknown, more: RequestInit): Promise<Response> {
    const headers = new Headers(more.headers);
    if (this.#session) headers.set('Authorization', `Bearer ${this.#session.key}`);
    if (body !== undefined) headers.set('Content-Type', 'application/json');
    let response: Response;
    try {
      response = await this.#fetch(path, {
        ...more,
        method,
        headers,
        cache: 'no-store',
        credentials: 'omit',
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      });
    } catch (error) {
      throw new Refused(0, 'unreachable', '', error instanceof Refused ? error.fault : 'unreachable');
    }
    if (response.ok) return response;
    const problem = object(await response.json().catch(() => null));
    throw this.#refused(response.status, problem);
  }

  #refused(status: number, problem: Record<string, unknown>): Refused {
    const code = text(problem.code) ?? '';
    const had = this.#session !== null;
    // A key that the line does not know any more is of no use to anybody.
    if (status === 401) this.forget();
    const words = text(problem.detail) ?? text(problem.title) ?? '';
    return new Refused(status, code, words, faultOf(status, code, had));
  }
}

function faultOf(status: number, code: string, known: boolean): Fault {
  if (code === 'link_invalid' || code === 'call_over') return code;
  // A line that was restarted does not know our call any more.
  if (code === 'call_unknown') return 'call_over';
  if (status === 401) return known ? 'session_over' : 'link_needed';
  if (status === 403) return 'not_allowed';
  const told = refusal(code);
  if (told !== 'refused') return told;
  return status >= 500 && code === '' ? 'unreachable' : 'refused';
}

/** Anything that was thrown, as a refusal. */
export function known(error: unknown): Refused {
  return error instanceof Refused ? error : new Refused(0, 'unreachable', '', 'unreachable');
}

export function admission(body: Record<string, unknown>): Admission {
  const id = text(body.id) ?? never();
  if (body.state === 'waiting') return { state: 'waiting', id, place: place(body) };
  return { state: 'ready', id, ticket: ticket(body) ?? never() };
}

export function place(body: Record<string, unknown>): Place {
  const seconds = number(body.estimated_wait_s);
  return { position: number(body.position), waitMs: seconds === null ? null : seconds * 1000 };
}

/** How long a ticket lasts when the line does not say, ms. */
const TICKET_MS = 25_000;

export function ticket(body: Record<string, unknown>): Ticket | null {
  const word = text(body.ticket);
  return word === null ? null : { word, expires: time(body.ticket_expires_at) ?? Date.now() + TICKET_MS };
}

export function question(body: Record<string, unknown>): Question {
  const state = body.state;
  return {
    id: text(body.id) ?? '',
    question: text(body.question) ?? '',
    context: text(body.context) ?? '',
    choices: Array.isArray(body.choices) ? body.choices.filter((choice) => typeof choice === 'string') : [],
    askedBy: text(body.asked_by) ?? '',
    state: state === 'answered' || state === 'declined' || state === 'expired' ? state : 'open',
    deadline: time(body.deadline),
    answer: text(body.answer) ?? text(object(body.answer).text),
    execution: text(body.execution_id),
  };
}

export function execution(body: Record<string, unknown>): Execution {
  return {
    id: text(body.id) ?? '',
    state: text(body.state) ?? '',
    instruction: text(body.instruction) ?? '',
    question: text(body.question_id),
    result: text(body.result),
    error: text(body.error) ?? text(object(body.error).detail),
  };
}

export function proposal(body: Record<string, unknown>): Proposal {
  const steps = Array.isArray(body.steps) ? body.steps.map(object) : [];
  return {
    steps: steps.map((step) => ({ text: text(step.text) ?? '', destructive: step.destructive === true })),
  };
}

function readSession(stored: string | null): Session | null {
  if (stored === null) return null;
  try {
    const { key, expires, purpose, question, execution, link } = object(JSON.parse(stored));
    if (typeof key !== 'string' || key === '') return null;
    return {
      key,
      // JSON has no infinity: null was one.
      expires: typeof expires === 'number' ? expires : Number.POSITIVE_INFINITY,
      purpose: purpose === 'answer' || purpose === 'view' ? purpose : 'talk',
      question: text(question),
      execution: text(execution),
      link: text(link) ?? '',
    };
  } catch {
    return null;
  }
}

async function digest(token: string): Promise<string> {
  const bytes = await crypto.subtle.digest('SHA-256', new TextEncoder().encode(token));
  return [...new Uint8Array(bytes)].map((byte) => byte.toString(16).padStart(2, '0')).join('');
}

function never(): never {
  throw new Refused(
    0,
    'nonsense',
    'The line answered something that this page does not understand.',
    'refused',
  );
}

function object(value: unknown): Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
    ? (value as Record<string, unknown>)
    : {};
}

function text(value: unknown): string | null {
  return typeof value === 'string' && value !== '' ? value : null;
}

function number(value: unknown): number | null {
  return typeof value === 'number' && Number.isFinite(value) ? value : null;
}

/** ISO 8601 to ms since 1970. */
function time(value: unknown): number | null {
  const ms = typeof value === 'string' ? Date.parse(value) : Number.NaN;
  return Number.isNaN(ms) ? null : ms;
}
