/** The course that is open: its documents as they become ready, trying a question, taking it away. */

import { say } from './i18n.js';
import { DocumentList } from './console-knowledge-documents.js';
import { deleteBase, deleteDocument, exported, extracted, follow, listDocuments, readAgain } from './console-knowledge-server.js';
import { attempted, counted, problemIn, saySentence, sure } from './console-knowledge-words.js';
import { Reader } from './console-knowledge-reader.js';
import { Trial } from './console-knowledge-trial.js';
import { Refusal } from './console-server.js';

/** How long a broken stream rests before it is tried again; meanwhile the list is asked for. */
const REST_MS = 10_000;

export class OpenBase {
  #base = null;
  /** @type {AbortController | null} the stream's, while there is one */
  #stream = null;
  #broken = -Infinity; // when the stream broke last
  #events = 0; // of the stream
  #going = new Set(); // the ids of courses being deleted: they are asked nothing, and may be gone already

  /**
   * @param {(id: string) => HTMLElement} $
   * @param {{tell: (error: Refusal) => void, changed: () => Promise<void>,
   *   told: (base: import('./console-knowledge-server.js').Base) => void,
   *   deleted: (kbId: string) => void, replace: (document: object) => void}} on
   *   `changed`: a look is due; `told`: what has become of the course
   */
  constructor($, on) {
    this.$ = $;
    this.on = on;
    this.reader = new Reader($);
    this.trial = new Trial($);
    this.list = new DocumentList($, (what, document) => this.#act(what, document));
    $('base-export').addEventListener('click', () => this.#export());
    $('base-delete').addEventListener('click', () => this.#delete());
  }

  /** The open course's. @returns {string | undefined} */
  get id() {
    return this.#base?.kb_id;
  }

  /** Opens a course, or none. @param {import('./console-knowledge-server.js').Base | undefined} base */
  show(base) {
    if (base?.kb_id === this.id) return;
    this.rest();
    this.#broken = -Infinity;
    this.#base = base ?? null;
    this.$('base').hidden = this.$('base-head').hidden = !base;
    this.list.clear();
    this.trial.clear(base?.kb_id ?? '');
    if (base) this.put(base);
  }

  /** Brings the open course up to date. @param {import('./console-knowledge-server.js').Base | undefined} base */
  async look(base) {
    if (!this.#shows(base)) return;
    this.put(base);
    if (this.#stream && this.list.size === base.documents) return;
    const events = this.#events;
    try {
      const documents = await listDocuments(base.kb_id);
      // What was told meanwhile is newer; if something is missing then, the next look finds it.
      if (this.#shows(base) && events === this.#events) this.list.show(documents, base.origin === 'uploaded');
    } catch (error) {
      if (!(error instanceof Refusal) || error.status === 401) throw error;
    }
    if (this.#shows(base) && base.origin === 'uploaded') this.#listen();
  }

  #shows(base) {
    return Boolean(base) && base.kb_id === this.id && !this.#going.has(base.kb_id);
  }

  /** Ends the stream. */
  rest() {
    this.#stream?.abort();
    this.#stream = null;
  }

  /** Follows the changes as they come, for as long as the stream lasts. */
  async #listen() {
    if (this.#stream || document.hidden || performance.now() - this.#broken < REST_MS) return;
    const { kb_id: id } = this.#base;
    const ending = (this.#stream = new AbortController());
    const told = (event, change) => {
      if (ending !== this.#stream) return;
      this.#events += 1;
      if (event === 'document') this.list.put(change);
      else if (event === 'base') this.on.told(change);
      else if (change.document_id) this.list.drop(change.document_id);
      else attempted(() => {}, this.on.changed); // What is wrong, the next look says.
    };
    // What breaks it shows in the next look.
    await attempted(() => {}, () => follow(id, told, ending));
    if (ending !== this.#stream) return;
    this.#stream = null;
    this.#broken = performance.now();
  }

  /** What has become of the open course. @param {import('./console-knowledge-server.js').Base} base */
  put(base) {
    const { $ } = this;
    const title = base.title || base.kb_id;
    if ($('base-name').textContent !== title) $('base-name').textContent = title;
    say($('base-kb'), 'course.kbId', { id: base.kb_id });
    const shipped = base.origin !== 'uploaded';
    const note = $('base-note');
    note.hidden = !shipped && !base.problem;
    note.classList.toggle('problem', Boolean(base.problem));
    if (base.problem) saySentence(note, () => problemIn(base.problem));
    else if (shipped) say(note, 'course.shippedNote');
    $('base-export').hidden = $('base-delete').hidden = shipped;
    this.#base = base;
  }

  // What its buttons do

  /** @param {'read' | 'replace' | 'retry' | 'delete'} what @param {import('./console-knowledge-server.js').Document} document */
  async #act(what, document) {
    const { kb_id: id } = this.#base;
    if (what === 'replace') return this.on.replace(document);
    if (what === 'read') return this.reader.open(document.name, () => extracted(id, document.id));
    if (what === 'delete' && !(await sure(this.$('sure'), 'manage.deleteDocument', { name: document.name }))) return undefined;
    return attempted(this.on.tell, async () => {
      if (what === 'delete') {
        await deleteDocument(id, document.id);
        if (id === this.id) this.list.drop(document.id);
      } else {
        const events = this.#events;
        const again = await readAgain(id, document.id);
        // The stream may have told it already, and what has become of it since.
        if (id === this.id && events === this.#events) this.list.put(again);
      }
      await this.on.changed();
    });
  }

  async #delete() {
    const { kb_id: id, title, documents } = this.#base;
    const params = { name: title || id, documents: () => counted('course.documents', documents) };
    if (!(await sure(this.$('sure'), 'manage.deleteBase', params))) return;
    this.rest();
    this.#going.add(id);
    await attempted(this.on.tell, async () => {
      await deleteBase(id);
      this.on.deleted(id);
      await this.on.changed();
    });
    this.#going.delete(id);
  }

  async #export() {
    const press = this.$('base-export');
    const { kb_id: id } = this.#base;
    press.disabled = true;
    say(press, 'manage.exporting');
    await attempted(this.on.tell, async () => download(await exported(id), `${id}.zip`));
    press.disabled = false;
    say(press, 'manage.export');
  }
}

function download(blob, name) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  // The browser has its own hold of the file by then.
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
