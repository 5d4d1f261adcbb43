/**
 * A client of the tutor's streaming dialect, `tutor.v2`, for any web page. It needs no other file.
 *
 * Text:
 *
 * ```js
 * import { TutorClient } from './tutor-client.js';
 *
 * // From your Web Server's call of POST /v1/sessions:
 * const tutor = new TutorClient({ url: engine_url, token: engine_token });
 * tutor.addEventListener('text.delta', ({ detail }) => answer.append(detail.content));
 * tutor.addEventListener('turn.done', ({ detail }) => console.log(detail.status));
 * tutor.addEventListener('reconnecting', () => (banner.hidden = false));
 * tutor.addEventListener('reconnected', () => (banner.hidden = true));
 * tutor.addEventListener('close', ({ detail }) => console.log('over', detail.code, detail.opened));
 * tutor.text('How do I repeat something?');
 * ```
 *
 * Voice, with `microphone.js` and `player.js` beside this file or with your own:
 *
 * ```js
 * const microphone = new Microphone();
 * const player = new Player();
 * talk.onclick = async () => {
 *   player.prime(); // Phones allow sound only from a press on.
 *   const { sampleRate } = await microphone.open();
 *   tutor.update({ audio_format: 'binary', turn_detection: 'server',
 *                  input_audio_format: { encoding: 'pcm16', sample_rate: sampleRate } });
 * };
 * microphone.addEventListener('frame', ({ detail }) => tutor.append(detail.samples));
 * tutor.addEventListener('transcription.delta', ({ detail }) => show(detail.stable, detail.tentative));
 * tutor.addEventListener('audio.delta', ({ detail }) => player.play({ turnId: detail.turn_id,
 *   samples: detail.samples, sampleRate: detail.sample_rate, offset: detail.offset }));
 * tutor.addEventListener('audio.paused', () => player.hold()); // Somebody may be interrupting.
 * tutor.addEventListener('audio.resumed', () => player.go());
 * tutor.addEventListener('turn.done', ({ detail }) =>
 *   detail.status === 'interrupted' ? player.flush() : player.end());
 * setInterval(() => player.playing && tutor.playback(player.heard().turnId, player.heard().ms), 250);
 * ```
 *
 * Every message of the server is an event named by its `type`, with the message as `detail`; types
 * that this file does not know are passed on in the same way. `audio.delta` carries `samples`, an
 * Int16Array, whether it came as base64 or as a binary frame. Messages from before a reload
 * (`history`), or from before `reconnect` after a `close`, have `replayed: true`.
 *
 * Four events are the connection's own: `open`; `reconnecting` with `{code, attempt, in_ms}` when the
 * line was lost and is tried again; `reconnected` with `{resumed}`, after the new `session.ready`,
 * where `resumed: false` means that running answers are lost; and `close` with `{code, reason,
 * opened}` when it is over. Over means: closed by `close()` or by a code from 4500 on, a token that
 * is refused, or a first connection that never was ready; `opened` is false where the server could
 * not be reached or refused the token (a browser does not tell which).
 *
 * Nothing is lost on the way: what came meanwhile is sent again, each message once, and questions
 * asked meanwhile, or swallowed by the line, are sent when it is back.
 */

/**
 * Why a connection was closed. From 4000 to 4499 the same token may be used again.
 * @readonly
 */
export const CLOSE = { restarting: 4000, replaced: 4501, ended: 4502 };

const RETRY_MS = 500;
const RETRY_MAX_MS = 15_000;
/** Sound that waits longer than this to leave is late; the newest is worth more. */
const LATE_BYTES = 64 * 1024;
/** Two refused handshakes of a server that says it is ready, or four of one that can't tell us. */
const REFUSALS = 4;
const HEADER_BYTES = 12;

export class TutorClient extends EventTarget {
  #session;
  #timing;
  #returns; // whether what was said before is history, shown but not heard again
  #socket = null; // null while there is none
  #opened = false;
  #live = false; // ready on this connection
  #settled = false; // and what the line had swallowed is known
  #over = false;
  #ready = null; // the newest session.ready
  #last = 0; // the highest number seen
  #historyEnd = 0;
  #settings = {};
  #outbox = []; // questions and verdicts that wait for the line
  #unconfirmed = []; // questions that were sent and have no turn yet
  #confirmed = null; // the newest that got one: {id, message}
  #turns = 0; // the highest turn number seen
  #attempt = 0;
  #refusals = 0;
  #retry = 0;
  #beat = 0;
  #heardAt = 0;
  #pingedAt = 0;
  #page = null; // ends the listeners on the page

