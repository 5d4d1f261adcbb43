/** The student's voice in the conversation: the microphone's sound out, the words as they are recognised in. */

import { Voice } from './voice.js';

const $ = (id) => document.getElementById(id);
/** Words whose turn has not begun by then were no question. */
const FORGET_MS = 8000;

export class Listening {
  #conversation;
  #turns;
  #on;
  #voice;
  #client = null;
  #bubble = null; // the words that are being recognised
  #forgetting = 0;

  /** Whether the student is speaking now, as far as is known. */
  hearing = false;

  /**
   * @param {import('./conversation.js').Conversation} conversation
   * @param {import('./turns.js').Turns} turns
   * @param {{stop: () => void, prime: () => void, changed: () => void}} on
   */
  constructor(conversation, turns, on) {
    this.#conversation = conversation;
    this.#turns = turns;
    this.#on = on;
    const parts = { button: $('talk'), hint: $('hint'), meter: $('level'), settings: $('microphone') };
    this.#voice = new Voice(parts, {
      pressed: () => this.#onPressed(),
      begun: (how) => this.#onBegun(how),
      frame: (samples) => this.#client?.append(samples),
      finished: (mode) => this.#onFinished(mode),
      discarded: () => this.#onDiscarded(),
      changed: () => on.changed(),
      announce: (text) => conversation.announce(text),
    });
  }

  /** Whether the microphone is open. */
  get active() {
    return this.#voice.active;
  }

  /** Whether a push-to-talk question is being spoken. */
  get recording() {
    return this.#voice.recording;
  }

  get level() {
    return this.#voice.level;
  }

  /** A connection is ready. @param {import('./tutor-client.js').TutorClient} client @param {object} ready */
  enter(client, ready) {
    this.#client = client;
    this.#voice.prepare(ready.tutor, ready.limits.audio_seconds);
  }

  leave() {
    this.drop();
    this.#voice.discard();
    this.#client = null;
  }

  /** Drops what is being said by push to talk. */
  discard() {
    this.#voice.discard();
  }

  /** Drops the words that were recognised so far. */
  drop() {
    clearTimeout(this.#forgetting);
    this.#bubble?.drop();
    this.#bubble = null;
  }

  /** @param {(type: string, act: (message: object) => void) => void} on */
  wire(on) {
    const live = (type, act) => on(type, (message) => message.replayed || act(message));
    live('speech.started', () => (this.hearing = true));
    live('speech.stopped', () => this.#onStopped());
    live('transcription.delta', ({ stable, tentative }) => this.#onPartial(stable, tentative));
  }

  /** A spoken question's turn begins: the words on show are its own. @param {import('./turns.js').Turn} turn */
  onTurnStarted(turn) {
    clearTimeout(this.#forgetting);
    this.hearing = false;
    turn.spoken = this.#bubble;
    this.#bubble = null;
  }

  /** The question's words are known. @param {import('./turns.js').Turn} turn @param {object} message */
  onWords(turn, { content, replayed }) {
    if (turn.asked?.text) {
      this.#turns.giveBack(turn);
      this.onTurnStarted(turn);
    }
    if (turn.spoken) turn.spoken.heard(content, turn.answer);
    else this.#conversation.question(content, turn.answer);
    if (!turn.spoken && !replayed) this.#conversation.announce(content);
    turn.spoken = null;
  }

  /** The line was lost: what was being said is lost with it, and is best said again. */
  onLost() {
    this.hearing = false;
    this.refused();
    if (this.recording) this.#voice.discard();
  }

  #onPressed() {
    this.#on.prime();
    if (this.recording) this.#on.stop();
    this.#on.changed();
  }

  #onBegun({ mode, sampleRate }) {
    this.#client?.update({
      turn_detection: mode === 'push' ? 'manual' : 'server',
      input_audio_format: { encoding: 'pcm16', sample_rate: sampleRate },
    });
    this.hearing = mode === 'push';
    this.#on.changed();
  }

  #onFinished(mode) {
    const said = mode === 'push' || this.hearing || this.#bubble;
    this.hearing = false;
    if (!said) this.#client?.clear();
    else if (this.#client?.commit()) this.#await();
    this.#on.changed();
  }

  /** The question is complete; its words are still being recognised. */
  #await() {
    if (!this.#bubble) {
      this.#bubble = this.#conversation.spoken();
      this.#bubble.wait();
    }
    this.#turns.ask({ text: '', item: null, dropped: false });
    clearTimeout(this.#forgetting);
    this.#forgetting = setTimeout(() => this.refused(), FORGET_MS);
  }

  /** What was said gets no turn. */
  refused() {
    this.drop();
    this.#turns.refused(true);
    this.#on.changed();
  }

  #onDiscarded() {
    this.hearing = false;
    this.drop();
    this.#client?.clear();
    this.#on.changed();
  }

  #onStopped() {
    this.hearing = this.recording;
    clearTimeout(this.#forgetting);
    if (this.#bubble) this.#forgetting = setTimeout(() => this.drop(), FORGET_MS);
  }

  #onPartial(stable, tentative) {
    if (!stable && !tentative) return;
    clearTimeout(this.#forgetting);
    this.#bubble ??= this.#conversation.spoken();
    this.#bubble.words(stable, tentative);
  }
}
