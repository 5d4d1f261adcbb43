/** One answer as it is shown: its text as it comes, its sources, how it ended, what one thinks of it. */

import { has, languageOf, say } from './i18n.js';
import { latencyStrip } from './latency.js';
import { render } from './markdown.js';
import { node } from './nodes.js';
import { sourceTitle } from './sources.js';
import { Thoughts } from './thoughts.js';

/**
 * @typedef {{n: number, document: string, heading: string, page: number | null, quote: string, score: number,
 *   url?: string}} Source
 * `url` opens the passage in its document; a source without it is only quoted.
 */

/** Marks a place in Markdown: a character for private use, which no text has. */
const CUT = '\ue000';

export class Answer {
  #item;
  #name;
  #body;
  #waiting;
  #place = 0; // in line; 0: in none
  #placeSaid = Infinity;
  #thoughts = null;
  #on;
  #text = '';
  #heard = null; // where it was cut off: the part before was heard
  #sources = [];
  #list = null;
  #foot = null;
  #frame = 0;

  /**
   * @param {HTMLLIElement} item
   * @param {string} name of the tutor
   * @param {{grew: () => void, announce: (text: string) => void, finished: (text: string) => void,
   *   read: (source: Source) => void}} on `read` opens a source that has an address
   */
  constructor(item, name, on) {
    this.#item = item;
    this.#name = name;
    this.#on = on;
    this.#body = item.appendChild(node('div', 'body'));
    this.#waiting = this.#body.appendChild(node('p', 'waiting'));
    say(this.#waiting, 'talk.writing', { name });
  }

  get item() {
    return this.#item;
  }

  /**
   * The passages that the answer may cite, or those near a question that none of them surely answers.
   * @param {Source[]} passages @param {Source[]} near
   */
  sources(passages, near) {
    // Numbers are for what the answer cites.
    const shown = passages.length ? passages : near.map((passage) => ({ ...passage, n: undefined }));
    if (!shown.length) return;
    this.#sources = passages;
    const section = node('section', 'sources');
    say(section.appendChild(node('h3')), passages.length ? 'talk.sources' : 'talk.near');
    this.#list = section.appendChild(node('ul'));
    this.#list.append(...shown.map((passage) => sourceItem(passage, this.#on.read)));
    this.#item.insertBefore(section, this.#foot);
    if (this.#text) this.#draw();
    this.#on.grew();
  }

  /** The model is busy with other questions. @param {{position: number, eta_s: number}} place @param {boolean} quiet not read out */
  inLine({ position, eta_s: seconds }, quiet) {
    say(this.#waiting, 'talk.inLine', { position, seconds });
    this.#place = position;
    // Read out at first, and when the line has become half as long: each step would be too many.
    if (position <= this.#placeSaid / 2 && !quiet) {
      this.#placeSaid = position;
      this.#on.announce(this.#waiting.textContent);
    }
    this.#on.grew();
  }

  /** Something to know about the answer. @param {{code: string, content: string}} about @param {boolean} quiet not read out */
  notice(about, quiet) {
    this.#served();
    const line = node('p', 'answer-note');
    const key = `notice.${about.code}`;
    say(line, has(key) ? key : 'notice.other', about);
    this.#body.before(line);
    if (!quiet) this.#on.announce(line.textContent);
    this.#on.grew();
  }

  /** The next piece of what the model thinks, which is no part of the answer. @param {string} piece */
  thought(piece) {
    this.#served();
    this.#thoughts ??= new Thoughts(this.#body, this.#on.grew);
    this.#thoughts.add(piece);
  }

  /** The next piece of the answer. @param {string} piece */
  delta(piece) {
    this.#thoughts?.settle();
    this.#text += piece;
    // Pieces come faster than frames; each frame draws all that came.
    this.#frame ||= requestAnimationFrame(() => this.#draw());
  }

  /** The whole answer, which is the truth. @param {string} text @param {boolean} [quiet] not read out */
  whole(text, quiet = false) {
    this.#thoughts?.settle();
    this.#text = text;
    this.#draw();
    this.#item.dataset.written = '';
    if (!quiet) this.#on.finished(this.#plain());
  }

  /**
   * The turn's ending. An answer may be stopped here first, and the server says later what was heard.
   * @param {'completed' | 'interrupted' | 'failed'} status
   * @param {string | null} [heard] the part of an interrupted answer that was heard
   */
  done(status, heard = null) {
    this.#thoughts?.settle();
    if (heard !== null && this.#text.startsWith(heard)) this.#heard = heard;
    if (this.#frame || this.#heard !== null) this.#draw();
    const cut = this.#heard !== null && this.#heard.trim() !== this.#text.trim();
    if (this.#item.dataset.status) {
      if (cut && status === 'interrupted') this.#note('talk.interrupted');
      return;
    }
    this.#item.dataset.status = status;
    if (!this.#text && status !== 'failed') this.#body.remove();
    else if (!this.#text) this.#item.remove(); // The error is shown in its place.
    if (status === 'completed') return;
    if (status === 'failed') this.#note('talk.failed');
    else this.#note(cut ? 'talk.interrupted' : 'talk.stopped');
  }

  /**
   * What is below a finished answer: thumbs, and how long it took.
   * @param {{rate: (rating: 1 | 0 | -1) => void, timeline: Record<string, number> | null}} after
   */
  foot({ rate, timeline }) {
    if (!this.#text || this.#foot) return;
    this.#foot = this.#item.appendChild(node('div', 'answer-foot'));
    this.#foot.append(thumbs(rate));
    const strip = timeline && latencyStrip(timeline);
    if (strip) this.#foot.append(strip);
    this.#on.grew();
  }

  /** It stands in line no more. */
  #served() {
    if (!this.#place) return;
    this.#place = 0;
    say(this.#waiting, 'talk.writing', { name: this.#name });
  }

  #note(key) {
    let note = this.#item.querySelector('.ending-note');
    if (!note) {
      note = node('p', 'ending-note');
      this.#item.insertBefore(note, this.#list?.parentElement ?? this.#foot);
    }
    say(note, key);
    this.#on.grew();
  }

  #draw() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    const cited = new Set();
    const at = this.#heard?.trimEnd().length;
    const text = at === undefined ? this.#text : this.#text.slice(0, at) + CUT + this.#text.slice(at);
    const content = render(text, (n) => this.#citation(n, cited));
    if (at !== undefined) cutAtMark(content);
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
    mark.addEventListener('click', () => (source.url ? this.#on.read(source) : this.#show(n)));
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

/** Greys all text after the mark, and takes the mark away. */
function cutAtMark(content) {
  const walker = document.createTreeWalker(content, NodeFilter.SHOW_TEXT);
  const texts = [];
  while (walker.nextNode()) texts.push(walker.currentNode);
  const index = texts.findIndex((text) => text.data.includes(CUT));
  if (index < 0) return;
  const rest = texts[index].splitText(texts[index].data.indexOf(CUT));
  rest.data = rest.data.slice(CUT.length);
  for (const text of [rest, ...texts.slice(index + 1)]) {
    if (!text.data.trim()) continue;
    const grey = node('span', 'unheard');
    text.replaceWith(grey);
    grey.append(text);
  }
}

/** Two buttons, of which one may be pressed; pressed again it takes the verdict back. */
function thumbs(rate) {
  const group = node('span', 'thumbs');
  const made = [1, -1].map((rating) => {
    const press = node('button', 'thumb');
    press.type = 'button';
    press.dataset.rating = rating;
    press.setAttribute('aria-pressed', 'false');
    const key = rating > 0 ? 'rate.good' : 'rate.bad';
    say(press, key, {}, 'aria-label');
    say(press, key, {}, 'title');
    press.append(thumbIcon());
    press.addEventListener('click', () => {
      const given = press.getAttribute('aria-pressed') === 'true' ? 0 : rating;
      for (const other of made) other.setAttribute('aria-pressed', String(other === press && given !== 0));
      rate(given);
    });
    return press;
  });
  group.append(...made);
  return group;
}

function thumbIcon() {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  svg.setAttribute('viewBox', '0 0 24 24');
  svg.setAttribute('class', 'icon');
  svg.setAttribute('aria-hidden', 'true');
  const path = svg.appendChild(document.createElementNS('http://www.w3.org/2000/svg', 'path'));
  path.setAttribute('d', 'M7.5 10.5v9H4v-9zM7.5 10.5L11.5 3c1.6 0 2.6 1.1 2.3 2.7L13 10h5.3c1.2 0 2.1 1.1 1.8 2.3l-1.4 5.7a2 2 0 0 1-1.9 1.5H7.5');
  return svg;
}

/** @param {Source} source @param {(source: Source) => void} read */
function sourceItem(source, read) {
  const item = node('li', 'source');
  if (source.n) item.dataset.n = source.n;
  if (source.url) item.append(sourceLink(source, read));
  else item.append(quotedSource(source));
  return item;
}

function sourceLink(source, read) {
  const link = node('button', 'source-link');
  link.type = 'button';
  say(link, 'passage.open', { title: titleOf(source) }, 'title');
  link.append(...sourceTitle(source));
  link.addEventListener('click', () => read(source));
  return link;
}

function quotedSource(source) {
  const details = node('details');
  details.appendChild(node('summary')).append(...sourceTitle(source));
  const quote = details.appendChild(node('blockquote'));
  quote.lang = languageOf(source.quote);
  quote.append(render(source.quote));
  say(details.appendChild(node('p', 'score')), 'talk.score', { score: source.score.toFixed(2) });
  return details;
}

/** @param {Source} source */
function titleOf({ document: name, heading }) {
  return heading && heading !== name ? `${name} › ${heading}` : name;
}
