/**
 * The gestures of the talk button, by pointer, space, Enter and a screen reader's click.
 *
 * As a switch, a press opens the microphone and another closes it. As push to talk, it is held to
 * talk, or pressed once to start and once to send; Escape discards. It knows of gestures only.
 */

/** A press shorter than this starts a recording that a second press ends. */
const TAP_MS = 350;

export class TalkButton {
  #button;
  #on;
  #pressedAt = 0;
  #startedByThisPress = false;
  #space = false;

  /**
   * @param {HTMLButtonElement} button
   * @param {{begin: () => void, finish: () => void, discard: () => void, active: () => boolean,
   *   held: () => boolean}} on `held`: whether it is push to talk, otherwise a switch
   */
  constructor(button, on) {
    this.#button = button;
    this.#on = on;
    button.addEventListener('pointerdown', (event) => this.#onPointerDown(event));
    button.addEventListener('pointerup', () => this.#release());
    button.addEventListener('pointercancel', () => this.#release());
    button.addEventListener('click', (event) => this.#onClick(event));
    button.addEventListener('keydown', (event) => this.#onKey(event));
    button.addEventListener('keyup', (event) => this.#onKeyUp(event));
    button.addEventListener('blur', () => this.#onBlur());
    // A long press on a phone is talking here, not asking for a menu.
    button.addEventListener('contextmenu', (event) => event.preventDefault());
  }

  #press() {
    this.#pressedAt = performance.now();
    this.#startedByThisPress = !this.#on.active();
    if (this.#startedByThisPress) this.#on.begin();
  }

  #release() {
    if (!this.#pressedAt) return;
    const held = performance.now() - this.#pressedAt;
    this.#pressedAt = 0;
    // A short first press goes on recording; its second press, or the end of a hold, sends.
    if (!this.#startedByThisPress || held >= TAP_MS) this.#on.finish();
  }

  #toggle() {
    if (this.#on.active()) this.#on.finish();
    else this.#on.begin();
  }

  #onPointerDown(event) {
    if (event.button !== 0 || !this.#on.held()) return;
    this.#button.setPointerCapture(event.pointerId); // The finger may slide off while talking.
    this.#press();
  }

  #onClick(event) {
    // `detail` counts a pointer's clicks, which push to talk has handled as presses; Enter and
    // assistive technology click without one.
    if (!this.#on.held() || event.detail === 0) this.#toggle();
  }

  #onKey(event) {
    if (event.key === 'Escape' && this.#on.active() && this.#on.held()) {
      event.stopPropagation();
      this.#pressedAt = 0;
      this.#space = false;
      this.#on.discard();
    }
    if (event.key !== ' ' || !this.#on.held()) return;
    event.preventDefault();
    if (event.repeat || this.#space) return;
    this.#space = true;
    this.#press();
  }

  #onKeyUp(event) {
    if (event.key !== ' ' || !this.#space) return;
    event.preventDefault(); // or the browser would click as well
    this.#space = false;
    this.#release();
  }

  #onBlur() {
    if (!this.#space) return;
    this.#space = false;
    this.#release();
  }
}
