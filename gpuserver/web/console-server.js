/** What the console asks of the server: with the management key, each call with a limit of time. */

/**
 * @typedef {{id: string, kind: string, provider: string, model: string, state: string, stage: string | null,
 *   share: number | null, problem: string | null, pinned: boolean, tutors: {id: number, name: string}[],
 *   running: number, waiting: number, memory_mb: number, gpu_memory_mb: Record<string, number>,
 *   loaded_at: string | null, idle_seconds: number, load_seconds: number}} Model
 * @typedef {{kind: string, provider: string, model: string}} Wish
 */

const STORED = 'console.key';
const SECONDS = 15;

let key = recall();

/** The server's refusal; `status` is 0 where nothing answers. */
export class Refusal extends Error {
  /** @param {number} status @param {string} [sentence] @param {{code?: string, detail_zh?: string}} [body] */
  constructor(status, sentence = '', { code = '', detail_zh: chinese = '' } = {}) {
    super(sentence);
    Object.assign(this, { status, code, chinese });
  }
}

/** The key in use; '' where there is none. */
export function keyInUse() {
  return key;
}

/** The header that carries the key. @returns {Record<string, string>} */
export function bearer() {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

/** Uses a key from now on, in this tab only; '' forgets it. @param {string} to */
export function setKey(to) {
  key = to;
  try {
    if (to) sessionStorage.setItem(STORED, to);
    else sessionStorage.removeItem(STORED);
  } catch {
    // Where the browser stores nothing, a reload asks for it again.
  }
}

/** All that the page shows. @returns {Promise<{ready: object, status: object, table: {models: Model[]}}>} */
export async function look() {
  const [ready, status, table] = await Promise.all([
    answer(request('ready'), 503), // While it loads, the body of a 503 is what we ask for.
    answer(request('status')),
    answer(request('mgmt/v1/models')),
  ]);
  return { ready, status, table };
}

/** @param {Wish} wish */
export function fit(wish) {
  return answer(request('mgmt/v1/models/fit', wish));
}

/** It waits for a load that is going on, however long that takes. @param {string} id */
export function unload(id) {
  return answer(request('mgmt/v1/models/unload', { id }, { seconds: null }));
}

/** @param {string} id @param {boolean} pinned */
export function pin(id, pinned) {
  return answer(request('mgmt/v1/models/pin', { id, pinned }));
}

/**
 * Loads a model and tells how it goes on.
 * @param {Wish & {pin: boolean}} wish
 * @param {(line: {stage: string, share: number | null}) => void} told
 * @returns {Promise<Model>}
 */
export async function load(wish, told) {
  const response = await request('mgmt/v1/models/load', wish, { seconds: null });
  if (!response.ok) throw await refusal(response);
  for await (const line of lines(response.body)) {
    if (line.error) throw new Refusal(409, line.error.detail);
    if (line.model) return line.model;
    told(line);
  }
  throw new Refusal(0);
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + value).split('\n');
      rest = parts.pop();
      for (const part of parts) yield JSON.parse(part);
    }
  } catch {
    throw new Refusal(0);
  }
}

/**
 * One call. @param {string} path @param {object} [body] sent as JSON
 * @param {{method?: string, seconds?: number | null, signal?: AbortSignal}} [how] `seconds` null: without an end
 * @throws {Refusal} nothing answers
 */
export async function request(path, body, { method = body ? 'POST' : 'GET', seconds = SECONDS, signal } = {}) {
  try {
    return await fetch(path, {
      method,
      headers: { ...bearer(), ...(body && { 'Content-Type': 'application/json' }) },
      body: body && JSON.stringify(body),
      cache: 'no-store',
      credentials: 'omit',
      signal: seconds === null ? signal : AbortSignal.timeout(seconds * 1000),
    });
  } catch (error) {
    // A key with letters that no header carries is no key of any server.
    if (key && error instanceof TypeError && /[^\x20-\x7e]/.test(key)) throw new Refusal(401);
    throw new Refusal(0);
  }
}

/** The JSON of an answer. @param {Promise<Response>} response @param {number} [also] a status that is no refusal */
export async function answer(response, also = 200) {
  const got = await response;
  if (!got.ok && got.status !== also) throw await refusal(got);
  try {
    return await got.json();
  } catch {
    throw new Refusal(0);
  }
}

/** What a response refuses with. @param {Response} response */
export async function refusal(response) {
  return refused(response.status, await response.json().catch(() => ({})));
}

/** @param {number} status @param {object} body of the response */
export function refused(status, body) {
  // A request that makes no sense is answered with a list of what is wrong in it.
  const said = Array.isArray(body.detail) ? body.detail.map((wrong) => wrong.msg).join('; ') : body.detail;
  return new Refusal(status, said || `HTTP ${status}`, body);
}

function recall() {
  try {
    return sessionStorage.getItem(STORED) ?? '';
  } catch {
    return '';
  }
}
