/** The table of models: one row a model, brought up to date in place. */

import { node } from './nodes.js';
import { languageOf, say, t } from './i18n.js';
import { clock, modelName, named, size, span } from './console-words.js';

/** @typedef {import('./console-server.js').Model} Model */

/** One model's row; `act` is told which button was pressed. */
class Row {
  /** @param {Model} model @param {(what: 'load' | 'unload' | 'pin', model: Model) => void} act */
  constructor(model, act) {
    this.element = node('tr');
    this.element.setAttribute('role', 'row');
    this.element.dataset.id = model.id;
    const cells = ['model', 'state', 'for', 'busy', 'memory', 'actions'];
    this.cells = Object.fromEntries(cells.map((name) => [name, this.#cell(name)]));
    this.buttons = ['load', 'pin', 'unload'].map((what) => this.#button(what, act));
    this.cells.actions.append(...this.buttons);
    this.progress = node('progress');
    this.lines = new Map();
  }

  /** @param {Model} model */
  show(model) {
    this.model = model;
    this.element.dataset.state = model.state;
    this.#showName();
    this.#showState();
    this.#showUse();
    this.#showMemory();
    this.#showButtons();
  }

  #cell(name) {
    const cell = this.element.appendChild(node('td', `cell-${name}`));
    cell.setAttribute('role', 'cell');
    if (name !== 'model' && name !== 'actions') say(cell, `models.${name}`, {}, 'data-name');
    return cell;
  }

  #button(what, act) {
    const made = node('button', 'small');
    made.type = 'button';
    made.dataset.act = what;
    made.addEventListener('click', () => act(what, this.model));
    say(made, `models.${what}`);
    return made;
  }

  #showName() {
    const { kind } = this.model;
    this.#line('model', 'kind-name', 'models.said', { sentence: () => named('kind', kind) });
    const name = this.#text('model', 'name', modelName(this.model));
    name.title = this.model.model;
    const provider = this.model.model ? this.model.provider : '';
    this.#text('model', 'provider', provider);
  }

  #showState() {
    const { state, stage, share, problem, loaded_at: since } = this.model;
    const loading = state === 'loading';
    const words = () => named('state.model', state) + (loading && stage ? ` · ${named('stage', stage)}` : '');
    this.#line('state', 'word', 'models.said', { sentence: words });
    this.#showProgress(loading, share);
    const told = this.#text('state', 'problem', problem ?? '');
    told.lang = languageOf(problem ?? '');
    const when = since ? new Date(since) : null;
    this.#line('state', 'since', when && !loading ? 'models.since' : '', { when: () => clock(when) });
  }

  #showProgress(loading, share) {
    if (!loading) {
      this.progress.remove();
      return;
    }
    if (share === null) this.progress.removeAttribute('value');
    else this.progress.value = share;
    say(this.progress, 'models.progress', { model: modelName(this.model) }, 'aria-label');
    if (!this.progress.isConnected) this.cells.state.append(this.progress);
  }

  #showUse() {
    const { tutors, running, waiting, idle_seconds: idle } = this.model;
    const names = () => tutors.map((tutor) => tutor.name).join(t('list.comma')) || t('models.nobody');
    this.#line('for', 'tutors', 'models.said', { sentence: names });
    const busy = running + waiting > 0;
    this.#line('busy', 'running', busy ? 'models.working' : 'models.resting', { running });
    this.#line('busy', 'queued', waiting ? 'models.queued' : '', { waiting });
    const resting = !busy && idle > 0 && this.model.state !== 'loading';
    this.#line('busy', 'idle', resting ? 'models.idle' : '', { span: () => span(idle) });
  }

  #showMemory() {
    const { memory_mb: host, gpu_memory_mb: gpus } = this.model;
    const parts = () => [
      ...Object.entries(gpus ?? {}).map(([index, mb]) => t('models.onGpu', { index, size: size(mb) })),
      ...(host ? [size(host)] : []),
    ];
    const sentence = () => parts().join('\n') || t('models.unknown');
    this.#line('memory', 'sizes', 'models.said', { sentence });
  }

  #showButtons() {
    const [load, pin, unload] = this.buttons;
    const { state, pinned } = this.model;
    const name = { model: modelName(this.model) };
    load.hidden = state !== 'failed' && state !== 'asleep';
    unload.hidden = state === 'loading';
    pin.setAttribute('aria-pressed', pinned);
    say(load, 'models.loadThis', name, 'aria-label');
    say(pin, 'models.pinThis', name, 'aria-label');
    say(unload, 'models.unloadThis', name, 'aria-label');
  }

  /** A line of a cell that says a sentence; '' takes it away. */
  #line(cell, name, key, params = {}) {
    const line = this.#part(cell, name);
    line.hidden = !key;
    if (key) say(line, key, params);
  }

  #text(cell, name, text) {
    const line = this.#part(cell, name);
    line.hidden = !text;
    if (line.textContent !== text) line.textContent = text;
    return line;
  }

  #part(cell, name) {
    if (!this.lines.has(name)) this.lines.set(name, this.cells[cell].appendChild(node('span', name)));
    return this.lines.get(name);
  }
}

/** All rows, in the order in which the server tells of them. */
export class ModelTable {
  #rows = new Map();

  /** @param {HTMLElement} body @param {(what: 'load' | 'unload' | 'pin', model: Model) => void} act */
  constructor(body, act) {
    this.body = body;
    this.act = act;
  }

  /** @param {Model[]} models */
  show(models) {
    const ids = new Set(models.map((model) => model.id));
    for (const [id, row] of this.#rows) {
      if (ids.has(id)) continue;
      row.element.remove();
      this.#rows.delete(id);
    }
    models.forEach((model, place) => {
      if (!this.#rows.has(model.id)) this.#rows.set(model.id, new Row(model, this.act));
      const row = this.#rows.get(model.id);
      row.show(model);
      // A row is moved only where it has to: moving it would take the keyboard's place away.
      const there = this.body.children[place];
      if (there !== row.element) this.body.insertBefore(row.element, there ?? null);
    });
  }
}
