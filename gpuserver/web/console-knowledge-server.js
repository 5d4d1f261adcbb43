/** What the console asks of the server about course material. */

import { answer, bearer, refusal, refused, request, Refusal } from './console-server.js';

/**
 * @typedef {{code: string, detail: string, detail_zh: string}} Problem
 * @typedef {{kb_id: string, title: string, origin: 'uploaded' | 'course', documents: number,
 *   passages: number, bytes: number, state: 'ready' | 'indexing' | 'failed',
 *   problem: Problem | null}} Base
 * @typedef {{id: string, name: string, state: 'queued' | 'reading' | 'indexing' | 'ready' | 'failed',
 *   done: number, total: number, bytes: number, pages: number | null, passages: number,
 *   empty_pages: number[], problem: Problem | null, updated_at: string, answers: boolean}} Document
 * @typedef {{document: string, heading: string, page: number | null, text: string, similarity: number,
 *   by_meaning: number | null, by_words: number, by_heading: number,
 *   by_reranker: number | null, covered: boolean}} Found
 */

const BASES = 'mgmt/v1/knowledge-bases';
/** The server says something each 15 seconds; a stream that is silent for longer has died. */
const SILENCE_MS = 45_000;
/** A search may have to wait for its model, a large text for the line. */
const PATIENT = { seconds: 120 };

/** @returns {Promise<Base[]>} */
export async function listBases() {
  return (await answer(request(BASES))).knowledge_bases;
}

/** @param {{kb_id: string, title: string}} wish @returns {Promise<Base>} */
export function createBase(wish) {
  return answer(request(BASES, wish));
}

/** @param {string} kbId */
export function deleteBase(kbId) {
  return done(request(address(kbId), undefined, { ...PATIENT, method: 'DELETE' }));
}

/** @param {string} kbId @returns {Promise<Document[]>} */
export async function listDocuments(kbId) {
  return (await answer(request(address(kbId, 'documents')))).documents;
}

/** @param {string} kbId @param {string} id */
export function deleteDocument(kbId, id) {
  return done(request(address(kbId, 'documents', id), undefined, { ...PATIENT, method: 'DELETE' }));
}

/** Has a document read again. @param {string} kbId @param {string} id @returns {Promise<Document>} */
export function readAgain(kbId, id) {
  return answer(request(address(kbId, 'documents', id, 'reindex'), undefined, { method: 'POST' }));
}

/** All that was extracted of a document. @param {string} kbId @param {string} id */
export async function extracted(kbId, id) {
  return whole((await done(request(address(kbId, 'documents', id, 'text'), undefined, PATIENT))).text());
}

/** @param {string} kbId @param {string} question @returns {Promise<{covered: boolean, passages: Found[]}>} */
export function tryQuestion(kbId, question) {
  return answer(request(address(kbId, 'search'), { question }, PATIENT));
}

/** The whole knowledge base as one file. @param {string} kbId @returns {Promise<Blob>} */
export async function exported(kbId) {
  return whole((await done(request(address(kbId, 'export'), undefined, { seconds: null }))).blob());
}

/** @param {string} kbId @param {File} file @param {(share: number) => void} told @returns {Promise<{documents: Document[]}>} */
export function addDocument(kbId, file, told) {
  return send('POST', address(kbId, 'documents'), file, told);
}

/** @param {string} kbId @param {string} id @param {File} file @param {(share: number) => void} told */
export function replaceDocument(kbId, id, file, told) {
  return send('PUT', address(kbId, 'documents', id), file, told);
}

/** @param {File} file @param {(share: number) => void} told @returns {Promise<Base>} */
export function importBase(file, told) {
  return send('POST', `${BASES}/import`, file, told);
}

/**
 * Tells of each change of a knowledge base until the stream breaks, which it always does at some time.
 * @param {string} kbId
 * @param {(event: 'base' | 'document' | 'removed', change: object) => void} told
 * @param {AbortController} ending ends it
 */
export async function follow(kbId, told, ending) {
  const response = await done(request(address(kbId, 'events'), undefined, { seconds: null, signal: ending.signal }));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  let event = '';
  for (;;) {
    const silence = setTimeout(() => ending.abort(), SILENCE_MS);
    const { done: over, value } = await reader.read().catch(() => ({ done: true }));
    clearTimeout(silence);
    if (over) return;
    const lines = (rest + value).split('\n');
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith('event:')) event = line.slice(6).trim();
      if (line.startsWith('data:') && event) told(event, JSON.parse(line.slice(5)));
      if (!line.trim()) event = '';
    }
  }
}

/** Sends a file as a form; fetch can't tell how far an upload is. */
function send(method, path, file, told) {
  return new Promise((resolve, reject) => {
    const call = new XMLHttpRequest();
    call.open(method, path);
    for (const [name, value] of Object.entries(bearer())) call.setRequestHeader(name, value);
    call.responseType = 'json';
    call.upload.addEventListener('progress', ({ loaded, total }) => told(total ? loaded / total : 0));
    call.addEventListener('load', () => {
      if (call.status >= 200 && call.status < 300) resolve(call.response);
      else reject(refused(call.status, call.response ?? {}));
    });
    for (const type of ['error', 'abort']) call.addEventListener(type, () => reject(new Refusal(0)));
    const form = new FormData();
    form.append('file', file, file.name);
    call.send(form);
  });
}

/** What a body holds. @template T @param {Promise<T>} body @returns {Promise<T>} @throws {Refusal} it breaks off */
function whole(body) {
  return body.catch(() => {
    throw new Refusal(0);
  });
}

async function done(response) {
  const got = await response;
  if (!got.ok) throw await refusal(got);
  return got;
}

function address(...parts) {
  return [BASES, ...parts.map(encodeURIComponent)].join('/');
}
