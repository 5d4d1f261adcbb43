/** Loading a model by hand: which one, whether it fits, and how it goes on. */

import { button, node } from './nodes.js';
import { language, languageOf, say } from './i18n.js';
import { fit, load, Refusal } from './console-server.js';
import { modelName, named } from './console-words.js';

/** The engines that can be loaded, by what they are for. */
export const PROVIDERS = {
  llm: ['vllm', 'openai', 'extractive'],
  asr: ['faster-whisper', 'pocketsphinx'],
  tts: ['coqui', 'espeak'],
  embeddings: ['sentence-transformers', 'minilm'],
  reranker: ['sentence-transformers'],
};

/** The form and what stands below it. `looked` is called when the table has something new. */
export class LoadForm {
  #asked = 0;
  #busy = false;

  /** @param {(id: string) => HTMLElement} $ @param {() => void} looked */
  constructor($, looked) {
    this.kind = $('load-kind');
    this.provider = $('load-provider');
    this.model = $('load-model');
    this.pin = $('load-pin');
    this.check = $('load-check');
    this.answer = $('load-answer');
    this.looked = looked;
    for (const kind of Object.keys(PROVIDERS)) {
      const option = this.kind.appendChild(node('option'));
      option.value = kind;
      say(option, `kind.${kind}`);
    }
    this.kind.addEventListener('change', () => this.#offerProviders());
    $('load').addEventListener('submit', (event) => {
      event.preventDefault();
      this.#ask();
    });
    $('load').addEventListener('input', () => this.#forget());
    this.#offerProviders();
  }

  /** Fills in a model of the table and asks whether it fits. @param {import('./console-server.js').Model} model */
  propose({ kind, provider, model, pinned }) {
    if (this.#busy) return;
    this.kind.value = kind;
    this.#offerProviders(provider);
    this.model.value = model;
    this.pin.checked = pinned;
    this.#ask();
  }

  #offerProviders(chosen = '') {
    const names = new Set([...(PROVIDERS[this.kind.value] ?? []), ...(chosen ? [chosen] : [])]);
    this.provider.replaceChildren(...[...names].map((name) => new Option(name, name)));
    this.provider.value = chosen || [...names][0];
  }

  /** What was answered about another model is taken away. */
  #forget() {
    if (this.#busy) return;
    this.#asked += 1;
    this.answer.hidden = true;
  }

  async #ask() {
    if (this.#busy) return;
    const asked = (this.#asked += 1);
    const wish = { kind: this.kind.value, provider: this.provider.value, model: this.model.value.trim() };
    this.#tell('load.checking');
    try {
      const verdict = await fit(wish);
      if (asked === this.#asked) this.#offer({ ...wish, pin: this.pin.checked }, verdict);
    } catch (error) {
      if (asked === this.#asked) this.#refused(error);
    }
  }

  #offer(wish, verdict) {
    const sentence = () => (language() === 'zh' && verdict.sentence_zh) || verdict.sentence;
    const told = this.#tell('load.said', { sentence });
    told.parentElement.dataset.fits = verdict.fits;
    if (!verdict.fits) return;
    if (verdict.would_evict?.length) {
      const models = verdict.would_evict.join(', ');
      say(this.answer.appendChild(node('p')), 'load.evicts', { models });
    }
    const row = this.answer.appendChild(node('p', 'choices'));
    const now = row.appendChild(button('load.now', () => this.#load(wish)));
    const cancel = row.appendChild(node('button', 'plain'));
    cancel.type = 'button';
    say(cancel, 'load.cancel');
    cancel.addEventListener('click', () => {
      this.#forget();
      this.check.focus();
    });
    now.focus();
  }

  async #load(wish) {
    this.#busy = this.check.disabled = true;
    const model = modelName(wish);
    const told = this.#tell('load.stage', { model, stage: () => named('stage', 'fitting') });
    const bar = this.answer.appendChild(node('progress'));
    say(bar, 'models.progress', { model }, 'aria-label');
    try {
      const loaded = await load(wish, ({ stage, share }) => {
        say(told, 'load.stage', { model, stage: () => named('stage', stage) });
        if (share === null || share === undefined) bar.removeAttribute('value');
        else bar.value = share;
      });
      this.#tell('load.done', { model: modelName(loaded) });
    } catch (error) {
      this.#refused(error);
    } finally {
      this.#busy = this.check.disabled = false;
      this.looked();
    }
  }

  #refused(error) {
    if (!(error instanceof Refusal)) throw error;
    const told = error.status
      ? this.#tell('load.said', { sentence: error.message })
      : this.#tell('load.cut');
    if (error.status) told.lang = languageOf(error.message);
    told.parentElement.dataset.fits = false;
  }

  #tell(key, params = {}) {
    this.answer.replaceChildren();
    this.answer.hidden = false;
    delete this.answer.dataset.fits;
    const told = this.answer.appendChild(node('p'));
    told.setAttribute('role', 'status');
    say(told, key, params);
    return told;
  }
}
