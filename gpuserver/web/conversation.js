/** The conversation as it is shown: the student's questions, the tutor's answers, and notices. */

import { Answer } from './answer.js';
import { languageOf, say, t } from './i18n.js';
import { button, node } from './nodes.js';

/** Who has scrolled further than this from where the view was put is reading, and left in peace. */
const READING_PX = 40;
const ABOVE_QUESTION_PX = 16;
const ANNOUNCED = 4;

export class Conversation {
  #list;
  #view;
  #said;
  #read;
  #asked = null; // the newest question's item
  #placed = 0; // where the view was put last

  /**
   * @param {HTMLOListElement} list
   * @param {HTMLElement} view what scrolls
   * @param {HTMLElement} said a polite live region: finished sentences are announced, never pieces
   * @param {(source: import('./answer.js').Source) => void} read opens a source of an answer
   */
  constructor(list, view, said, read) {
    this.#list = list;
    this.#view = view;
    this.#said = said;
    this.#read = read;
  }

  clear() {
    this.#list.replaceChildren();
  }

  /** Reads a text out to those who listen to the page. @param {string} text */
  announce(text) {
    // What was said a moment ago may still be waiting to be read.
    this.#said.append(node('p', '', text));
    if (this.#said.children.length > ANNOUNCED) this.#said.firstChild.remove();
  }

  /** The student's question, typed, or from before a reload. @param {string} text @param {Answer} [answer] the answer that it comes before */
  question(text, answer = undefined) {
    const item = questionItem(text);
    if (answer) answer.item.before(item);
    else this.#add(item);
    this.#asked = item;
    this.#follow(true);
    return {
      /** Whether it still waits for the line. @param {boolean} waits */
      waits: (waits) => {
        item.querySelector('.later')?.remove();
        if (waits) say(item.appendChild(node('p', 'later')), 'talk.later');
      },
    };
  }

  /** The student's spoken question, whose words become known bit by bit. */
  spoken() {
    const item = questionItem('');
    const body = item.querySelector('.body');
    item.classList.add('pending');
    this.#add(item);
    const shown = {
      /** It is complete, and its words are being recognised. */
      wait: () => say(body.appendChild(node('span', 'waiting')), 'talk.recognising'),
      /** @param {string} stable words that stay @param {string} tentative words that may still change */
      words: (stable, tentative) => {
        const gap = stable && tentative && !/\s$/.test(stable) && !/^\s/.test(tentative) && spaced(tentative);
        body.lang = languageOf(stable + tentative);
        body.replaceChildren(node('span', 'stable', stable + (gap ? ' ' : '')), node('span', 'tentative', tentative));
        this.#follow(true);
      },
      /** The words that were recognised. @param {string} text @param {Answer} answer which it comes before */
      heard: (text, answer) => {
        item.remove();
        this.question(text, answer);
        this.announce(t('talk.heard', { text }));
      },
      drop: () => item.remove(),
    };
    return shown;
  }

  /** An answer that begins. @param {string} name of the tutor */
  answer(name) {
    const item = node('li', 'message answer');
    item.append(node('p', 'unseen', name));
    this.#add(item);
    return new Answer(item, name, {
      grew: () => this.#follow(),
      announce: (text) => this.announce(text),
      finished: (text) => this.announce(t('talk.said', { name, text })),
      read: this.#read,
    });
  }

  /**
   * Something that the student has to know. Said again, it takes the place of the last time.
   * @param {string} key of the sentence
   * @param {Record<string, unknown>} [params]
   * @param {{key: string, act: () => void, after?: number}} [offer] what can be done about it, and
   *   after how many seconds
   */
  notice(key, params = {}, offer = undefined) {
    const item = node('li', 'notice');
    item.dataset.key = key;
    item.setAttribute('role', 'alert');
    say(item.appendChild(node('p')), key, params);
    if (offer) item.append(button(offer.key, offer.act, offer.after));
    const last = this.#list.lastElementChild;
    if (last?.matches('.notice') && last.dataset.key === key) last.remove();
    this.#add(item);
    return item;
  }

  #add(item) {
    this.#list.append(item);
    if (item.matches('.question')) this.#asked = item;
    this.#follow(true);
    if (item.matches('.notice')) item.scrollIntoView({ block: 'nearest' });
  }

  /** Keeps the end in view, but never at the cost of the question: answers are read from the top. */
  #follow(always = false) {
    if (!always && Math.abs(this.#view.scrollTop - this.#placed) > READING_PX) return;
    const top = this.#asked?.isConnected ? this.#asked.offsetTop - ABOVE_QUESTION_PX : Infinity;
    this.#view.scrollTop = Math.min(this.#view.scrollHeight, top);
    this.#placed = this.#view.scrollTop;
  }
}

function questionItem(text) {
  const item = node('li', 'message question');
  say(item.appendChild(node('p', 'unseen')), 'talk.you');
  const body = item.appendChild(node('p', 'body', text));
  if (text) body.lang = languageOf(text);
  return item;
}

/** Whether words are written with spaces between them. @param {string} text */
function spaced(text) {
  return languageOf(text) === 'en';
}
