/**
 * The classroom page: how it starts, which view it shows, and what its header does.
 *
 * For tests, and for a school that looks into its console: `document.documentElement.dataset.view`
 * is `welcome` or `room`, `dataset.activity` is `idle`, `listening`, `hearing`, `thinking`, `speaking`
 * or `offline`, and `window.classroom` tells what the page hears and shows (read only).
 */

import { bindMarkup, has, language, preferredLanguage, recall, remember, say, setLanguage, showOther } from './i18n.js';
import { Player } from './player.js';
import { Room } from './room.js';
import { ApiError, createSession, endSession, engines, forget, givenSession, listTutors, readiness } from './session.js';
import { CLOSE, TutorClient } from './tutor-client.js';
import { showLoading, showOpening, showProblem, showTutors } from './welcome.js';

const MUTED = 'classroom.muted';
const POLL_MS = 1000;

const $ = (id) => document.getElementById(id);
const welcome = $('welcome');
const player = new Player();
const room = new Room(player, { closed: (detail) => onClosed(detail) });
let session = null;

window.classroom = Object.freeze({
  /** What the room is doing. */
  get activity() {
    return room.activity;
  },
  /** Samples of speech played so far. */
  get playedSamples() {
    return player.playedSamples;
  },
  /** Loudness of what is heard now, 0 to 1, after the mute control. */
  get peak() {
    return player.peak();
  },
  /** State, sample rate and clock of the sound output. */
  get output() {
    return player.output;
  },
  /** Loudness of the open microphone, 0 to 1. */
  get level() {
    return room.level;
  },
  /** Whether the speech holds still because the student may be interrupting. */
  get held() {
    return player.held;
  },
  /** The mouth as it is drawn. */
  get mouth() {
    return room.face.mouth;
  },
});

async function start() {
  setLanguage(preferredLanguage());
  bindMarkup();
  wireHeader();
  view('welcome');
  try {
    session = givenSession();
  } catch {
    showProblem(welcome, 'end.badLink', {}, null);
    return;
  }
  if (session) await enter({ stored: true });
  else await choose();
}

/** Shows the tutors of this server. */
async function choose() {
  view('welcome');
  showOpening(welcome);
  await guarded(choose, async () => {
    const tutors = await whenReady(listTutors);
    showTutors(welcome, tutors, await engines(), (tutor) => begin(tutor.id));
  });
}

/** Makes a session with a tutor and enters it. @param {number} tutorId */
async function begin(tutorId) {
  view('welcome');
  showOpening(welcome);
  await guarded(() => begin(tutorId), async () => {
    session = await whenReady(() => createSession(tutorId));
    await enter({ stored: false });
  });
}

/**
 * Connects to the session and shows the room.
 * @param {{stored: boolean}} how `stored`: the session is from before a reload, or a school's: it may
 *   have a conversation already, and may have ended since
 */
async function enter({ stored }) {
  showOpening(welcome);
  try {
    const { client, ready } = await connect(session, stored);
    view('room');
    room.enter(client, ready, session);
    $('change').hidden = !session.id;
    say(document.querySelector('title'), 'page.titleWith', { name: ready.tutor.name });
  } catch (failure) {
    await onNotConnected(failure, stored);
  }
}

/** @returns {Promise<{client: TutorClient, ready: object}>} once the session is ready */
function connect({ url, token }, history) {
  if (location.protocol === 'https:' && url.startsWith('ws:')) return Promise.reject({ key: 'end.insecure' });
  return new Promise((resolve, reject) => {
    const client = new TutorClient({ url, token, history });
    let ending = null;
    let error = null;
    client.addEventListener('session.ready', ({ detail }) => resolve({ client, ready: detail }), { once: true });
    client.addEventListener('session.ending', ({ detail }) => (ending = detail));
    client.addEventListener('error', ({ detail }) => (error = detail));
    client.addEventListener('close', ({ detail }) => reject({ ...detail, ending, error }));
  });
}

/** The server refused the session, or could not be reached; a browser does not tell which. */
async function onNotConnected(failure, stored) {
  const again = { key: 'do.again', act: () => enter({ stored: true }) };
  if (failure.key) return problem(failure.key, null);
  // Accepted, explained, then closed: the tutor itself can't be had.
  if (failure.error) return problem(errorKey(failure.error.code), again, failure.error);
  if (failure.opened) return onClosed(failure);
  const state = await readiness().catch(() => null);
  if (!state) return problem('end.unreachable', again);
  if (!state.ready) {
    await untilReady();
    return enter({ stored });
  }
  forget(session);
  if (!session.id) return problem('end.refusedSchool', null);
  if (stored) return begin(session.tutorId);
  return problem('end.refused', { key: 'do.fresh', act: () => begin(session.tutorId) });
}

