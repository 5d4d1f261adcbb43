/** Bringing files in: dropping or choosing them, sending one after another, and what was refused. */

import { node } from './nodes.js';
import { say } from './i18n.js';
import { dropped } from './console-knowledge-drop.js';
import { addDocument, replaceDocument } from './console-knowledge-server.js';
import { attempted, counted, refusalIn, saySentence } from './console-knowledge-words.js';

/** @typedef {{into: string, file: File, send: (file: File, told: (share: number) => void) => Promise<object>}} Job */

export class Uploads {
  /** @type {Job[]} */
  #waiting = [];
  #busy = false;
  #into = '';
  #invitation = ['course.drop'];

  /**
   * @param {(id: string) => HTMLElement} $
   * @param {{dropped: (files: File[], into: string) => void, sent: () => Promise<void>}} on
   *   `dropped`: files, and the id of the course that was open; `sent`: the server has a file
   */
  constructor($, on) {
    this.$ = $;
    this.on = on;
    this.list = $('uploads');
    this.rest = node('li', 'upload-rest');
    this.#wireDrop();
    $('drop-choose').addEventListener('click', () => $('drop-files').click());
    $('drop-files').addEventListener('change', () => {
      const files = [...$('drop-files').files];
      $('drop-files').value = ''; // The same file may be chosen again.
      if (files.length) on.dropped(files, this.#into);
    });
  }

  /** Which course the files go into; none is open where there is no id. @param {{kb_id?: string, title?: string}} base */
  into({ kb_id: id = '', title = '' }) {
    this.#into = id;
    this.#invitation = id ? ['course.dropInto', { name: title || id }] : ['course.drop'];
    say(this.$('drop-words'), ...this.#invitation);
  }

  /** Sends files, one after another. @param {File[]} files @param {string} into a course's id */
  add(files, into) {
    this.#put(files.map((file) => ({ into, file, send: (what, told) => addDocument(into, what, told) })));
  }

  /** Sends no more into a course, which was deleted. @param {string} kbId */
  forget(kbId) {
    this.#waiting = this.#waiting.filter(({ into }) => into !== kbId);
    this.#showRest();
  }

  /** Asks for a file that takes a document's place. @param {import('./console-knowledge-server.js').Document} document */
  replace({ id: document }) {
    const into = this.#into;
    const picker = this.$('replace-file');
    picker.value = '';
    picker.onchange = () => {
      const [file] = picker.files;
      if (file) this.#put([{ into, file, send: (what, told) => replaceDocument(into, document, what, told) }]);
    };
    picker.click();
  }

  /** Sends one file; gives what the server answers, nothing where it refuses. @param {File} file @param {Job['send']} send */
  sendAlone(file, send) {
    return this.#send({ into: '', file, send });
  }

  #put(jobs) {
    this.#waiting.push(...jobs);
    this.#showRest();
    if (!this.#busy) this.#work();
  }

  async #work() {
    this.#busy = true;
    while (this.#waiting.length) {
      const job = this.#waiting.shift();
      this.#showRest();
      if (await this.#send(job)) await attempted(() => {}, this.on.sent);
    }
    this.#busy = false;
  }

  async #send(job) {
    const row = this.list.appendChild(node('li', 'upload'));
    row.dataset.state = 'sending';
    this.list.hidden = false;
    this.list.append(this.rest);
    say(row.appendChild(node('p')), 'upload.sending', { name: job.file.name });
    const bar = row.appendChild(node('progress'));
    bar.value = 0;
    say(bar, 'upload.sending', { name: job.file.name }, 'aria-label');
    let answer = null;
    await attempted((error) => this.#refused(row, job, error), async () => {
      answer = await job.send(job.file, (share) => (bar.value = share));
      row.remove();
    });
    this.#tidy();
    return answer;
  }

  #refused(row, job, error) {
    const { name } = job.file;
    row.replaceChildren();
    row.dataset.state = 'refused';
    const told = row.appendChild(node('p'));
    told.setAttribute('role', 'alert');
    saySentence(told, () => refusalIn(error));
    // Most sentences name the file already.
    if (!refusalIn(error).includes(name)) say(told, 'upload.refused', { name, sentence: () => refusalIn(error) });
    const press = (key, act) => {
      const made = row.appendChild(node('button', 'small'));
      made.type = 'button';
      say(made, key);
      say(made, `${key}This`, { name }, 'aria-label');
      made.addEventListener('click', () => {
        row.remove();
        this.#tidy();
        act();
      });
    };
    press('upload.again', () => this.#put([job]));
    press('upload.away', () => this.$('drop-choose').focus());
  }

  #showRest() {
    const count = this.#waiting.length;
    this.rest.hidden = count === 0;
    say(this.rest, 'upload.waiting', { files: () => counted('course.files', count) });
  }

  #tidy() {
    this.list.hidden = !this.list.querySelector('.upload');
  }

  /** Files may be dropped anywhere on the section; beside it they do nothing, instead of being opened. */
  #wireDrop() {
    const place = this.$('knowledge');
    const held = (event) => event.dataTransfer?.types.includes('Files');
    const over = (on) => {
      place.toggleAttribute('data-dragging', on);
      say(this.$('drop-words'), ...(on ? ['course.dropNow'] : this.#invitation));
    };
    over(false);
    let deep = 0; // how many elements inside the section the pointer has entered
    place.addEventListener('dragenter', (event) => {
      if (!held(event)) return;
      deep += 1;
      over(true);
    });
    place.addEventListener('dragleave', (event) => {
      if (!held(event)) return;
      deep = Math.max(0, deep - 1);
      if (!deep) over(false);
    });
    document.addEventListener('dragover', (event) => {
      if (!held(event)) return;
      event.preventDefault();
      event.dataTransfer.dropEffect = place.contains(event.target) ? 'copy' : 'none';
    });
    document.addEventListener('drop', async (event) => {
      if (!held(event)) return;
      event.preventDefault();
      deep = 0;
      over(false);
      // Another course may be opened while folders are gone through.
      const into = this.#into;
      if (place.contains(event.target)) this.on.dropped(await dropped(event.dataTransfer), into);
    });
  }
}
