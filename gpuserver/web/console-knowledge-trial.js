/** Trying a question: what would be found for it, how well it fits, and why. */

import { render } from './markdown.js';
import { node } from './nodes.js';
import { languageOf, say, t } from './i18n.js';
import { tryQuestion } from './console-knowledge-server.js';
import { attempted, refusalIn, saySentence } from './console-knowledge-words.js';

/** @typedef {import('./console-knowledge-server.js').Found} Found */

const WHY = ['by_meaning', 'by_words', 'by_heading'];

export class Trial {
  #asked = 0;
  #into = '';

  /** @param {(id: string) => HTMLElement} $ */
  constructor($) {
    this.question = $('trial-question');
    this.answer = $('trial-answer');
    $('trial').addEventListener('submit', (event) => {
      event.preventDefault();
      this.#ask();
    });
  }

  /** Begins anew with another course. @param {string} kbId */
  clear(kbId) {
    this.#into = kbId;
    this.#asked += 1;
    this.answer.hidden = true;
    this.question.value = '';
  }

  async #ask() {
    const question = this.question.value.trim();
    if (!question) return;
    const asked = (this.#asked += 1);
    this.#tell('trial.asking');
    await attempted((error) => {
      if (asked !== this.#asked) return;
      saySentence(this.#tell('trial.asking'), () => refusalIn(error));
    }, async () => {
      const found = await tryQuestion(this.#into, question);
      if (asked === this.#asked) this.#show(found);
    });
  }

  /** @param {{covered: boolean, passages: Found[]}} found */
  #show({ covered, passages }) {
    const told = this.#tell(covered ? 'trial.covered' : passages.length ? 'trial.uncovered' : 'trial.nothing');
    told.dataset.covered = covered;
    if (!passages.length) return;
    const list = this.answer.appendChild(node('ol', 'found'));
    say(list, 'trial.found', {}, 'aria-label');
    let below = false;
    for (const passage of passages) {
      if (!below && !passage.covered) {
        say(list.appendChild(node('li', 'bar-line')), 'trial.bar');
        below = true;
      }
      const item = list.appendChild(foundItem(passage));
      item.dataset.below = below;
    }
  }

  #tell(key) {
    this.answer.hidden = false;
    const told = node('p', 'trial-told');
    told.setAttribute('role', 'status');
    this.answer.replaceChildren(told);
    say(told, key);
    return told;
  }
}

/** @param {Found} passage */
function foundItem(passage) {
  const item = node('li', 'found-one');
  const head = item.appendChild(node('p', 'found-head'));
  const { document: name, heading, page } = passage;
  head.append(node('span', 'document', name));
  if (heading && heading !== name) head.append(node('span', 'heading', heading));
  if (page !== null) say(head.appendChild(node('span', 'page')), 'talk.page', { page });
  const why = item.appendChild(node('ul', 'why'));
  const reasons = typeof passage.by_reranker === 'number' ? ['by_reranker', ...WHY] : WHY;
  why.append(share('trial.whole', passage.similarity, 'whole'), ...reasons.map((name) => share(`trial.${name}`, passage[name], name)));
  const text = item.appendChild(node('blockquote'));
  text.lang = languageOf(passage.text);
  text.append(render(passage.text));
  return item;
}

/** A bar for a share between 0 and 1, or the word that there is none. */
function share(key, value, name) {
  const line = node('li', `why-${name}`);
  say(line.appendChild(node('span', 'why-name')), key);
  if (value === null || value === undefined) {
    say(line.appendChild(node('span', 'why-none')), 'trial.unmeasured');
    return line;
  }
  const percent = Math.round(Math.max(0, Math.min(1, value)) * 100);
  const meter = line.appendChild(node('span', 'why-meter'));
  meter.setAttribute('role', 'meter');
  meter.setAttribute('aria-valuenow', percent);
  meter.setAttribute('aria-valuemin', '0');
  meter.setAttribute('aria-valuemax', '100');
  say(meter, key, {}, 'aria-label');
  meter.appendChild(node('span')).style.width = `${percent}%`;
  say(line.appendChild(node('span', 'why-share')), 'trial.share', { percent });
  return line;
}
