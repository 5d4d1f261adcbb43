/** Which question each turn answers, and which turns were stopped here. */

/**
 * @typedef {{text: string, item: object | null, dropped: boolean}} Asked a typed question; one that was
 *   spoken and is complete has no text
 * @typedef {{id: string, asked: Asked | null, spoken: object | null, answer: import('./answer.js').Answer | null,
 *   stopped: boolean, started: boolean, words: string}} Turn the question's words, once they are known
 */

export class Turns {
  #pending = []; // questions on their way, whose turns have not begun
  #turns = new Map();

  /** Nothing that was going on is any more. */
  forget() {
    this.#pending = [];
    this.#turns.clear();
  }

  /** The server knows nothing of the running turns any more. @returns {Turn[]} those turns */
  forgetRunning() {
    const lost = [...this.#turns.values()];
    this.#turns.clear();
    return lost;
  }

  /** @param {Asked} asked */
  ask(asked) {
    this.#pending.push(asked);
  }

  /** The line is back: what was asked is on its way now. */
  sent() {
    for (const { item } of this.#pending) item?.waits?.(false);
  }

  /** A question was not accepted: it gets no turn. @param {boolean} spoken which kind */
  refused(spoken) {
    const index = this.#pending.findIndex(({ text }) => !text === spoken);
    if (index >= 0) this.#pending.splice(index, 1);
  }

  /** The turn of this number, which takes the next question if it is new. @param {string} id @param {boolean} replayed @returns {Turn} */
  open(id, replayed) {
    let turn = this.#turns.get(id);
    if (turn) return turn;
    const asked = replayed ? null : (this.#pending.shift() ?? null);
    turn = { id, asked, spoken: null, answer: null, stopped: asked?.dropped ?? false, started: false, words: '' };
    this.#turns.set(id, turn);
    asked?.item?.waits?.(false);
    return turn;
  }

  /** It turns out that the turn is a spoken question's: the typed one still waits for its own. @param {Turn} turn */
  giveBack(turn) {
    this.#pending.unshift(turn.asked);
    turn.asked = null;
  }

  /** A turn that goes on and was not stopped here. @param {string} id @returns {Turn | undefined} */
  get(id) {
    return this.#turns.get(id);
  }

  /** @param {string} id */
  end(id) {
    this.#turns.delete(id);
  }

  /** Stops all, here; the server gives each of them its turn all the same. @returns {Turn[]} those with an answer */
  stop() {
    for (const asked of this.#pending) asked.dropped = true;
    const running = [...this.#turns.values()].filter((turn) => !turn.stopped);
    for (const turn of running) turn.stopped = true;
    return running;
  }

  /** Whether an answer is awaited or being given. */
  get busy() {
    return this.#pending.some(({ dropped }) => !dropped) || [...this.#turns.values()].some(({ stopped }) => !stopped);
  }
}