  /**
   * Connects at once. Listeners added in the same task as the constructor miss nothing.
   * @param {object} options
   * @param {string} options.url `engine_url` of a session
   * @param {string} options.token `engine_token` of a session
   * @param {boolean} [options.history] ask for the session's earlier messages again, as after a reload
   * @param {number} [options.idleMs] a silence after which the line is tried by a ping
   * @param {number} [options.answerMs] how long an answer to it may take
   * @throws {DOMException} the address is not a WebSocket's, or a secure page may not open it
   */
  constructor({ url, token, history = false, idleMs = 15_000, answerMs = 10_000 }) {
    super();
    this.#session = { url, token };
    this.#returns = history;
    this.#timing = { idleMs, answerMs };
    this.#connect();
  }

  /** Whether messages can be sent now. */
  get connected() {
    return this.#live;
  }

  /** The highest message number seen. */
  get lastSeq() {
    return this.#last;
  }

  /** Asks a question in writing; while the line is lost it is kept. @param {string} content @returns {boolean} false when the connection is over */
  text(content) {
    return this.#keep({ type: 'text', content });
  }

  /**
   * Asks a question by voice: one whole recording, in any container that a browser records.
   * @param {Blob} recording
   * @returns {Promise<boolean>} false when the connection is over
   */
  async audio(recording) {
    const data = base64(new Uint8Array(await recording.arrayBuffer()));
    return this.#keep({ type: 'audio', data });
  }

