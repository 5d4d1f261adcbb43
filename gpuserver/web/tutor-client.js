/**
 * A client of the tutor's streaming dialect, `tutor.v2`, for any web page. It needs no other file.
 *
 * ```js
 * import { TutorClient } from './tutor-client.js';
 *
 * // From your Web Server's call of POST /v1/sessions:
 * const tutor = new TutorClient({ url: engine_url, token: engine_token });
 * tutor.addEventListener('text.delta', ({ detail }) => answer.append(detail.content));
 * tutor.addEventListener('turn.done', ({ detail }) => console.log(detail.status));
 * tutor.addEventListener('close', ({ detail }) => console.log(detail.code, detail.opened));
 * tutor.addEventListener('session.ready', () => tutor.text('How do I repeat something?'));
 * ```
 *
 * Every message of the server is an event named by its `type`, with the message as `detail`:
 * `session.ready`, `turn.started`, `transcription`, `sources`, `text.delta`, `text`, `audio.delta`,
 * `visemes`, `turn.done`, `session.ending`, `error`, `pong`. Types that this file does not know are
 * passed on in the same way. Two events are the connection's own: `open`, and `close` with
 * `{code, reason, opened}`; `opened` is false where the server could not be reached or refused the
 * token (a browser does not tell which).
 */

/**
 * Why a connection was closed. From 4000 to 4499 the same token may be used again.
 * @readonly
 */
export const CLOSE = { restarting: 4000, tooSlow: 4001, replaced: 4501, ended: 4502 };

export class TutorClient extends EventTarget {
  #socket;
  #opened = false;

  /**
   * Connects at once. Listeners added in the same task as the constructor miss nothing.
   * @param {{url: string, token: string}} session `engine_url` and `engine_token` of a session
   * @throws {DOMException} the address is not a WebSocket's, or a secure page may not open it
   */
  constructor({ url, token }) {
    super();
    // The token travels as a subprotocol, so it is not in any address and not in any access log.
    this.#socket = new WebSocket(url, ['tutor.v2', `bearer.${token}`]);
    this.#socket.addEventListener('open', () => this.#onOpen());
    this.#socket.addEventListener('message', (event) => this.#onMessage(event.data));
    this.#socket.addEventListener('close', (event) => this.#onClose(event));
  }

  /** Whether messages can be sent now. */
  get connected() {
    return this.#socket.readyState === WebSocket.OPEN;
  }

  /** Asks a question in writing. @param {string} content @returns {boolean} whether it was sent */
  text(content) {
    return this.#send({ type: 'text', content });
  }

  /**
   * Asks a question by voice: one whole recording, in any container that a browser records.
   * @param {Blob} recording
   * @returns {Promise<boolean>} whether it was sent
   */
  async audio(recording) {
    const data = base64(new Uint8Array(await recording.arrayBuffer()));
    return this.#send({ type: 'audio', data });
  }

  /**
   * Stops the answer. The server confirms with `turn.done` of status `interrupted`.
   * @param {string} [turnId] that answer only; otherwise the running one and all that wait
   * @returns {boolean} whether it was sent
   */
  interrupt(turnId) {
    return this.#send(turnId ? { type: 'interrupt', turn_id: turnId } : { type: 'interrupt' });
  }

  /** Asks for a `pong`. @returns {boolean} whether it was sent */
  ping() {
    return this.#send({ type: 'ping' });
  }

  /** Closes the connection; the session stays and can be connected to again. */
  close() {
    this.#socket.close(1000);
  }

  #send(message) {
    if (!this.connected) return false;
    this.#socket.send(JSON.stringify(message));
    return true;
  }

  #onOpen() {
    this.#opened = true;
    this.#emit('open', {});
  }

  #onMessage(frame) {
    if (typeof frame !== 'string') return; // This dialect is asked for as text frames only.
    const message = JSON.parse(frame);
    this.#emit(message.type, message);
  }

  #onClose({ code, reason }) {
    this.#emit('close', { code, reason, opened: this.#opened });
  }

  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
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
