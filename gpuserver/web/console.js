/** The console: asks the server how it is every two seconds while somebody looks, and shows it. */

import './console-strings.js';
import { bindMarkup, language, languageOf, preferredLanguage, say, setLanguage, showOther, t } from './i18n.js';
import { Knowledge } from './console-knowledge.js';
import { LoadForm } from './console-load.js';
import { showFacts, showMachine } from './console-machine.js';
import { ModelTable } from './console-models.js';
import { keyInUse, look, pin, Refusal, setKey, unload } from './console-server.js';
import { clock, kinds } from './console-words.js';

const PAUSE_MS = 2000;

const $ = (id) => document.getElementById(id);

/** When the server last answered; null before. @type {Date | null} */
let answered = null;
let woken = false; // whether something asks for a look since the last one began
let endPause = () => {};
const table = new ModelTable($('rows'), act);
const form = new LoadForm($, wake);
const knowledge = new Knowledge($);

/** Looks, one after another, for as long as the page lives: there are never two at once. */
async function watch() {
  for (;;) {
    woken = false;
    await refresh();
    if (!woken) await pause();
  }
}

/** Looks at once, or once more if a look is going on. */
function wake() {
  woken = true;
  endPause();
}

async function refresh() {
  const key = keyInUse();
  try {
    show(await look());
    await knowledge.look();
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    if (error.status !== 401) showTrouble(error);
    else if (key === keyInUse()) askForKey(key !== ''); // Another that came meanwhile is tried first.
  }
}

/** Until the next look: two seconds, longer while nobody sees the page or a key is missing. */
function pause() {
  return new Promise((resolve) => {
    endPause = resolve;
    if (!document.hidden && $('key').hidden) setTimeout(resolve, PAUSE_MS);
  });
}

function show({ ready, status, table: { models, ...machine } }) {
  answered = new Date();
  $('key').hidden = true;
  $('live').hidden = false;
  $('forget').hidden = !keyInUse();
  showState(ready, status);
  showFacts($('facts'), status);
  showMachine($('machine'), { models, ...machine });
  table.show(models);
  $('models').hidden = models.length === 0;
  $('models-none').hidden = models.length > 0;
}

function showState(ready, status) {
  const troubled = () => kinds(status.degraded ?? []);
  const loading = !ready.ready && !ready.reason;
  showNotice(ready.reason ? 'console.trouble.said' : '', { sentence: ready.reason });
  if (loading) setState('loading', 'console.loading');
  else if (!ready.ready) setState('failing', 'console.failing', { kinds: troubled });
  else if (status.degraded?.length) setState('degraded', 'console.degraded', { kinds: troubled });
  else setState('ready', 'console.ready');
  $('starting').hidden = !loading;
  if (!loading) return;
  Object.assign($('starting-bar'), { max: ready.total || 1, value: ready.done });
  $('starting-stage').textContent = ready.stage;
  $('starting-count').textContent = `${ready.done} / ${ready.total}`;
}

function showTrouble(error) {
  setState('lost', 'console.lost');
  $('key').hidden = true;
  const known = answered;
  if (error.status) showNotice('console.trouble.said', { sentence: error.message });
  else if (known) showNotice('console.trouble.lost', { when: () => clock(known) });
  else showNotice('console.trouble.never');
}

/** What stands above everything; '' takes it away. A sentence that stays is not said again. */
function showNotice(key, params = {}) {
  const notice = $('trouble');
  notice.hidden = !key;
  if (!key || notice.textContent === t(key, params)) return;
  say(notice, key, params);
  markLanguage(notice, params.sentence);
}

/** A sentence of the server may be in another language than the page. */
function markLanguage(element, sentence) {
  if (sentence) element.lang = languageOf(sentence);
  else element.removeAttribute('lang');
}

/** @param {boolean} wrong whether a key was sent, and refused */
function askForKey(wrong) {
  knowledge.rest();
  setState('locked', 'console.locked');
  $('live').hidden = $('trouble').hidden = $('forget').hidden = true;
  if (!wrong && !$('key').hidden) return; // Somebody is typing it, and looked elsewhere for a moment.
  if (wrong) setKey('');
  $('key').hidden = false;
  $('key-wrong').hidden = !wrong;
  if (wrong) say($('key-wrong'), 'key.wrong');
  $('key-input').value = '';
  $('key-input').focus();
}

function setState(state, key, params = {}) {
  if (document.documentElement.dataset.state === state && state !== 'degraded' && state !== 'failing') return;
  document.documentElement.dataset.state = state;
  say($('state'), key, params);
}

/** A button of a model's row. */
async function act(what, model) {
  $('models-said').hidden = true;
  if (what === 'load') {
    form.propose(model);
    return;
  }
  try {
    await (what === 'pin' ? pin(model.id, !model.pinned) : unload(model.id));
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    const said = $('models-said');
    said.hidden = false;
    markLanguage(said, error.message);
    say(said, error.status ? 'models.said' : 'console.trouble.never', { sentence: error.message });
  }
  wake();
}

function showLanguage() {
  showOther($('language'));
  document.title = t('console.title');
}

function begin() {
  setLanguage(preferredLanguage());
  bindMarkup();
  showLanguage();
  setState('waiting', 'console.waiting');
  $('language').addEventListener('click', () => {
    setLanguage(language() === 'en' ? 'zh' : 'en', true);
    showLanguage();
  });
  $('key').addEventListener('submit', (event) => {
    event.preventDefault();
    setKey($('key-input').value.trim());
    wake();
  });
  $('forget').addEventListener('click', () => {
    setKey('');
    wake();
  });
  document.addEventListener('visibilitychange', () => (document.hidden ? knowledge.rest() : wake()));
  watch();
}

begin();
