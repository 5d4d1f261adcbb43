/** Course material: the courses there are, making and bringing in others, and the one that is open. */

import './console-knowledge-strings.js';
import { node } from './nodes.js';
import { say, t } from './i18n.js';
import { OpenBase } from './console-knowledge-base.js';
import { createBase, importBase, listBases } from './console-knowledge-server.js';
import { attempted, counted, refusalIn, saySentence } from './console-knowledge-words.js';
import { Uploads } from './console-knowledge-uploads.js';
import { Refusal } from './console-server.js';

/** @typedef {import('./console-knowledge-server.js').Base} Base */

export class Knowledge {
  /** @type {Base[]} */
  #bases = [];
  #cards = new Map();
  #chosen = ''; // the id of the course that is open
  #held = []; // files that wait for a course to be made
  #looking = Promise.resolve();
  /** @type {Promise<void> | null} the look that begins when this one is over, for all who ask meanwhile */
  #next = null;

  /** @param {(id: string) => HTMLElement} $ */
  constructor($) {
    this.$ = $;
    const tell = (error) => this.#tell(error);
    this.uploads = new Uploads($, {
      dropped: (files, into) => this.#take(files, into),
      sent: () => this.look(),
    });
    this.open = new OpenBase($, {
      tell,
      changed: () => this.look(),
      told: (base) => this.#told(base),
      deleted: (kbId) => this.uploads.forget(kbId),
      replace: (document) => this.uploads.replace(document),
    });
    this.#wireForm();
    $('base-import').addEventListener('click', () => $('import-file').click());
    $('import-file').addEventListener('change', () => this.#import());
  }

  /** Brings what is shown up to date, with one look at a time. @throws {Refusal} the key is refused */
  look() {
    this.#next ??= this.#looking.catch(() => {}).then(() => {
      this.#next = null;
      this.#looking = this.#lookOnce();
      return this.#looking;
    });
    return this.#next;
  }

  async #lookOnce() {
    try {
      // A change that the stream tells meanwhile may be undone by it, until the next look.
      this.#bases = await listBases();
    } catch (error) {
      if (!(error instanceof Refusal) || error.status === 401) throw error;
      return; // That the server does not answer is said above.
    }
    this.$('knowledge').hidden = false;
    this.#showCards();
    const chosen = this.#find(this.#chosen) ?? this.#bases.find(own);
    if (chosen?.kb_id !== this.open.id) this.#choose(chosen?.kb_id ?? '');
    await this.open.look(chosen);
  }

  /** What has become of a course. @param {Base} base */
  #told(base) {
    this.#bases = this.#bases.map((known) => (known.kb_id === base.kb_id ? base : known));
    this.#showCards();
    this.open.put(base);
  }

  /** Nobody looks: no stream is kept open. */
  rest() {
    this.open.rest();
  }

  #find(kbId) {
    return this.#bases.find((base) => base.kb_id === kbId);
  }

  #choose(kbId, { focus = false } = {}) {
    this.#chosen = kbId;
    this.$('course-said').hidden = true;
    const base = this.#find(kbId);
    for (const [id, { button }] of this.#cards) button.setAttribute('aria-pressed', String(id === kbId));
    this.open.show(base);
    // A course of the server takes no documents; for others, and where there is none, this comes first.
    this.$('drop').hidden = Boolean(base) && !own(base);
    this.uploads.into(own(base) ? base : {});
    if (focus) this.$('base-name').focus({ preventScroll: true });
  }

  // The courses

  #showCards() {
    const list = this.$('bases');
    for (const [id, { item }] of this.#cards) {
      if (this.#find(id)) continue;
      item.remove();
      this.#cards.delete(id);
    }
    for (const base of this.#bases) {
      if (!this.#cards.has(base.kb_id)) this.#cards.set(base.kb_id, this.#card(base));
      this.#showCard(this.#cards.get(base.kb_id), base);
    }
    list.hidden = this.#bases.length === 0;
    const order = [...this.#bases].sort((a, b) => Number(own(b)) - Number(own(a)));
    order.forEach((base, place) => {
      const { item } = this.#cards.get(base.kb_id);
      if (list.children[place] !== item) list.insertBefore(item, list.children[place] ?? null);
    });
  }

  #card({ kb_id: id }) {
    const item = node('li');
    const button = item.appendChild(node('button', 'card-base'));
    button.type = 'button';
    button.dataset.id = id;
    button.setAttribute('aria-pressed', String(id === this.#chosen));
    const [name, counts, state] = ['name', 'counts', 'state'].map((part) => button.appendChild(node('span', part)));
    name.dir = 'auto';
    button.addEventListener('click', () => {
      this.#choose(id);
      this.#look();
    });
    return { item, button, name, counts, state };
  }

  #showCard({ button, name, counts, state }, base) {
    button.dataset.state = base.state;
    const title = base.title || base.kb_id;
    if (name.textContent !== title) name.textContent = title;
    say(counts, 'course.counts', {
      documents: () => counted('course.documents', base.documents),
      passages: () => counted('course.passages', base.passages),
    });
    const note = own(base) ? '' : 'course.shipped';
    state.hidden = base.state === 'ready' && !note;
    if (base.state === 'ready') say(state, note || 'docs.state.ready');
    else say(state, `docs.state.${base.state}`);
  }

  // A new one

  #wireForm() {
    const { $ } = this;
    let typed = false; // whether somebody has chosen the id themselves
    $('base-new').addEventListener('click', () => {
      typed = false;
      this.#ask([]);
    });
    $('base-cancel').addEventListener('click', () => this.#endForm($('base-new')));
    $('base-title').addEventListener('input', () => {
      if (!typed) $('base-id').value = this.#idOf($('base-title').value);
    });
    $('base-id').addEventListener('input', () => (typed = $('base-id').value !== ''));
    $('base-form').addEventListener('submit', (event) => {
      event.preventDefault();
      this.#create();
    });
  }

  /** Shows the form. @param {File[]} files what goes into the new course */
  #ask(files) {
    const { $ } = this;
    this.#held = files;
    $('base-form').hidden = false;
    $('base-held').hidden = !files.length;
    if (files.length) say($('base-held'), 'course.held', { files: () => counted('course.files', files.length) });
    if (!$('base-title').value) $('base-id').value = '';
    $('base-title').focus();
  }

  #endForm(focused) {
    this.#held = [];
    this.$('base-form').reset();
    this.$('base-form').hidden = true;
    focused?.focus();
  }

  /** An id out of a name's letters; those of other scripts have none, so that a number has to do. */
  #idOf(title) {
    const letters = title.normalize('NFKD').replace(/[^A-Za-z0-9_.\s-]/g, '').trim();
    const stem = letters.toLowerCase().replace(/[\s.-]+/g, '-').replace(/^[-_.]+|[-.]+$/g, '').slice(0, 60);
    if (!title.trim()) return '';
    const free = (id) => !this.#bases.some((base) => base.kb_id.toLowerCase() === id);
    if (stem && free(stem)) return stem;
    let number = 1;
    while (!free(`${stem || 'course'}-${number}`)) number += 1;
    return `${stem || 'course'}-${number}`;
  }

  async #create() {
    const { $ } = this;
    const files = this.#held;
    const wish = { kb_id: $('base-id').value.trim(), title: $('base-title').value.trim() };
    await attempted((error) => this.#tell(error), async () => {
      await createBase(wish);
      this.#endForm();
      this.uploads.add(files, wish.kb_id);
      await this.#show(wish.kb_id);
    });
  }

  async #import() {
    const { $ } = this;
    const [file] = $('import-file').files;
    $('import-file').value = '';
    if (!file) return;
    $('course-said').hidden = true;
    const made = await this.uploads.sendAlone(file, importBase);
    if (made) await this.#show(made.kb_id);
  }

  /** Opens a course that is new. */
  async #show(kbId) {
    await this.#look();
    this.#choose(kbId, { focus: true });
    await this.#look();
  }

  /** Files that were dropped or chosen. @param {File[]} files @param {string} into the course open then */
  #take(files, into) {
    this.$('course-said').hidden = true;
    if (!files.length) this.#say(() => t('course.nothingIn'));
    else if (!this.$('base-form').hidden) this.#ask([...this.#held, ...files]);
    else if (into) this.uploads.add(files, into);
    else this.#ask(files);
  }

  // What goes wrong

  async #look() {
    await attempted((error) => this.#tell(error), () => this.look());
  }

  #tell(error) {
    this.#say(() => refusalIn(error));
  }

  #say(sentence) {
    const said = this.$('course-said');
    said.hidden = false;
    saySentence(said, sentence);
    said.scrollIntoView({ block: 'nearest' });
  }
}

/** Whether a course is the school's own, to be changed here. @param {Base | undefined} base */
function own(base) {
  return base?.origin === 'uploaded';
}
