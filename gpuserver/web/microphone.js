/**
 * The microphone as 20 ms pieces of PCM16, for `TutorClient.append`. Needs `microphone-worklet.js`
 * beside it.
 *
 * Events: `frame` with `{samples: Int16Array, level}`, `lost` (it was unplugged or taken away).
 */

/** What the server takes; the first is what speech recognition works at. */
const RATES = [16000, 48000, 44100, 24000, 8000];
const FRAME_S = 0.02;

export class Microphone extends EventTarget {
  #stream = null;
  #context = null;
  #opening = 0; // grows with each opening and closing: a late permission is not acted on

  /** Loudness now, 0 to 1. */
  level = 0;

  /**
   * Why there can be no microphone here at all; null where there may be.
   * @returns {'insecure' | 'unsupported' | null}
   */
  static obstacle() {
    if (!window.isSecureContext) return 'insecure';
    if (!navigator.mediaDevices?.getUserMedia || !window.AudioWorkletNode) return 'unsupported';
    return null;
  }

  /** The microphones there are; names are empty until one was allowed. @returns {Promise<{id: string, name: string}[]>} */
  static async list() {
    const devices = (await navigator.mediaDevices?.enumerateDevices?.()) ?? [];
    return devices
      .filter(({ kind, deviceId }) => kind === 'audioinput' && deviceId !== 'default' && deviceId !== 'communications')
      .map(({ deviceId, label }) => ({ id: deviceId, name: label }));
  }

  /** Which device it is, once open. */
  get deviceId() {
    return this.#stream?.getAudioTracks()[0].getSettings().deviceId ?? '';
  }

  /**
   * Opens it; to be called while a press is handled, as browsers ask the student then.
   * @param {string} [deviceId] of `list`; any where it is empty or gone
   * @returns {Promise<{sampleRate: number} | null>} of the samples; null if it was closed meanwhile
   * @throws {DOMException} as getUserMedia does; `reasonOf` names it
   */
  async open(deviceId = '') {
    this.close();
    const opening = this.#opening;
    const stream = await ask(deviceId);
    if (opening !== this.#opening) {
      release(stream);
      return null;
    }
    this.#stream = stream;
    try {
      const sampleRate = await this.#capture(stream);
      return opening === this.#opening ? { sampleRate } : null;
    } catch (error) {
      if (opening !== this.#opening) return null; // Being closed on the way may be an error to the browser.
      this.close(); // or its sign would stay on
      throw error;
    }
  }

  /** Lets go of it, so that the browser's sign of it goes out. */
  close() {
    this.#opening += 1;
    this.level = 0;
    if (this.#stream) release(this.#stream);
    this.#context?.close().catch(() => {});
    this.#stream = this.#context = null;
  }

  async #capture(stream) {
    const [track] = stream.getAudioTracks();
    track.addEventListener('ended', () => {
      if (stream !== this.#stream) return;
      this.close();
      this.dispatchEvent(new Event('lost'));
    });
    const { context, source } = connect(stream);
    this.#context = context;
    await context.audioWorklet.addModule(new URL('microphone-worklet.js', import.meta.url));
    if (context.state === 'closed') return 0;
    const { rate, step } = rateFor(context.sampleRate);
    const options = { size: Math.round(rate * FRAME_S), step };
    const node = new AudioWorkletNode(context, 'microphone', { numberOfOutputs: 0, processorOptions: options });
    node.port.onmessage = ({ data }) => {
      if (context !== this.#context) return;
      this.level = data.level;
      this.dispatchEvent(new CustomEvent('frame', { detail: data }));
    };
    source.connect(node);
    if (context.state === 'suspended') await context.resume();
    return rate;
  }
}

/**
 * What to tell the student when the microphone could not be opened.
 * @param {Error} error
 * @returns {'denied' | 'missing' | 'busy'}
 */
export function reasonOf(error) {
  if (error.name === 'NotAllowedError' || error.name === 'SecurityError') return 'denied';
  if (error.name === 'NotFoundError' || error.name === 'OverconstrainedError') return 'missing';
  return 'busy';
}

async function ask(deviceId) {
  const audio = { channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true };
  if (!deviceId) return navigator.mediaDevices.getUserMedia({ audio });
  try {
    return await navigator.mediaDevices.getUserMedia({ audio: { ...audio, deviceId: { exact: deviceId } } });
  } catch (error) {
    if (reasonOf(error) !== 'missing') throw error;
    return navigator.mediaDevices.getUserMedia({ audio }); // The chosen one is gone; another may do.
  }
}

/** A context at the recogniser's rate where the browser resamples, otherwise at the device's own. */
function connect(stream) {
  const context = new AudioContext({ sampleRate: RATES[0] });
  try {
    return { context, source: context.createMediaStreamSource(stream) };
  } catch {
    context.close().catch(() => {});
    const own = new AudioContext();
    return { context: own, source: own.createMediaStreamSource(stream) };
  }
}

/** The rate to send, and how many of the context's samples make one of it. */
function rateFor(sampleRate) {
  for (const step of [1, 2, 4]) {
    if (RATES.includes(sampleRate / step)) return { rate: sampleRate / step, step };
  }
  throw new DOMException(`no use for ${sampleRate} Hz`, 'NotReadableError');
}

function release(stream) {
  for (const track of stream.getTracks()) track.stop();
}
