/** Records one spoken question as a whole clip, in whatever container this browser records. */

const CONTAINERS = ['audio/webm;codecs=opus', 'audio/mp4', 'audio/ogg;codecs=opus'];
/** Opus at this rate keeps every speech sound; a minute is about 240 kB. */
const BITS_PER_SECOND = 32000;

/**
 * Why there can be no recording here at all; null where there may be.
 * @returns {'insecure' | 'unsupported' | null}
 */
export function obstacle() {
  if (!window.isSecureContext) return 'insecure';
  if (!navigator.mediaDevices?.getUserMedia || !window.MediaRecorder) return 'unsupported';
  return null;
}

export class Recorder {
  #stream;
  #recorder;
  #chunks = [];
  #meter;
  #startedAt = performance.now();

  /**
   * Opens the microphone and starts recording.
   * @returns {Promise<Recorder>}
   * @throws {DOMException} as getUserMedia does; `reasonOf` names it
   */
  static async start() {
    const constraints = { channelCount: 1, echoCancellation: true, noiseSuppression: true };
    const stream = await navigator.mediaDevices.getUserMedia({ audio: constraints });
    try {
      return new Recorder(stream);
    } catch (error) {
      for (const track of stream.getTracks()) track.stop(); // or the microphone would stay open
      throw error;
    }
  }

  /** @param {MediaStream} stream */
  constructor(stream) {
    this.#stream = stream;
    const mimeType = CONTAINERS.find((type) => MediaRecorder.isTypeSupported(type));
    this.#recorder = new MediaRecorder(stream, { mimeType, audioBitsPerSecond: BITS_PER_SECOND });
    this.#recorder.addEventListener('dataavailable', ({ data }) => this.#chunks.push(data));
    this.#recorder.start();
    this.#meter = meter(stream);
  }

  /** How long it has been recording. */
  get seconds() {
    return (performance.now() - this.#startedAt) / 1000;
  }

  /** Loudness now, 0 to 1. */
  level() {
    return this.#meter.level();
  }

  /** Ends the recording. @returns {Promise<Blob>} the whole clip */
  async stop() {
    if (this.#recorder.state !== 'inactive') {
      const stopped = new Promise((done) => this.#recorder.addEventListener('stop', done, { once: true }));
      this.#recorder.stop();
      await stopped;
    }
    this.discard();
    return new Blob(this.#chunks, { type: this.#recorder.mimeType });
  }

  /** Lets go of the microphone, so that the browser's sign of it goes out. */
  discard() {
    if (this.#recorder.state !== 'inactive') this.#recorder.stop();
    for (const track of this.#stream.getTracks()) track.stop();
    this.#meter.close();
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

/** A level meter. Its own context: a stream's rate may differ from the player's. */
function meter(stream) {
  const context = new AudioContext();
  const analyser = new AnalyserNode(context, { fftSize: 1024 });
  context.createMediaStreamSource(stream).connect(analyser);
  const wave = new Float32Array(analyser.fftSize);
  return {
    level() {
      analyser.getFloatTimeDomainData(wave);
      const power = wave.reduce((sum, value) => sum + value * value, 0) / wave.length;
      return Math.min(1, Math.sqrt(power) * 4);
    },
    close() {
      if (context.state !== 'closed') context.close();
    },
  };
}
