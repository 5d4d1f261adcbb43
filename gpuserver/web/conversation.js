/** The conversation as it is shown: the student's questions, the tutor's answers and their sources. */

import { languageOf, say, t } from './i18n.js';
import { render } from './markdown.js';

/** @typedef {{n: number, document: string, heading: string, page: number | null, quote: string, score: number}} Source */

/** Who has scrolled further than this from where the view was put is reading, and left in peace. */
const READING_PX = 40;
const ABOVE_QUESTION_PX = 16;
const ANNOUNCED = 4;

export class Conversation {
  #list;
  #view;
  #said;
  #asked = null; // the newest question's item
  #placed = 0; // where the view was put last

  /**
   * @param {HTMLOListElement} list
   * @param {HTMLElement} view what scrolls
   * @param {HTMLElement} said a polite live region: finished sentences are announced, never pieces
   */
  constructor(list, view, said) {
    this.#list = list;
    this.#view = view;
    this.#said = said;
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

  /** The student's typed question. @param {string} text */
  question(text) {
    this.#add(questionItem(text));
  }

  /** The student's spoken question, whose words are not known yet. */
  spoken() {
    const item = questionItem('');
    const waiting = node('span', 'waiting');
    say(waiting, 'talk.recognising');
    item.lastChild.append(waiting);
    item.classList.add('pending');
    this.#add(item);
    return {
      /** The words that were recognised. @param {string} text */
      heard: (text) => {
        const known = questionItem(text);
        item.replaceWith(known);
        this.#asked = known;
        this.announce(t('talk.heard', { text }));
        this.#follow(true);
      },
      drop: () => item.remove(),
    };
  }

  /** An answer that begins. @param {string} name of the tutor */
  answer(name) {
    const item = node('li', 'message answer');
    item.append(node('p', 'unseen', name));
    this.#add(item);
    return new Answer(item, name, {
      grew: () => this.#follow(),
      finished: (text) => this.announce(t('talk.said', { name, text })),
    });
  }

  /**
   * Something that the student has to know.
   * @param {string} key of the sentence
   * @param {Record<string, unknown>} [params]
   * @param {{key: string, act: () => void}} [offer] what can be done about it
   */
  notice(key, params = {}, offer = undefined) {
    const item = node('li', 'notice');
    item.setAttribute('role', 'alert');
    say(item.appendChild(node('p')), key, params);
    if (offer) item.append(button(offer.key, offer.act));
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

class Answer {
  #item;
  #body;
  #on;
  #text = '';
  #sources = [];
  #list = null;
  #frame = 0;

  constructor(item, name, on) {
    this.#item = item;
    this.#on = on;
    this.#body = item.appendChild(node('div', 'body'));
    const waiting = this.#body.appendChild(node('p', 'waiting'));
    say(waiting, 'talk.writing', { name });
  }

  /** The passages that the answer may cite. @param {Source[]} passages */
  sources(passages) {
    if (!passages.length) return;
    this.#sources = passages;
    const section = node('section', 'sources');
    say(section.appendChild(node('h3')), 'talk.sources');
    this.#list = section.appendChild(node('ul'));
    this.#list.append(...passages.map(sourceItem));
    this.#item.append(section);
    if (this.#text) this.#draw();
    this.#on.grew();
  }

  /** The next piece of the answer. @param {string} piece */
  delta(piece) {
    this.#text += piece;
    // Pieces come faster than frames; each frame draws all that came.
    this.#frame ||= requestAnimationFrame(() => this.#draw());
  }

  /** The whole answer, which is the truth. @param {string} text */
  whole(text) {
    this.#text = text;
    this.#draw();
    this.#on.finished(this.#plain());
  }

  /** The turn's one ending. @param {'completed' | 'interrupted' | 'failed'} status */
  done(status) {
    if (this.#frame) this.#draw();
    if (this.#item.dataset.status) return;
    this.#item.dataset.status = status;
    if (!this.#text && status !== 'failed') this.#body.remove();
    else if (!this.#text) this.#item.remove(); // The error is shown in its place.
    if (status === 'completed') return;
    const ending = node('p', 'ending-note');
    say(ending, status === 'interrupted' ? 'talk.stopped' : 'talk.failed');
    this.#item.insertBefore(ending, this.#list?.parentElement ?? null);
    this.#on.grew();
  }

  #draw() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    const cited = new Set();
    const content = render(this.#text, (n) => this.#citation(n, cited));
    this.#body.replaceChildren(content);
    this.#body.lang = languageOf(this.#text);
    for (const item of this.#list?.children ?? []) item.classList.toggle('cited', cited.has(item.dataset.n));
    this.#on.grew();
  }

  /** The answer as it is read out: without its marks and citations. */
  #plain() {
    const copy = this.#body.cloneNode(true);
    for (const mark of copy.querySelectorAll('.cite')) mark.remove();
    return [...copy.children].map((block) => block.textContent).join('\n');
  }

  #citation(n, cited) {
    const source = this.#sources.find((passage) => passage.n === n);
    if (!source) return null;
    cited.add(String(n));
    const mark = node('button', 'cite', String(n));
    mark.type = 'button';
    say(mark, 'talk.cite', { n, title: titleOf(source) }, 'aria-label');
    mark.title = titleOf(source);
    mark.addEventListener('click', () => this.#show(n));
    return mark;
  }

  /** Opens a source and takes the reader there. */
  #show(n) {
    for (const item of this.#list.children) {
      const wanted = item.dataset.n === String(n);
      item.classList.toggle('shown', wanted);
      if (!wanted) continue;
      item.firstChild.open = true;
      item.querySelector('summary').focus({ preventScroll: true });
      item.scrollIntoView({ block: 'nearest' });
    }
  }
}

function questionItem(text) {
  const item = node('li', 'message question');
  say(item.appendChild(node('p', 'unseen')), 'talk.you');
  const body = item.appendChild(node('p', 'body', text));
  if (text) body.lang = languageOf(text);
  return item;
}

/** @param {Source} source */
function sourceItem(source) {
  const item = node('li', 'source');
  item.dataset.n = source.n;
  const details = item.appendChild(node('details'));
  const summary = details.appendChild(node('summary'));
  summary.append(node('span', 'number', String(source.n)), titleNode(source));
  const quote = details.appendChild(node('blockquote'));
  quote.lang = languageOf(source.quote);
  quote.append(render(source.quote));
  say(details.appendChild(node('p', 'score')), 'talk.score', { score: source.score.toFixed(2) });
  return item;
}

function titleNode({ document: name, heading, page }) {
  const title = node('span', 'title');
  title.append(node('span', 'document', name));
  if (heading) title.append(node('span', 'heading', heading));
  if (page !== null) say(title.appendChild(node('span', 'page')), 'talk.page', { page });
  return title;
}

/** @param {Source} source */
function titleOf({ document: name, heading }) {
  return heading ? `${name} › ${heading}` : name;
}

/** A button that says what it does. @param {string} key @param {() => void} act */
export function button(key, act) {
  const made = node('button', 'primary');
  made.type = 'button';
  say(made, key);
  made.addEventListener('click', act);
  return made;
}

/** @param {string} tag @param {string} [className] @param {string} [text] */
export function node(tag, className = '', text = '') {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}