/** The conversation is over: the server ended it, or gave it to another window. */
function onClosed(detail) {
  if (!detail.opened) {
    onNotConnected(detail, false);
    return;
  }
  const { key, offer } = explainClose(detail, Boolean(session.id));
  const inRoom = document.documentElement.dataset.view === 'room';
  const again = () => (inRoom ? room.again() : enter({ stored: true }));
  const acts = { 'do.again': again, 'do.here': again, 'do.fresh': () => begin(session.tutorId) };
  if (offer === 'do.fresh' || !offer) forget(session);
  problem(key, offer && { key: offer, act: acts[offer] });
}

/**
 * Why a connection ended, as a sentence and an offer.
 * @param {{code: number, ending: {reason: string} | null}} detail
 * @param {boolean} own whether this page made the session, and can make another
 * @returns {{key: string, offer: 'do.again' | 'do.here' | 'do.fresh' | null}}
 */
function explainClose({ code, ending }, own) {
  if (code === CLOSE.replaced) return { key: 'end.replaced', offer: 'do.here' };
  if (code === CLOSE.restarting) return { key: 'end.restarting', offer: 'do.again' };
  if (code < 4500 || code >= 5000) return { key: 'end.lost', offer: 'do.again' };
  if (!own) return { key: 'end.endedSchool', offer: null };
  return { key: ending?.reason === 'expired' ? 'end.idle' : 'end.ended', offer: 'do.fresh' };
}

function problem(key, offer, params = {}) {
  if (document.documentElement.dataset.view === 'room') room.showEnding(key, offer, params);
  else showProblem(welcome, key, params, offer);
}

/** The sentence of an error; the server's own, as `{content}`, where this page knows none. */
function errorKey(code) {
  return has(`error.${code}`) ? `error.${code}` : 'error.other';
}

/** Runs a step of the start; a refusal of the server becomes a sentence. */
async function guarded(retry, step) {
  try {
    await step();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    const again = { key: 'do.retry', act: retry };
    if (error.status === 401) showProblem(welcome, 'key.school', {}, null);
    else if (error.code === 'session_limit') showProblem(welcome, 'full.title', { seconds: error.retryAfter }, again);
    else if (error.code === 'unreachable') showProblem(welcome, 'end.unreachable', {}, again);
    else showProblem(welcome, errorKey(error.code), { content: error.message }, again);
  }
}

/** Does a call; while the models load, shows how far they are and does it when they are there. */
async function whenReady(call) {
  for (;;) {
    try {
      return await call();
    } catch (error) {
      if (error.code !== 'not_ready') throw error;
    }
    await untilReady();
  }
}

async function untilReady() {
  view('welcome');
  for (;;) {
    const state = await readiness().catch(() => null);
    if (state?.ready) return;
    if (state) showLoading(welcome, state);
    await new Promise((done) => setTimeout(done, POLL_MS));
  }
}

function view(name) {
  document.documentElement.dataset.view = name;
  welcome.hidden = name !== 'welcome';
  $('room').hidden = name !== 'room';
  $('mute').hidden = name !== 'room';
  document.querySelector('.skip').hidden = name !== 'room';
  if (name === 'room') return;
  $('change').hidden = true;
  say(document.querySelector('title'), 'page.title');
}

function wireHeader() {
  // Phones let sound out only after a touch; whichever comes first will do.
  for (const type of ['pointerup', 'keydown']) document.addEventListener(type, () => player.prime());
  $('language').addEventListener('click', () => {
    setLanguage(language() === 'en' ? 'zh' : 'en', true);
    showOther($('language'));
  });
  $('mute').addEventListener('click', () => mute(!player.muted));
  $('change').addEventListener('click', async () => {
    if (!session) return; // pressed twice
    room.leave();
    const left = session;
    session = null;
    view('welcome');
    showOpening(welcome);
    await endSession(left);
    await choose();
  });
  // A school may open the same tab again with another session.
  addEventListener('hashchange', () => location.hash.includes('token=') && location.reload());
  showOther($('language'));
  mute(recall(MUTED) === 'yes');
}

function mute(muted) {
  room.mute(muted);
  remember(MUTED, muted ? 'yes' : 'no');
  $('mute').setAttribute('aria-pressed', String(muted));
  say($('mute'), 'room.mute', {}, 'aria-label');
  say($('mute'), muted ? 'room.unmute' : 'room.mute', {}, 'title');
}

start();
