/** What was extracted of a document, to be read by its teacher: plain text and nothing else. */

import { node } from './nodes.js';
import { languageOf, say } from './i18n.js';
import { attempted, refusalIn, saySentence } from './console-knowledge-words.js';

/** A book has millions of characters; so many are laid out at once. */
const PART = 100_000;

export class Reader {
  #asked = 0;

  /** @param {(id: string) => HTMLElement} $ */
  constructor($) {
    this.dialog = $('reader');
    this.title = $('reader-title');
    this.place = $('reader-text');
  }

  /** @param {string} name @param {() => Promise<string>} fetched */
  async open(name, fetched) {
    const asked = (this.#asked += 1);
    say(this.title, 'text.title', { name });
    const told = node('p', 'note');
    told.setAttribute('role', 'status');
    say(told, 'text.loading');
    this.place.replaceChildren(told);
    if (!this.dialog.open) this.dialog.showModal();
    await attempted((error) => saySentence(told, () => refusalIn(error)), async () => {
      const text = await fetched();
      if (asked === this.#asked) this.#show(text);
    });
  }

  #show(text) {
    this.place.lang = languageOf(text.slice(0, 2000));
    this.place.replaceChildren();
    this.place.scrollTop = 0;
    this.#more(text, 0);
  }

  #more(text, from) {
    // Cut at a line's end, so that no character and no paragraph is torn.
    const line = text.indexOf('\n', from + PART);
    const to = line < 0 || line > from + 2 * PART ? Math.min(text.length, from + PART) : line + 1;
    this.place.append(node('pre', 'extracted', text.slice(from, to)));
    if (to >= text.length) return;
    const more = this.place.appendChild(node('button', 'small'));
    more.type = 'button';
    say(more, 'text.more');
    more.addEventListener('click', () => {
      more.remove();
      this.#more(text, to);
      this.place.focus();
    });
  }
}
