/** The documents of a course, each brought up to date in its place. */

import { node } from './nodes.js';
import { say, t } from './i18n.js';
import { counted, problemIn, saySentence } from './console-knowledge-words.js';
import { clock, fileSize } from './console-words.js';

/** @typedef {import('./console-knowledge-server.js').Document} Document */

const ACTS = ['retry', 'read', 'replace', 'delete'];
const WORKING = new Set(['queued', 'reading', 'indexing']);
/** So many pages without text are named; of more the number is told. */
const NAMED_PAGES = 12;

/** One document's row; `act` is told which button was pressed. */
class Row {
  /** @param {Document} document @param {(what: string, document: Document) => void} act */
  constructor(document, act) {
    this.element = node('li', 'doc');
    this.element.dataset.id = document.id;
    this.name = this.element.appendChild(node('p', 'doc-name'));
    this.name.dir = 'auto';
    this.state = this.element.appendChild(node('p', 'doc-state'));
    this.facts = this.element.appendChild(node('p', 'doc-facts'));
    this.progress = node('progress', 'doc-progress');
    this.told = this.element.appendChild(node('div', 'doc-told'));
    const actions = this.element.appendChild(node('p', 'doc-acts'));
    this.buttons = Object.fromEntries(ACTS.map((what) => [what, actions.appendChild(this.#button(what, act))]));
  }

  /** @param {Document} document @param {boolean} own whether it may be changed here */
  show(document, own) {
    this.document = document;
    const { state, name } = document;
    this.element.dataset.state = state;
    if (this.name.textContent !== name) this.name.textContent = name;
    saySentence(this.state, () => stateOf(document));
    saySentence(this.facts, () => factsOf(document));
    this.#showProgress();
    this.#showTold();
    const offered = { retry: own && state === 'failed', read: document.answers, replace: own, delete: own };
    for (const what of ACTS) {
      this.buttons[what].hidden = !offered[what];
      say(this.buttons[what], `docs.${what}This`, { name }, 'aria-label');
    }
  }

  #button(what, act) {
    const made = node('button', what === 'delete' ? 'small danger' : 'small');
    made.type = 'button';
    made.dataset.act = what;
    say(made, `docs.${what}`);
    made.addEventListener('click', () => act(what, this.document));
    return made;
  }

  #showProgress() {
    const { state, done, total, name } = this.document;
    if (!WORKING.has(state)) {
      this.progress.remove();
      return;
    }
    if (state === 'queued' || !total) this.progress.removeAttribute('value');
    else Object.assign(this.progress, { max: total, value: done });
    const params = { name, state: () => t(`docs.state.${state}`) };
    say(this.progress, 'docs.progress', params, 'aria-label');
    if (!this.progress.isConnected) this.told.before(this.progress);
  }

  /** What there is to know about it: why it failed, what still answers, pages that are pictures. */
  #showTold() {
    const { state, problem, answers, empty_pages: empty = [] } = this.document;
    const told = [];
    if (problem) told.push(['problem', () => problemIn(problem)]);
    if (answers && state === 'failed') told.push(['note', () => t('docs.earlierFailed')]);
    if (answers && WORKING.has(state)) told.push(['note', () => t('docs.earlier')]);
    if (empty.length) told.push(['warning', () => t('docs.empty', { pages: pagesOf(empty) })]);
    const lines = told.map(([className, sentence]) => {
      const line = node('p', className);
      saySentence(line, sentence);
      return line;
    });
    const text = (nodes) => nodes.map((line) => line.textContent).join('\n');
    if (text(lines) !== text([...this.told.children])) this.told.replaceChildren(...lines);
  }
}

/** All documents of the open course. */
export class DocumentList {
  /** @type {Map<string, Row>} */
  #rows = new Map();
  #own = false;

  /** @param {(id: string) => HTMLElement} $ @param {(what: string, document: Document) => void} act */
  constructor($, act) {
    this.list = $('docs');
    this.none = $('docs-none');
    this.summary = $('docs-summary');
    this.act = act;
  }

  get size() {
    return this.#rows.size;
  }

  clear() {
    for (const id of [...this.#rows.keys()]) this.#remove(id);
    this.none.hidden = true;
    this.summary.hidden = true;
  }

  /** @param {Document[]} documents all there are @param {boolean} own whether they may be changed here */
  show(documents, own) {
    this.#own = own;
    const ids = new Set(documents.map((document) => document.id));
    for (const id of [...this.#rows.keys()]) if (!ids.has(id)) this.#remove(id);
    documents.forEach((document, place) => {
      const { element } = this.#row(document);
      // A row is moved only where it has to: moving it would take the keyboard's place away.
      if (this.list.children[place] !== element) this.list.insertBefore(element, this.list.children[place] ?? null);
    });
    this.#sum();
  }

  /** What has become of one of them. @param {Document} document */
  put(document) {
    const { element } = this.#row(document);
    if (!element.isConnected) this.list.prepend(element);
    this.#sum();
  }

  /** @param {string} id */
  drop(id) {
    const gone = this.#rows.get(id)?.element;
    const next = gone?.nextElementSibling ?? gone?.previousElementSibling;
    const focused = gone?.contains(document.activeElement);
    this.#remove(id);
    // Whoever took it away by keyboard goes on from its neighbour.
    if (focused) next?.querySelector('button:not([hidden])')?.focus();
    this.#sum();
  }

  #row(document) {
    if (!this.#rows.has(document.id)) this.#rows.set(document.id, new Row(document, this.act));
    const row = this.#rows.get(document.id);
    row.show(document, this.#own);
    return row;
  }

  #remove(id) {
    this.#rows.get(id)?.element.remove();
    this.#rows.delete(id);
  }

  #sum() {
    const all = this.#rows.size;
    const ready = [...this.#rows.values()].filter((row) => row.document.state === 'ready').length;
    this.none.hidden = all > 0;
    this.summary.hidden = all === 0;
    saySentence(this.summary, () => t('docs.summary', { ready, all: counted('course.documents', all) }));
  }
}

function stateOf({ state, done, total }) {
  const words = t(`docs.state.${state}`);
  if (!total || (state !== 'reading' && state !== 'indexing')) return words;
  return `${words} · ${t(state === 'reading' ? 'docs.pageOf' : 'docs.passageOf', { done, total })}`;
}

function factsOf({ pages, passages, bytes, updated_at: at }) {
  return [
    pages ? counted('course.pages', pages) : '',
    passages ? counted('course.passages', passages) : '',
    bytes ? fileSize(bytes) : '',
    at ? clock(new Date(at)) : '',
  ].filter(Boolean).join(' · ');
}

function pagesOf(pages) {
  const named = pages.slice(0, NAMED_PAGES).join(t('list.comma'));
  const more = pages.length - NAMED_PAGES;
  const list = more > 0 ? t('docs.more', { pages: named, count: more }) : named;
  return t(pages.length === 1 ? 'docs.pageList' : 'docs.pageList.many', { pages: list });
}
