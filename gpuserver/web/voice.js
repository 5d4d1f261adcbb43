/** Asking by voice: the microphone button, its hint, and the clip that is sent. */

import { language, say, t } from './i18n.js';
import { Recorder, obstacle, reasonOf } from './recorder.js';
import { TalkButton } from './talk-button.js';
import { nameOf } from './welcome.js';

/** A clip shorter than this holds no word. */
const SHORTEST_S = 0.4;
const TICK_MS = 60;
const touch = matchMedia('(hover: none)');

export class Voice {
  #button;
  #hint;
  #on;
  #state = 'off'; // then `opening` while the browser asks for permission, then `on`
  #recorder = null;
  #ticking = 0;
  #limit = Infinity;
  #able = false;
  #tutor = null;

  /**
   * @param {HTMLButtonElement} button
   * @param {HTMLElement} hint the line that says how, or why not
   * @param {{begun: () => void, ended: () => void, clip: (clip: Blob) => void, announce: (text: string) => void}} on
   */
  constructor(button, hint, on) {
    this.#button = button;
    this.#hint = hint;
    this.#on = on;
    new TalkButton(button, {
      begin: () => this.#begin(),
      finish: () => this.#finish(),
      discard: () => this.discard(),
      active: () => this.active,
    });
    this.#show();
  }

  get active() {
    return this.#state !== 'off';
  }

  /**
   * Sets up for a tutor, who listens in one language: its own. The button is off, with the reason,
   * where it can't work.
   * @param {import('./session.js').Tutor} tutor
   * @param {number} limit the longest clip in seconds
   */
  prepare(tutor, limit) {
    this.#tutor = tutor;
    this.#limit = limit;
    const heard = tutor.listens.includes(tutor.language);
    const reason = obstacle();
    this.#able = heard && !reason;
    this.#button.disabled = !this.#able;
    if (!this.#able) this.discard();
    if (!heard) this.#tell('mic.notHeard', { ...this.#names(), fix: tutor.missing_speech });
    else if (reason) this.#tell(`mic.${reason}`);
    else this.#show();
  }

  /** Drops what was recorded. */
  discard() {
    if (!this.active) return;
    this.#recorder?.discard();
    this.#off();
  }

  async #begin() {
    if (!this.#able || this.active) return;
    this.#state = 'opening';
    this.#on.begun();
    this.#show();
    try {
      const recorder = await Recorder.start();
      this.#opened(recorder);
    } catch (error) {
      this.#off();
      this.#problem(`mic.${reasonOf(error)}`);
    }
  }

  #opened(recorder) {
    if (this.#state !== 'opening') {
      // The button was let go while the browser still asked whether it may.
      recorder.discard();
      this.#problem('mic.again');
      return;
    }
    this.#recorder = recorder;
    this.#state = 'on';
    this.#ticking = setInterval(() => this.#tick(), TICK_MS);
    this.#show();
  }

  async #finish() {
    const recorder = this.#recorder;
    const seconds = recorder?.seconds ?? 0;
    this.#recorder = null;
    this.#off();
    if (!recorder) return;
    const clip = await recorder.stop();
    if (seconds < SHORTEST_S) this.#problem('mic.tooShort');
    else this.#on.clip(clip);
  }

  #off() {
    clearInterval(this.#ticking);
    this.#recorder = null;
    this.#state = 'off';
    this.#button.style.removeProperty('--level');
    this.#show();
    this.#on.ended();
  }

  #tick() {
    const seconds = this.#recorder.seconds;
    this.#button.style.setProperty('--level', this.#recorder.level().toFixed(3));
    say(this.#hint, 'mic.recording', { time: clock(seconds) });
    if (seconds >= this.#limit) this.#finish();
  }

  #show() {
    this.#button.setAttribute('aria-pressed', String(this.active));
    this.#button.dataset.state = this.#state;
    const label = this.active ? 'mic.stop' : 'mic.start';
    say(this.#button, label, {}, 'aria-label');
    say(this.#button, label, {}, 'title');
    if (this.#state === 'opening') this.#tell('mic.opening');
    else if (this.#state === 'on') this.#tell('mic.recording', { time: clock(0) });
    else if (this.#able) this.#tell(touch.matches ? 'mic.hintTouch' : 'mic.hint', {}, this.#language());
  }

  /** Which language to speak, where the interface is in another. */
  #language() {
    return () => (this.#tutor.language === language() ? '' : t('mic.language', this.#names()));
  }

  #names() {
    return { name: this.#tutor.name, language: () => nameOf(this.#tutor.language) };
  }

  #tell(key, params = {}, more = '') {
    this.#hint.classList.remove('problem');
    say(this.#hint, key, { ...params, more });
  }

  #problem(key) {
    this.#tell(key);
    this.#hint.classList.add('problem');
    this.#on.announce(t(key));
  }
}

function clock(seconds) {
  const whole = Math.floor(seconds);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, '0')}`;
}
