/** Tells the server how much of each answer's speech was heard, so that the tutor remembers that. */

const REPORT_MS = 250;

export class Playback {
  #player;
  #report;
  #timer = 0;
  #last = { turnId: null, ms: -1 };
  #lengths = new Map(); // milliseconds of speech received, by turn

  /**
   * @param {import('./player.js').Player} player
   * @param {(turnId: string, ms: number) => void} report
   */
  constructor(player, report) {
    this.#player = player;
    this.#report = report;
    player.addEventListener('started', () => this.#begin());
    player.addEventListener('held', () => this.#tell());
    for (const type of ['drained', 'stopped']) player.addEventListener(type, () => this.#end());
  }

  /** A piece of speech came. @param {string} turnId @param {number} ms from the turn's start to the piece's end */
  received(turnId, ms) {
    this.#lengths.set(turnId, ms);
    for (const id of this.#lengths.keys()) if (this.#lengths.size > 8 && id !== turnId) this.#lengths.delete(id);
  }

  #begin() {
    clearInterval(this.#timer);
    this.#timer = setInterval(() => this.#tell(), REPORT_MS);
  }

  #end() {
    clearInterval(this.#timer);
    this.#tell();
    this.#last = { turnId: null, ms: -1 };
  }

  #tell() {
    const heard = this.#player.heard();
    if (!heard) return;
    const { turnId } = this.#last;
    // The player has gone over to the next answer: the one before was heard to its end.
    if (turnId && turnId !== heard.turnId) this.#say(turnId, this.#lengths.get(turnId) ?? this.#last.ms);
    this.#say(heard.turnId, heard.ms);
  }

  #say(turnId, exact) {
    const ms = Math.round(Math.min(exact, this.#lengths.get(turnId) ?? exact));
    if (turnId === this.#last.turnId && ms === this.#last.ms) return;
    this.#last = { turnId, ms };
    this.#report(turnId, ms);
  }
}
