/** The source of an answer, opened at its passage: a panel over the page, with what stands around it. */

import { languageOf, say } from './i18n.js';
import { render } from './markdown.js';
import { node } from './nodes.js';
import { readPassage } from './session.js';

/** @typedef {import('./answer.js').Source} Source */

export class SourcePanel {
  #dialog;
  #title;
  #place;
  #session = null;
  #asked = 0;

  /** @param {HTMLDialogElement} dialog */
  constructor(dialog) {
    this.#dialog = dialog;
    this.#title = dialog.querySelector('h2');
    this.#place = dialog.querySelector('.passage-text');
    dialog.addEventListener('keydown', (event) => {
      // Closes the panel; the answer behind it goes on.
      if (event.key === 'Escape') event.stopPropagation();
    });
    dialog.addEventListener('click', (event) => {
      if (event.target === dialog) dialog.close(); // beside the panel
    });
    // Whoever opened it goes on where they were; the browser puts the focus back.
    // It is told a moment later, when the next one may be open.
    dialog.addEventListener('close', () => dialog.open || (this.#asked += 1));
  }

  /** Whose passages are read. @param {import('./session.js').Session & {id: string}} session */
  enter(session) {
    this.#session = session;
    this.#dialog.close();
  }

  /** Opens a source that has an address. @param {Source} source */
  async open(source) {
    const asked = (this.#asked += 1);
    this.#title.replaceChildren(...sourceTitle(source));
    const told = node('p', 'waiting');
    say(told, 'passage.loading');
    this.#place.replaceChildren(told);
    if (!this.#dialog.open) this.#dialog.showModal();
    const found = await readPassage(this.#session, source.url).catch((error) => ({ error }));
    if (asked !== this.#asked) return;
    if (found.error) this.#showQuote(source, found.error);
    else this.#show(source, found);
  }

  /** @param {Source} source @param {{document: string, heading: string, page: number | null, text: string, before: {text: string} | null, after: {text: string} | null}} found */
  #show({ n }, { document: name, heading, page, text, before, after }) {
    this.#title.replaceChildren(...sourceTitle({ n, document: name, heading, page }));
    const parts = [
      before && part('around', 'passage.before', before.text),
      part('cited', 'passage.cited', text),
      after && part('around', 'passage.after', after.text),
    ];
    this.#place.replaceChildren(...parts.filter(Boolean));
    this.#place.querySelector('.cited').scrollIntoView({ block: 'center' });
  }

  /** It can't be had any more; the answer brought what it used with it. */
  #showQuote({ quote }, { status }) {
    const told = node('p', 'passage-gone');
    told.setAttribute('role', 'status');
    say(told, status === 404 ? 'passage.gone' : 'passage.refused');
    this.#place.replaceChildren(told, part('cited', 'passage.cited', quote));
  }
}

/** What a source is called: its number, if it has one, document, heading and page. @param {Partial<Source>} source */
export function sourceTitle({ n, document: name, heading, page }) {
  const title = node('span', 'title');
  title.append(node('span', 'document', name));
  // A document without headings is named twice.
  if (heading && heading !== name) title.append(node('span', 'heading', heading));
  if (page !== null && page !== undefined) say(title.appendChild(node('span', 'page')), 'talk.page', { page });
  return n ? [node('span', 'number', String(n)), title] : [title];
}

function part(className, key, text) {
  const made = node('section', className);
  say(made, key, {}, 'aria-label');
  made.lang = languageOf(text);
  made.append(render(text));
  return made;
}
