/** Sessions: the one a school opens the page with, the one this page makes itself, and the REST calls. */

/**
 * @typedef {{url: string, token: string, id: string | null, tutorId: number | null}} Session
 * `id` and `tutorId` are null where a school made the session: this page can't make another.
 * @typedef {{id: number, name: string, language: string, greeting: string, languages: string[],
 *   listens: string[], speaks: string[], missing_speech: string}} Tutor
 */

const STORED = 'classroom.session';
const OWN = 'classroom.own';
const LOCK = 'classroom.session.';
/** So many sessions of its own a browser remembers; older ones will have expired. */
const MOST = 20;

/** A refusal of the REST API: `code` as in the server's errors, `unreachable` where none came. */
export class ApiError extends Error {
  /** @param {{status: number, code: string, detail: string, retryAfter: number}} answer */
  constructor({ status, code, detail, retryAfter }) {
    super(detail);
    Object.assign(this, { status, code, retryAfter });
  }
}

/** The tutors of this server. @returns {Promise<Tutor[]>} */
export async function listTutors() {
  return (await call('v1/tutors')).tutors;
}

/** What runs where, e.g. `{llm: 'extractive'}`; empty where the server does not say. */
export async function engines() {
  return (await call('health')).engines ?? {};
}

/** How far the models are: `{ready, stage, done, total}`. */
export async function readiness() {
  // While it loads, the answer is a 503 whose body is what we ask for.
  const response = await request('ready');
  const body = await response.json().catch(() => ({}));
  return { ready: response.ok, stage: '', done: 0, total: 0, ...body };
}

/** Makes a session with a tutor and keeps it for reloads. @param {number} tutorId @returns {Promise<Session>} */
export async function createSession(tutorId) {
  const create = () => call('v1/sessions', 'POST', { tutor_id: tutorId, student_id: 1 });
  const made = await create().catch(async (error) => {
    if (error.code !== 'session_limit' || !(await endThoseOfClosedTabs())) throw error;
    return create();
  });
  const session = { url: made.engine_url, token: made.engine_token, id: made.session_id, tutorId };
  store(session);
  remember([...remembered(), session.id].slice(-MOST));
  hold(session.id);
  return session;
}

/** Ends a session that this page made; one of a school stays the school's. @param {Session} session */
export async function endSession(session) {
  forget(session);
  if (!session.id) return;
  await call(`v1/sessions/${session.id}`, 'DELETE').catch(() => {}); // It may have ended already.
}

/**
 * The session in the address's fragment (`#engine_url=…&token=…`), which leaves the address bar and
 * the history at once; otherwise the one kept from before a reload; otherwise null.
 * @returns {Session | null}
 * @throws {TypeError} the fragment is not complete
 */
export function givenSession() {
  const given = new URLSearchParams(location.hash.slice(1));
  if (!given.has('engine_url') && !given.has('token')) {
    const kept = stored();
    if (kept?.id) hold(kept.id);
    return kept;
  }
  history.replaceState(null, '', location.pathname + location.search);
  const url = new URL(given.get('engine_url') ?? '');
  if (!/^wss?:$/.test(url.protocol) || !given.get('token')) throw new TypeError('not a session');
  const session = { url: url.href, token: given.get('token'), id: null, tutorId: null };
  store(session);
  return session;
}

/**
 * A passage of the course, and what stands before and after it.
 * @param {Session} session @param {string} url a source's
 * @throws {ApiError}
 */
export function readPassage({ id, token }, url) {
  // The page stands where the server's own addresses begin, which may be below a school's.
  const path = `./${url.replace(/^\/+/, '')}?session_id=${encodeURIComponent(id)}`;
  return call(path, 'GET', undefined, { Authorization: `Bearer ${token}` });
}

/** Forgets a session that has ended. @param {Session} session */
export function forget(session) {
  attempt(() => sessionStorage.removeItem(STORED));
  remember(remembered().filter((id) => id !== session.id));
}

/**
 * Ends sessions of tabs that were closed; gives how many there were. Only for want of a seat: a tab that
 * is being reloaded, or that the browser has put to sleep, looks closed and comes back.
 */
async function endThoseOfClosedTabs() {
  const known = remembered(); // those of before: another tab may be making one, and hold it a moment later
  const { held = [] } = (await navigator.locks?.query().catch(() => null)) ?? { held: null };
  if (!held) return 0;
  const alive = new Set(held.map((lock) => lock.name));
  const gone = known.filter((id) => !alive.has(LOCK + id));
  remember(remembered().filter((id) => !gone.includes(id)));
  await Promise.allSettled(gone.map((id) => call(`v1/sessions/${id}`, 'DELETE')));
  return gone.length;
}

/** A tab holds a lock named after its session while it lives. */
function hold(id) {
  navigator.locks?.request(LOCK + id, { mode: 'shared' }, () => new Promise(() => {}));
}

function stored() {
  return attempt(() => JSON.parse(sessionStorage.getItem(STORED)));
}

function store(session) {
  attempt(() => sessionStorage.setItem(STORED, JSON.stringify(session)));
}

function remembered() {
  return attempt(() => JSON.parse(localStorage.getItem(OWN))) ?? [];
}

function remember(ids) {
  attempt(() => localStorage.setItem(OWN, JSON.stringify(ids)));
}

/** Storage may be blocked by the browser; the page then works until it is reloaded. */
function attempt(use) {
  try {
    return use();
  } catch {
    return null;
  }
}

async function call(path, method = 'GET', body = undefined, more = {}) {
  const response = await request(path, method, body, more);
  if (response.status === 204) return null;
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  throw new ApiError({
    status: response.status,
    code: answer.code ?? 'unknown',
    detail: typeof answer.detail === 'string' ? answer.detail : response.statusText,
    retryAfter: Number(response.headers.get('Retry-After')) || 1,
  });
}

async function request(path, method = 'GET', body = undefined, more = {}) {
  const headers = { Accept: 'application/json', ...more };
  if (body) headers['Content-Type'] = 'application/json';
  try {
    return await fetch(path, { method, headers, body: body && JSON.stringify(body), cache: 'no-store' });
  } catch {
    throw new ApiError({ status: 0, code: 'unreachable', detail: 'unreachable', retryAfter: 2 });
  }
}
