/** Asking by voice: the talk button, its hint and level, and the microphone behind them. */

import { language, recall, remember, say, t } from './i18n.js';
import { MicrophoneSettings } from './microphone-settings.js';
import { Microphone, reasonOf } from './microphone.js';
import { TalkButton } from './talk-button.js';
import { nameOf } from './welcome.js';

const MODE = 'classroom.microphone.mode';
const DEVICE = 'classroom.microphone.device';
/** A recording shorter than this holds no word. */
const SHORTEST_S = 0.4;
/** A microphone that has given nothing at all after so long is switched off, or the wrong one. */
const SILENT_S = 5;

const touch = matchMedia('(hover: none)');

/** @typedef {'open' | 'push'} Mode hands-free, or push to talk */

export class Voice {
  #button;
  #hint;
  #meter;
  #on;
  #microphone = new Microphone();
  #settings;
  #state = 'off'; // then `opening` while the browser asks for permission, then `on`
  #since = 0;
  #sounded = false; // anything but silence, since it was opened
  #silent = false;
  #time = '';
  #limit = Infinity;
  #able = false;
  #tutor = null;
  #mode = recall(MODE) === 'push' ? 'push' : 'open';
  #device = recall(DEVICE) ?? '';

  /**
   * @param {{button: HTMLButtonElement, hint: HTMLElement, meter: HTMLElement, settings: HTMLDetailsElement}} parts
   * @param {object} on
   * @param {() => void} on.pressed before the browser is asked for the microphone
   * @param {(how: {mode: Mode, sampleRate: number}) => void} on.begun
   * @param {(samples: Int16Array) => void} on.frame
   * @param {(mode: Mode) => void} on.finished the microphone was closed, or push to talk let go
   * @param {() => void} on.discarded
   * @param {() => void} on.changed
   * @param {(text: string) => void} on.announce
   */
  constructor({ button, hint, meter, settings }, on) {
    this.#button = button;
    this.#hint = hint;
    this.#meter = meter;
    this.#on = on;
    new TalkButton(button, {
      begin: () => this.#begin(),
      finish: () => this.#finish(),
      discard: () => this.discard(),
      active: () => this.active,
      held: () => this.#mode === 'push',
    });
    this.#settings = new MicrophoneSettings(settings, {
      mode: (mode) => this.#choose(mode, this.#device),
      device: (device) => this.#choose(this.#mode, device),
    });
    this.#microphone.addEventListener('frame', ({ detail }) => this.#onFrame(detail));
    this.#microphone.addEventListener('lost', () => this.#onLost());
    this.#show();
  }

  get active() {
    return this.#state !== 'off';
  }

  /** Whether a push-to-talk question is being spoken. */
  get recording() {
    return this.active && this.#mode === 'push';
  }

  /** Loudness now, 0 to 1. */
  get level() {
    return this.#microphone.level;
  }

  /**
   * Sets up for a tutor, who listens in one language: its own. The button is off, with the reason,
   * where it can't work.
   * @param {import('./session.js').Tutor} tutor
   * @param {number} limit the longest question in seconds
   */
  prepare(tutor, limit) {
    this.#tutor = tutor;
    this.#limit = limit;
    const heard = tutor.listens.includes(tutor.language);
    const reason = Microphone.obstacle();
    this.#able = heard && !reason;
    this.#button.disabled = !this.#able;
    this.#settings.show(this.#able, this.#mode, this.#device);
    if (!this.#able) this.discard();
    if (!heard) this.#tell('mic.notHeard', { ...this.#names(), fix: tutor.missing_speech });
    else if (reason) this.#tell(`mic.${reason}`);
    else this.#show();
  }

  /** Closes the microphone and drops what was said. */
  discard() {
    if (!this.active) return;
    this.#off();
    this.#on.discarded();
  }

  async #begin() {
    if (!this.#able || this.active) return;
    this.#state = 'opening';
    this.#on.pressed();
    this.#show();
    try {
      const opened = await this.#microphone.open(this.#device);
      if (opened) this.#onOpened(opened.sampleRate);
      // The button was let go while the browser still asked whether it may.
      else if (this.#state === 'off' && this.#mode === 'push') this.#problem('mic.again');
    } catch (error) {
      this.#off();
      this.#problem(`mic.${reasonOf(error)}`);
    }
  }

  #onOpened(sampleRate) {
    this.#state = 'on';
    this.#since = performance.now();
    this.#silent = this.#sounded = false;
    this.#settings.fill(this.#microphone.deviceId);
    this.#show();
    this.#on.begun({ mode: this.#mode, sampleRate });
  }

  #finish() {
    const seconds = this.#state === 'on' ? this.#seconds : 0;
    const opened = this.#state === 'on';
    this.#off();
    if (!opened) return;
    if (this.#mode === 'push' && seconds < SHORTEST_S) {
      this.#on.discarded();
      this.#problem('mic.tooShort');
    } else {
      this.#on.finished(this.#mode);
    }
  }

  #off() {
    this.#microphone.close();
    this.#state = 'off';
    this.#showLevel(0);
    this.#show();
    this.#on.changed();
  }

  #onFrame({ samples, level }) {
    if (this.#state !== 'on') return;
    this.#on.frame(samples);
    this.#showLevel(level);
    this.#checkSound(level);
    if (this.#mode !== 'push') return;
    const time = clock(this.#seconds);
    if (!this.#silent && time !== this.#time) say(this.#hint, 'mic.recording', { time: (this.#time = time) });
    if (this.#seconds >= this.#limit) this.#finish();
  }

  /** A quiet room is no fault, and some headsets make it wholly quiet: only the beginning tells. */
  #checkSound(level) {
    if (level > 0) this.#sounded = true;
    const silent = !this.#sounded && this.#seconds > SILENT_S;
    if (silent === this.#silent) return;
    this.#silent = silent;
    if (silent) this.#problem('mic.silent');
    else this.#show();
  }

  #onLost() {
    this.#off();
    this.#on.discarded();
    this.#problem('mic.lost');
  }

  /** Another microphone or another way; an open microphone is opened again. */
  #choose(mode, device) {
    const wasOpen = this.#state === 'on' && this.#mode === 'open' && mode === 'open';
    this.discard();
    this.#mode = mode;
    this.#device = device;
    remember(MODE, mode);
    remember(DEVICE, device);
    this.#show();
    if (wasOpen) this.#begin();
  }

  get #seconds() {
    return (performance.now() - this.#since) / 1000;
  }

  #showLevel(level) {
    const shown = level.toFixed(2);
    this.#button.style.setProperty('--level', shown);
    this.#meter.style.setProperty('--level', shown);
    this.#meter.setAttribute('aria-valuenow', String(Math.round(level * 10) * 10));
  }

  #show() {
    const push = this.#mode === 'push';
    this.#button.setAttribute('aria-pressed', String(this.active));
    this.#button.dataset.state = this.#state;
    this.#button.dataset.mode = this.#mode;
    const label = this.active ? (push ? 'mic.stop' : 'mic.close') : push ? 'mic.start' : 'mic.open';
    say(this.#button, label, {}, 'aria-label');
    say(this.#button, label, {}, 'title');
    say(this.#button.querySelector('.talk-words'), this.active ? (push ? 'mic.send' : 'mic.end') : 'mic.talk');
    this.#meter.hidden = this.#state !== 'on';
    if (this.#state === 'opening') this.#tell('mic.opening');
    else if (this.#state === 'on') this.#tell(push ? 'mic.recording' : 'mic.hearing', { time: clock(0) });
    else if (this.#able) this.#tell(this.#hintKey(), {}, this.#language());
  }

  #hintKey() {
    if (this.#mode === 'open') return 'mic.hint';
    return touch.matches ? 'mic.hintTouch' : 'mic.hintPush';
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
