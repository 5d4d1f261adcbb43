/** A conversation with one tutor: questions out, answers in, and what the room is doing meanwhile. */

import { Conversation } from './conversation.js';
import { Face } from './face.js';
import { has, languageOf, say } from './i18n.js';
import { Listening } from './listening.js';
import { button, node } from './nodes.js';
import { Playback } from './playback.js';
import { SourcePanel } from './sources.js';
import { Turns } from './turns.js';
import { engineNames } from './welcome.js';

const $ = (id) => document.getElementById(id);
/** Errors that refuse a question; others are about the microphone's sound or a setting. */
const REFUSALS = /^(text_|busy$|bad_message$|audio_invalid$|session_ended$|internal_error$)/;

export class Room {
  #player;
  #on;
  #sources = new SourcePanel($('passage'));
  #conversation = new Conversation($('messages'), $('log'), $('said'), (source) => this.#sources.open(source));
  #turns = new Turns();
  #playback;
  #listening;
  #face;
  #client = null;
  #ready = null;
  #soundNotice = null;

  /**
   * @param {import('./player.js').Player} player
   * @param {{closed: (detail: object) => void}} on `closed` when the server or the network ended it
   */
  constructor(player, on) {
    this.#player = player;
    this.#on = on;
    this.#face = new Face($('face'), player);
    this.#playback = new Playback(player, (turnId, ms) => this.#client?.playback(turnId, ms));
    this.#listening = new Listening(this.#conversation, this.#turns, {
      stop: () => this.stop(),
      prime: () => player.prime(),
      changed: () => this.#refresh(),
    });
    this.#wirePlayer();
    this.#wireForm();
  }

  /** `idle`, `listening`, `hearing`, `thinking`, `speaking` or `offline`. */
  get activity() {
    if (!this.#client?.connected) return 'offline';
    if (this.#listening.hearing) return 'hearing';
    if (this.#player.playing) return 'speaking';
    if (this.#busy) return 'thinking';
    return this.#listening.active ? 'listening' : 'idle';
  }

  /** Whether an answer is awaited, being given, or still being heard: the server may be ahead. */
  get #busy() {
    return this.#turns.busy || this.#player.busy;
  }

  get face() {
    return this.#face;
  }

  /** Loudness of the microphone, 0 to 1. */
  get level() {
    return this.#listening.level;
  }

  /**
   * Takes over a connection that is ready.
   * @param {import('./tutor-client.js').TutorClient} client
   * @param {object} ready its `session.ready`
   * @param {import('./session.js').Session} session
   */
  enter(client, ready, session) {
    this.#client?.close();
    this.#client = client;
    this.#ready = ready;
    this.#turns.forget();
    this.#sources.enter({ ...session, id: ready.session_id });
    this.#begin(ready);
    this.#wireClient(client);
    client.update({ audio_format: 'binary' });
    this.#onReady(ready);
    $('question').focus({ preventScroll: true });
  }

  /** Connects again after an ending. */
  again() {
    this.#client.reconnect();
  }

  /** Leaves the conversation; the connection is closed. */
  leave() {
    const client = this.#client;
    this.#client = null;
    this.#quiet();
    client?.close();
  }

  /** Applies the mute control, which the face follows. @param {boolean} muted */
  mute(muted) {
    this.#player.muted = muted;
  }

  /** Stops the answer, in sound at once and in the server. */
  stop() {
    const busy = this.#busy;
    this.#player.flush(); // first, so that the server knows what was heard when it is told to stop
    if (busy) this.#client?.interrupt();
    this.#drop();
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

  #onReady(ready) {
    this.#ready = ready;
    this.#player.expect(ready.audio.sample_rate);
    const ended = !$('ending').hidden;
    this.showEnding(null, null);
    $('line').hidden = true;
    if (ready.notice) this.#conversation.notice('room.notice', { notice: ready.notice });
    this.#listening.enter(this.#client, ready);
    this.#refresh();
    if (ended) $('question').focus({ preventScroll: true });
  }

  #tellOfSound() {
    if (this.#player.failure) this.#conversation.notice(`sound.${this.#player.failure}`);
  }

  /** Silence, and no answer that is cut off looks like a whole one. */
  #quiet() {
    this.#player.flush();
    this.#listening.leave();
    this.#drop();
    this.#turns.forget();
  }

  #drop() {
    this.#listening.drop();
    for (const { answer } of this.#turns.stop()) answer?.done('interrupted');
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
      this.#listening.discard();
      $('talk').focus();
    });
    $('line-now').addEventListener('click', () => this.#client?.reconnect());
    $('room').addEventListener('keydown', (event) => {
      if (event.key !== 'Escape') return;
      if (this.#listening.recording) this.#listening.discard();
      else this.stop();
    });
  }

  #ask() {
    const text = $('question').value.trim();
    const limits = this.#ready.limits;
    if (!text || !this.#client) return;
    if ([...text].length > limits.text_chars) {
      this.#conversation.notice('error.text_too_long', limits);
      return;
    }
    this.#put(text);
    $('question').value = '';
    grow($('question'));
  }

  /** @param {string} text a question */
  #put(text) {
    if (!this.#client) return;
    this.#player.prime();
    if (this.#listening.recording) this.#listening.discard();
    this.stop();
    const item = this.#conversation.question(text);
    if (this.#client.text(text)) this.#turns.ask({ text, item, dropped: false });
    item.waits(!this.#client.connected);
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
    const onTurn = (type, act) =>
      on(type, (message) => {
        const turn = this.#turns.get(message.turn_id);
        if (turn?.answer && !turn.stopped) act(turn, message);
      });
    on('queue', ({ turn_id: id, replayed }) => this.#turns.open(id, replayed));
    on('turn.started', (message) => this.#onTurnStarted(message));
    onTurn('queue', ({ answer }, message) => answer.inLine(message, message.replayed));
    onTurn('transcription', (turn, message) => {
      turn.words = message.content;
      this.#listening.onWords(turn, message);
    });
    onTurn('notice', ({ answer }, message) => answer.notice(message, message.replayed));
    onTurn('thought.delta', ({ answer }, { content }) => answer.thought(content));
    onTurn('sources', ({ answer }, { passages, near = [] }) => answer.sources(passages, near));
    onTurn('text.delta', ({ answer }, { content }) => answer.delta(content));
    onTurn('text', ({ answer }, { content, replayed }) => answer.whole(content, replayed));
    onTurn('audio.delta', (_turn, message) => this.#onSound(message));
    onTurn('visemes', ({ id }, { marks }) => this.#face.add(id, marks));
    onTurn('audio.paused', (_turn, { replayed }) => replayed || this.#player.hold());
    onTurn('audio.resumed', () => this.#onResumed());
    on('turn.done', (message) => this.#onTurnDone(message));
    on('error', (message) => message.replayed || this.#onError(message));
    this.#listening.wire(on);
    this.#wireLine(client, on);
  }

  #onTurnStarted({ turn_id: id, question, replayed }) {
    const turn = this.#turns.open(id, replayed);
    turn.started = true;
    turn.words = question;
    if (turn.stopped) return;
    if (replayed && question) this.#conversation.question(question);
    if (!turn.asked?.text && !replayed) this.#listening.onTurnStarted(turn);
    turn.answer = this.#conversation.answer(this.#ready.tutor.name);
  }

  #onSound({ turn_id: turnId, samples, sample_rate: sampleRate, offset, replayed }) {
    if (replayed) return; // It was heard before the page was loaded again.
    this.#playback.received(turnId, ((offset + samples.length) / sampleRate) * 1000);
    this.#player.play({ turnId, samples, sampleRate, offset });
  }

  #onResumed() {
    this.#listening.drop();
    this.#player.go();
  }

  #onTurnDone({ turn_id: id, status, heard, timeline, replayed }) {
    const turn = this.#turns.get(id);
    if (!turn) return;
    this.#turns.end(id);
    turn.spoken?.drop();
    turn.answer?.done(status, heard ?? null);
    turn.answer?.foot({
      rate: (rating) => this.#client?.feedback(id, rating),
      timeline: replayed ? null : timeline,
    });
    if (turn.stopped || replayed) return;
    if (status === 'interrupted') this.#player.flush();
    else {
      this.#player.go();
      this.#player.end();
    }
  }

  #onError({ code, content, turn_id: turnId, retry_after: after }) {
    if (code === 'not_ready') return; // A server that starts again: the line is tried until it is there.
    if (turnId && !this.#turns.get(turnId)) return;
    if (!turnId && REFUSALS.test(code)) this.#turns.refused(false);
    else if (!turnId) this.#listening.refused();
    const key = has(`error.${code}`) ? `error.${code}` : 'error.other';
    const words = this.#turns.get(turnId)?.words;
    const act = () => {
      notice.remove();
      $('question').focus({ preventScroll: true });
      this.#put(words);
    };
    const offer = after && words ? { key: 'do.askAgain', act, after } : undefined;
    const notice = this.#conversation.notice(key, { ...this.#ready.limits, content }, offer);
  }

  // The line

  #wireLine(client, on) {
    let ending = null;
    on('session.ending', (message) => (ending = message));
    on('reconnecting', () => {
      $('line').hidden = false;
      this.#listening.onLost();
    });
    on('reconnected', ({ resumed }) => {
      if (!resumed) this.#onForgotten();
      this.#turns.sent();
    });
    on('session.ready', (ready) => this.#onReady(ready));
    on('close', ({ code, opened }) => {
      this.#quiet();
      $('line').hidden = true;
      this.#on.closed({ code, ending, opened });
    });
  }

  /** The server knows nothing any more of what was going on; what waits is asked again. */
  #onForgotten() {
    this.#player.flush();
    for (const { answer } of this.#turns.forgetRunning()) answer?.done('failed');
  }

  // What is shown meanwhile

  #wirePlayer() {
    const player = this.#player;
    for (const type of ['started', 'drained', 'stopped']) player.addEventListener(type, () => this.#refresh());
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
    const stoppable = this.#busy && !this.#listening.recording;
    if (!stoppable && document.activeElement === $('stop')) $('question').focus();
    $('stop').hidden = !stoppable;
    $('discard').hidden = !this.#listening.recording;
    $('send').hidden = this.#listening.recording;
    if (document.documentElement.dataset.activity === activity) return;
    document.documentElement.dataset.activity = activity;
    this.#face.mood = activity;
    say($('activity'), `state.${activity}`);
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
    $('ask').hidden = $('hints').hidden = Boolean(key);
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