  /**
   * The next stretch of the open microphone, in the session's `input_audio_format`, best 20 ms.
   * @param {Int16Array | ArrayBuffer} samples
   * @returns {boolean} whether it was sent; sound is dropped where the line is lost or too slow
   */
  append(samples) {
    if (!this.#live || this.#socket.bufferedAmount > LATE_BYTES) return false;
    this.#socket.send(samples);
    return true;
  }

  /** What was said is a complete question: answer it. @returns {boolean} whether it was sent */
  commit() {
    return this.#send({ type: 'audio.commit' });
  }

  /** Forgets what was said since the last question. @returns {boolean} whether it was sent */
  clear() {
    return this.#send({ type: 'audio.clear' });
  }

  /**
   * Stops the answer. The server confirms with `turn.done` of status `interrupted`.
   * @param {string} [turnId] that answer only; otherwise the running one and all that wait
   * @returns {boolean} false when the connection is over
   */
  interrupt(turnId) {
    return this.#keep(turnId ? { type: 'interrupt', turn_id: turnId } : { type: 'interrupt' });
  }

  /**
   * Says how much of an answer's speech was heard: a few times a second, and once when it stops.
   * @param {string} turnId @param {number} heardMs from the start of the turn's speech
   * @returns {boolean} whether it was sent
   */
  playback(turnId, heardMs) {
    return this.#send({ type: 'playback', turn_id: turnId, heard_ms: Math.max(0, Math.round(heardMs)) });
  }

  /**
   * Changes settings; `session.updated` says what is in force. They are set again on a new line.
   * @param {{language?: 'en' | 'zh', voice?: string, output?: object, audio_format?: 'base64' | 'binary',
   *   input_audio_format?: object, turn_detection?: 'server' | 'manual'}} settings
   * @returns {boolean} whether it was sent now
   */
  update(settings) {
    Object.assign(this.#settings, settings);
    return this.#send({ type: 'session.update', ...settings });
  }

  /** What the student thinks of an answer. @param {string} turnId @param {1 | 0 | -1} rating @param {string} [comment] */
  feedback(turnId, rating, comment = '') {
    return this.#keep({ type: 'feedback', turn_id: turnId, rating, comment });
  }

  /** Asks for a `pong`. @returns {boolean} whether it was sent */
  ping() {
    return this.#send({ type: 'ping' });
  }

  /** Connects now instead of after a wait; also after `close`, where the token is still good. */
  reconnect() {
    if (this.#socket) return;
    this.#returns ||= this.#over; // What was said to another window is history here.
    this.#over = false;
    this.#connect();
  }

  /** Closes the connection; the session stays and can be connected to again. */
  close() {
    if (this.#over) return;
    const socket = this.#forget();
    socket?.close(1000);
    this.#end(1000, '', socket !== null);
  }

  // The connection

  #connect() {
    clearTimeout(this.#retry);
    const { url, token } = this.#session;
    // The token travels as a subprotocol, so it is not in any address and not in any access log.
    const socket = new WebSocket(url, ['tutor.v2', `bearer.${token}`]);
    socket.binaryType = 'arraybuffer';
    this.#socket = socket;
    this.#opened = false;
    this.#heardAt = performance.now();
    this.#pingedAt = 0;
    // What a socket that was given up still says is not heard.
    const on = (type, act) => socket.addEventListener(type, (event) => socket === this.#socket && act(event));
    on('open', () => this.#onOpen());
    on('message', ({ data }) => this.#onFrame(data));
    on('close', ({ code, reason }) => this.#onClose(code, reason));
    this.#watch();
  }

  /** Looks after the line from now on: by the clock, and when the network or the reader comes back. */
  #watch() {
    this.#unwatch();
    const { idleMs, answerMs } = this.#timing;
    this.#beat = setInterval(() => this.#checkLine(), Math.min(1000, idleMs / 3, answerMs / 3));
    this.#page = new AbortController();
    const { signal } = this.#page;
    const check = () => (this.#socket ? this.#checkLine() : this.reconnect());
    addEventListener('online', check, { signal });
    document.addEventListener('visibilitychange', () => document.hidden || check(), { signal });
  }

  #unwatch() {
    clearInterval(this.#beat);
    this.#page?.abort();
  }

  /** A line that says nothing is tried; one that does not answer is given up. */
  #checkLine() {
    if (!this.#socket) return;
    const now = performance.now();
    const silence = now - this.#heardAt;
    const { idleMs, answerMs } = this.#timing;
    const stuck = this.#socket.readyState === WebSocket.CONNECTING && silence > answerMs;
    if (stuck || (this.#pingedAt && now - this.#pingedAt > answerMs)) {
      this.#forget().close();
      this.#onClose(1006, 'no answer');
    } else if (this.#live && !this.#pingedAt && silence > idleMs) {
      this.ping();
      this.#pingedAt = now;
    }
  }

  #forget() {
    const socket = this.#socket;
    this.#socket = null;
    this.#live = this.#settled = false;
    return socket;
  }

  #onOpen() {
    this.#opened = true;
    const resume = JSON.stringify({ type: 'resume', last_seq: this.#last });
    if (this.#ready || this.#returns) this.#socket.send(resume);
    this.#emit('open', {});
  }

  async #onClose(code, reason) {
    const opened = this.#opened;
    this.#forget();
    if (!this.#ready || (code >= 4500 && code < 5000)) {
      this.#end(code, reason, opened);
      return;
    }
    const attempt = ++this.#attempt;
    const wait = Math.min(RETRY_MAX_MS, RETRY_MS * 2 ** (attempt - 1)) * (0.5 + Math.random() / 2);
    clearTimeout(this.#retry);
    this.#retry = setTimeout(() => this.reconnect(), wait);
    this.#emit('reconnecting', { code, attempt, in_ms: Math.round(wait) });
    if (opened) return;
    const more = await refusal(this.#session.url);
    if (this.#live || this.#over) return; // It has come back meanwhile.
    this.#refusals += more;
    if (this.#refusals >= REFUSALS && !this.#socket) this.#end(code, reason, false);
  }

  #end(code, reason, opened) {
    this.#over = true;
    clearTimeout(this.#retry);
    this.#unwatch();
    this.#outbox = [];
    this.#unconfirmed = [];
    this.#emit('close', { code, reason, opened });
  }

  // What comes

  #onFrame(frame) {
    this.#heardAt = performance.now();
    this.#pingedAt = 0;
    const rate = this.#ready?.audio?.sample_rate;
    const message = typeof frame === 'string' ? JSON.parse(frame) : speech(frame, rate);
    if (message.type === 'session.ready') {
      this.#onReady(message);
      return;
    }
    if (!this.#live) {
      this.#emit(message.type, message); // Why this line gets no session: that takes no number.
      return;
    }
    if (message.seq <= this.#last) return; // It came before the line was lost.
    this.#last = message.seq;
    if (message.seq <= this.#historyEnd) message.replayed = true;
    if (message.type === 'audio.delta' && message.data !== undefined) {
      message.samples = fromBase64(message.data);
      delete message.data;
    }
    if (message.type === 'session.updated') this.#ready.audio = message.audio;
    if (!message.replayed) this.#confirm(message);
    this.#emit(message.type, message);
    // An answered ping comes after all that was missed.
    if (message.type === 'pong' && this.#live && !this.#settled) this.#settle();
  }

  #onReady(message) {
    const again = this.#ready !== null;
    const goesOn = again && message.resumed;
    if (!goesOn) this.#last = message.seq;
    if (message.resumed && this.#returns) this.#historyEnd = message.last_seq;
    this.#returns = false;
    this.#ready = message;
    this.#attempt = this.#refusals = 0;
    this.#live = true;
    this.#emit('session.ready', message);
    if (again) this.#emit('reconnected', { resumed: message.resumed });
    if (!this.#live) return; // A listener closed it.
    if (again && Object.keys(this.#settings).length) this.update(this.#settings);
    if (goesOn && this.#unconfirmed.length) this.ping();
    else this.#settle();
  }

  /** Sends what the line swallowed, and what was asked while it was lost. */
  #settle() {
    this.#settled = true;
    const waiting = [...this.#unconfirmed.splice(0), ...this.#outbox.splice(0)];
    for (const message of waiting) this.#keep(message);
  }

  /** A question has arrived when its turn is told of, or when it is refused. */
  #confirm({ type, turn_id: id, code }) {
    const turn = id ? Number(id.slice(1)) : 0;
    if ((type === 'turn.started' || type === 'queue') && turn > this.#turns) {
      this.#turns = turn;
      this.#confirmed = { id, message: this.#unconfirmed.shift() };
    } else if (type === 'transcription' && this.#confirmed?.id === id) {
      // The turn was a spoken question's: the typed one still waits for its own.
      if (this.#confirmed.message?.type === 'text') this.#unconfirmed.unshift(this.#confirmed.message);
      this.#confirmed = null;
    } else if (type === 'error' && !id && /^(text_|busy|audio_invalid)/.test(code)) {
      this.#unconfirmed.shift();
    }
  }

  // What goes

  #send(message) {
    if (!this.#live) return false;
    this.#socket.send(JSON.stringify(message));
    return true;
  }

  #keep(message) {
    if (this.#over) return false;
    if (!this.#settled) this.#outbox.push(message);
    else {
      this.#send(message);
      if (message.type === 'text' || message.type === 'audio') this.#unconfirmed.push(message);
    }
    return true;
  }

  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

/** How much a failed handshake speaks for a refused token: nothing where the server isn't there. */
async function refusal(url) {
  const { protocol, host, pathname } = new URL(url);
  const scheme = protocol === 'wss:' ? 'https' : 'http';
  const ready = `${scheme}://${host}${pathname.replace(/\/ws\/.*$/, '/ready')}`;
  try {
    const answer = await fetch(ready, { mode: 'no-cors', cache: 'no-store' });
    if (answer.type === 'opaque') return REFUSALS / 4; // Another origin's: its status is not told.
    return answer.ok ? REFUSALS / 2 : 0;
  } catch {
    return 0;
  }
}

/** @param {ArrayBuffer} frame u32 seq, u32 turn, u32 offset, big-endian, then PCM16 little-endian */
function speech(frame, sampleRate) {
  const header = new DataView(frame, 0, HEADER_BYTES);
  return {
    type: 'audio.delta',
    seq: header.getUint32(0),
    turn_id: `t${header.getUint32(4)}`,
    offset: header.getUint32(8),
    sample_rate: sampleRate,
    samples: new Int16Array(frame, HEADER_BYTES, (frame.byteLength - HEADER_BYTES) >> 1),
  };
}

/** @param {string} data PCM16 @returns {Int16Array} */
function fromBase64(data) {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  return new Int16Array(bytes.buffer, 0, bytes.length >> 1);
}

/** @param {Uint8Array} bytes */
function base64(bytes) {
  const parts = [];
  // A call takes a limited number of arguments, so long recordings go through in pieces.
  for (let at = 0; at < bytes.length; at += 0x8000) {
    parts.push(String.fromCharCode(...bytes.subarray(at, at + 0x8000)));
  }
  return btoa(parts.join(''));
}
