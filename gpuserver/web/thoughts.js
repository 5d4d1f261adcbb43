/** What a reasoning model thinks before it answers: open while it thinks, then folded; never read out. */

import { languageOf, say } from './i18n.js';
import { node } from './nodes.js';

/** Who has scrolled further than this from the end is reading, and left in peace. */
const READING_PX = 24;

export class Thoughts {
  #fold = node('details', 'thoughts');
  #box;
  #text = '';
  #chosen = false; // whether the student has opened or closed it by hand
  #settled = false;
  #frame = 0;
  #grew;

  /** @param {HTMLElement} answer which they stand above @param {() => void} grew */
  constructor(answer, grew) {
    this.#grew = grew;
    const summary = this.#fold.appendChild(node('summary'));
    say(summary, 'talk.thoughts');
    summary.addEventListener('click', () => (this.#chosen = true));
    this.#box = this.#fold.appendChild(node('div', 'thoughts-text'));
    this.#box.tabIndex = 0; // It scrolls, by the keyboard too.
    this.#box.setAttribute('role', 'group');
    say(this.#box, 'talk.thoughts', {}, 'aria-label');
    this.#fold.open = true;
    answer.before(this.#fold);
  }

  /** @param {string} piece */
  add(piece) {
    this.#text += piece;
    // Pieces come faster than frames; each frame draws all that came.
    this.#frame ||= requestAnimationFrame(() => this.#draw());
  }

  /** It has thought: out of the way, unless the student is reading. */
  settle() {
    if (this.#settled) return;
    this.#settled = true;
    if (this.#frame) this.#draw();
    if (!this.#chosen && !this.#box.contains(document.activeElement)) this.#fold.open = false;
  }

  #draw() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    const box = this.#box;
    const following = box.scrollHeight - box.scrollTop - box.clientHeight < READING_PX;
    box.textContent = this.#text;
    box.lang = languageOf(this.#text);
    if (following) box.scrollTop = box.scrollHeight;
    this.#grew();
  }
}
