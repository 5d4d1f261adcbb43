/** A conversation with one tutor: questions out, answers in, and what the room is doing meanwhile. */

import { Conversation, button, node } from './conversation.js';
import { Face } from './face.js';
import { has, languageOf, say } from './i18n.js';
import { CLOSE } from './tutor-client.js';
import { Voice } from './voice.js';
import { engineNames } from './welcome.js';

const $ = (id) => document.getElementById(id);

export class Room {
  #player;
  #on;
  #conversation = new Conversation($('messages'), $('log'), $('said'));
  #voice;
  #face;
  #client = null;
  #ready = null;
  #turn = null; // the answer that is being given: {id, answer}
  #pending = 0; // questions on their way, whose turns have not begun
  #dropped = 0; // those of them that were stopped here, whose turns are passed over
  #spoken = null; // the spoken question whose words are not known yet
  #soundNotice = null;

  /**
   * @param {import('./player.js').Player} player
   * @param {{closed: (detail: object) => void}} on `closed` when the server or the network ended it
   */
  constructor(player, on) {
    this.#player = player;
    this.#on = on;
    this.#face = new Face($('face'), player);
    this.#voice = new Voice($('talk'), $('hint'), {
      begun: () => this.#interruptForVoice(),
      ended: () => this.#refresh(),
      clip: (clip) => this.#askByVoice(clip),
      announce: (text) => this.#conversation.announce(text),
    });
    this.#wirePlayer();
    this.#wireForm();
  }

  /** `idle`, `listening`, `thinking`, `speaking` or `offline`. */
  get activity() {
    if (!this.#client?.connected) return 'offline';
    if (this.#voice.active) return 'listening';
    if (this.#player.playing) return 'speaking';
    return this.#busy ? 'thinking' : 'idle';
  }

  /** Whether an answer is awaited, being given, or still being heard: the server may be ahead. */
  get #busy() {
    return Boolean(this.#turn || this.#pending || this.#player.busy);
  }

  get face() {
    return this.#face;
  }

  /**
   * Takes over a connection that is ready.
   * @param {import('./tutor-client.js').TutorClient} client
   * @param {object} ready its `session.ready`
   * @param {boolean} fresh whether the conversation begins; otherwise it goes on
   */
  enter(client, ready, fresh) {
    this.#client?.close();
    this.#client = client;
    this.#ready = ready;
    this.#turn = null;
    this.#pending = this.#dropped = 0;
    this.#wireClient(client);
    this.showEnding(null, null);
    if (fresh) this.#begin(ready);
    if (ready.notice) this.#conversation.notice('room.notice', { notice: ready.notice });
    this.#voice.prepare(ready.tutor, ready.limits.audio_seconds);
    this.#refresh();
    $('question').focus({ preventScroll: true });
  }

  /** Leaves the conversation; the connection is closed. */
  leave() {
    // An answer that is cut off must not look like a whole one.
    this.#turn?.answer.done('interrupted');
    this.#hush();
    this.#voice.discard();
    const client = this.#client;
    this.#client = null;
    client?.close();
  }

  /** Applies the mute control, which the face follows. @param {boolean} muted */
  mute(muted) {
    this.#player.muted = muted;
  }

  /** Stops the answer, in sound at once and in the server. */
  stop() {
    if (this.#busy) this.#client?.interrupt();
    this.#turn?.answer.done('interrupted');
    this.#hush();
    this.#refresh();
  }

  #begin({ tutor, engines }) {
    this.#conversation.clear();
    this.#face.draw(tutor.id);
    say($('face'), 'room.face', { name: tutor.name }, 'aria-label');
    $('tutor-name').textContent = tutor.name;
    $('tutor-name').lang = languageOf(tutor.name);
    const running = engineNames(engines);
    $('engines').textContent = running;
    say($('engines'), 'room.engines', { engines: running }, 'title');
    const greeting = this.#conversation.answer(tutor.name);
    greeting.whole(tutor.greeting);
    greeting.done('completed');
    this.#tellOfSound();
  }

  #tellOfSound() {
    if (this.#player.failure) this.#conversation.notice(`sound.${this.#player.failure}`);
  }

  #hush() {
    this.#player.flush();
    this.#spoken?.drop();
    this.#spoken = null;
    this.#turn = null;
    // The server gives each of them its turn all the same, which ends as soon as it starts.
    this.#dropped += this.#pending;
    this.#pending = 0;
  }

  // Asking

  #wireForm() {
    const question = $('question');
    $('ask').addEventListener('submit', (event) => {
      event.preventDefault();
      this.#ask();
    });
    question.addEventListener('keydown', (event) => {
      // While a Chinese word is being composed, Enter chooses it.
      // Safari has ended the composition by then, and tells by the key code alone.
      if (event.key !== 'Enter' || event.shiftKey || event.isComposing || event.keyCode === 229) return;
      event.preventDefault();
      this.#ask();
    });
    question.addEventListener('input', () => grow(question));
    $('stop').addEventListener('click', () => this.stop());
    $('discard').addEventListener('click', () => {
      this.#voice.discard();
      $('talk').focus();
    });
    $('room').addEventListener('keydown', (event) => {
      if (event.key !== 'Escape') return;
      if (this.#voice.active) this.#voice.discard();
      else this.stop();
    });
  }

  #ask() {
    const text = $('question').value.trim();
    const limits = this.#ready.limits;
    if (!text || !this.#client?.connected) return;
    if ([...text].length > limits.text_chars) {
      this.#conversation.notice('error.text_too_long', limits);
      return;
    }
    this.#player.prime();
    this.#voice.discard();
    this.stop();
    this.#conversation.question(text);
    if (this.#client.text(text)) this.#pending += 1;
    $('question').value = '';
    grow($('question'));
    this.#refresh();
  }

  #interruptForVoice() {
    this.#player.prime();
    this.stop();
  }

  async #askByVoice(clip) {
    const base64Bytes = Math.ceil(clip.size / 3) * 4 + 100;
    if (base64Bytes > this.#ready.limits.message_bytes) {
      this.#conversation.notice('mic.tooLarge');
      return;
    }
    this.#spoken = this.#conversation.spoken();
    this.#pending += 1;
    this.#refresh();
    if (await this.#client?.audio(clip)) return;
    this.#hush(); // The line was lost meanwhile.
    this.#refresh();
  }

  // Answers

  #wireClient(client) {
    const on = (type, act) =>
      client.addEventListener(type, ({ detail }) => {
        if (client !== this.#client) return;
        act(detail);
        this.#refresh();
      });
    // What belongs to an answer that was stopped here may still be on its way.
    const onTurn = (type, act) => on(type, (message) => message.turn_id === this.#turn?.id && act(message));
    on('turn.started', ({ turn_id: id }) => this.#onTurnStarted(id));
    onTurn('transcription', ({ content }) => this.#onWords(content));
    onTurn('sources', ({ passages }) => this.#turn.answer.sources(passages));
    onTurn('text.delta', ({ content }) => this.#turn.answer.delta(content));
    onTurn('text', ({ content }) => this.#turn.answer.whole(content));
    onTurn('audio.delta', (message) => this.#onSound(message));
    onTurn('visemes', ({ turn_id: id, marks }) => this.#face.add(id, marks));
    onTurn('turn.done', ({ status }) => this.#onTurnDone(status));
    on('error', (message) => this.#onError(message));
    let ending = null;
    on('session.ending', (message) => (ending = message));
    on('close', ({ code }) => {
      this.leave();
      this.#on.closed({ code, ending, opened: true });
    });
  }

  #onTurnStarted(id) {
    if (this.#dropped) {
      this.#dropped -= 1;
      return;
    }
    this.#pending = Math.max(0, this.#pending - 1);
    this.#turn = { id, answer: this.#conversation.answer(this.#ready.tutor.name) };
  }

  #onWords(content) {
    this.#spoken?.heard(content);
    this.#spoken = null;
  }

  #onSound({ turn_id: turnId, data, sample_rate: sampleRate, offset }) {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    const samples = new Int16Array(bytes.buffer, 0, bytes.length >> 1);
    this.#player.play({ turnId, samples, sampleRate, offset });
  }

  #onTurnDone(status) {
    this.#spoken?.drop();
    this.#spoken = null;
    this.#turn.answer.done(status);
    this.#turn = null;
    if (status === 'interrupted') this.#player.flush();
    else this.#player.end();
  }

  #onError({ code, content, turn_id: turnId }) {
    if (turnId && turnId !== this.#turn?.id) return;
    this.#spoken?.drop();
    this.#spoken = null;
    if (!turnId) this.#refused();
    const key = `error.${code}`;
    if (has(key)) this.#conversation.notice(key, this.#ready.limits);
    else this.#conversation.notice('error.other', { content });
  }

  /** A question was not accepted: it gets no turn. */
  #refused() {
    if (this.#pending) this.#pending -= 1;
    else if (this.#dropped) this.#dropped -= 1;
  }

  // What is shown meanwhile

  #wirePlayer() {
    const player = this.#player;
    for (const type of ['started', 'drained']) player.addEventListener(type, () => this.#refresh());
    player.addEventListener('started', () => this.#soundNotice?.remove());
    player.addEventListener('unavailable', () => this.#tellOfSound());
    player.addEventListener('blocked', () => {
      this.#soundNotice?.remove();
      const allow = { key: 'sound.allow', act: () => player.prime() };
      this.#soundNotice = this.#conversation.notice('sound.blocked', {}, allow);
    });
  }

  #refresh() {
    const activity = this.activity;
    document.documentElement.dataset.activity = activity;
    this.#face.mood = activity;
    say($('activity'), `state.${activity}`);
    const stoppable = this.#busy && activity !== 'listening';
    if (!stoppable && document.activeElement === $('stop')) $('question').focus();
    $('stop').hidden = !stoppable;
    $('discard').hidden = activity !== 'listening';
    $('send').hidden = activity === 'listening';
  }

  /**
   * Shows why the conversation can't go on, in place of the question.
   * @param {string | null} key of the sentence; null takes it away
   * @param {{key: string, act: () => void} | null} offer what can be done
   * @param {object} params of the sentence
   */
  showEnding(key, offer, params = {}) {
    $('ending').replaceChildren();
    $('ending').hidden = !key;
    $('ask').hidden = $('hint').hidden = Boolean(key);
    if (key) say($('ending').appendChild(node('p')), key, params);
    if (offer) $('ending').append(button(offer.key, offer.act));
    this.#refresh();
  }
}

/** A question box as high as what is in it; CSS bounds it. */
function grow(box) {
  box.style.height = 'auto';
  box.style.height = `${box.scrollHeight + 2}px`;
}

/**
 * Why a connection ended, as a sentence and an offer.
 * @param {{code: number, ending: {reason: string} | null}} detail
 * @param {boolean} own whether this page made the session, and can make another
 * @returns {{key: string, offer: 'do.again' | 'do.here' | 'do.fresh' | null}}
 */
export function explainClose({ code, ending }, own) {
  if (code === CLOSE.replaced) return { key: 'end.replaced', offer: 'do.here' };
  if (code === CLOSE.restarting) return { key: 'end.restarting', offer: 'do.again' };
  if (code === CLOSE.tooSlow) return { key: 'end.slow', offer: 'do.again' };
  if (code === CLOSE.ended || (code >= 4500 && code < 5000)) {
    if (!own) return { key: 'end.endedSchool', offer: null };
    const idle = ['idle', 'expired', 'timeout'].includes(ending?.reason);
    return { key: idle ? 'end.idle' : 'end.ended', offer: 'do.fresh' };
  }
  return { key: 'end.lost', offer: 'do.again' };
}
