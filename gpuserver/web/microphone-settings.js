/** Which microphone, and whether it stays open or is held: a small panel above the talk button. */

import { say } from './i18n.js';
import { Microphone } from './microphone.js';
import { node } from './nodes.js';

export class MicrophoneSettings {
  #panel;
  #devices;
  #device = '';

  /**
   * @param {HTMLDetailsElement} panel
   * @param {{mode: (mode: 'open' | 'push') => void, device: (id: string) => void}} on
   */
  constructor(panel, on) {
    this.#panel = panel;
    this.#devices = panel.querySelector('select');
    this.#devices.addEventListener('change', () => {
      this.#device = this.#devices.value;
      on.device(this.#device);
    });
    for (const choice of panel.querySelectorAll('[name=microphone-mode]')) {
      choice.addEventListener('change', () => on.mode(choice.value));
    }
    panel.addEventListener('toggle', () => panel.open && this.fill());
    panel.addEventListener('keydown', (event) => this.#onKey(event));
    document.addEventListener('pointerdown', ({ target }) => panel.contains(target) || (panel.open = false));
    navigator.mediaDevices?.addEventListener?.('devicechange', () => this.fill());
  }

  /** @param {boolean} able whether there is a microphone to choose @param {'open' | 'push'} mode @param {string} device */
  show(able, mode, device) {
    this.#panel.hidden = !able;
    this.#device = device;
    this.#panel.querySelector(`[value=${mode}]`).checked = true;
    if (able) this.fill();
  }

  /** Lists the microphones there are now. @param {string} [inUse] the one that is open */
  async fill(inUse = '') {
    const found = await Microphone.list().catch(() => []);
    const usual = node('option');
    usual.value = '';
    say(usual, 'mic.usual');
    const named = found.filter(({ id }) => id).map(({ id, name }, index) => {
      const option = node('option', '', name);
      option.value = id;
      if (!name) say(option, 'mic.numbered', { n: index + 1 });
      return option;
    });
    this.#devices.replaceChildren(usual, ...named);
    const wanted = this.#device && inUse ? inUse : this.#device;
    this.#devices.value = named.some(({ value }) => value === wanted) ? wanted : '';
  }

  #onKey(event) {
    if (event.key !== 'Escape' || !this.#panel.open) return;
    event.stopPropagation();
    this.#panel.open = false;
    this.#panel.querySelector('summary').focus();
  }
}
