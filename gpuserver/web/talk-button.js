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
  #pressedAt = null; // by the events' own clock: a busy page hears of them late
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
    button.addEventListener('pointerup', (event) => this.#release(event));
    button.addEventListener('pointercancel', (event) => this.#release(event));
    button.addEventListener('click', (event) => this.#onClick(event));
    button.addEventListener('keydown', (event) => this.#onKey(event));
    button.addEventListener('keyup', (event) => this.#onKeyUp(event));
    button.addEventListener('blur', (event) => this.#onBlur(event));
    // A long press on a phone is talking here, not asking for a menu.
    button.addEventListener('contextmenu', (event) => event.preventDefault());
  }

  #press({ timeStamp }) {
    this.#pressedAt = timeStamp;
    this.#startedByThisPress = !this.#on.active();
    if (this.#startedByThisPress) this.#on.begin();
  }

  #release({ timeStamp }) {
    if (this.#pressedAt === null) return;
    const held = timeStamp - this.#pressedAt;
    this.#pressedAt = null;
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
    this.#press(event);
  }

  #onClick(event) {
    // `detail` counts a pointer's clicks, which push to talk has handled as presses; Enter and
    // assistive technology click without one.
    if (!this.#on.held() || event.detail === 0) this.#toggle();
  }

  #onKey(event) {
    if (event.key === 'Escape' && this.#on.active() && this.#on.held()) {
      event.stopPropagation();
      this.#pressedAt = null;
      this.#space = false;
      this.#on.discard();
    }
    if (event.key !== ' ' || !this.#on.held()) return;
    event.preventDefault();
    if (event.repeat || this.#space) return;
    this.#space = true;
    this.#press(event);
  }

  #onKeyUp(event) {
    if (event.key !== ' ' || !this.#space) return;
    event.preventDefault(); // or the browser would click as well
    this.#space = false;
    this.#release(event);
  }

  #onBlur(event) {
    if (!this.#space) return;
    this.#space = false;
    this.#release(event);
  }
}
