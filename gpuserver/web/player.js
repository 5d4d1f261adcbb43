/**
 * Plays a turn's speech as it arrives, stops it at once, and is the clock that the mouth follows.
 *
 * Events: `started` (sound is heard), `drained` (all of it was heard), `stopped` (by `flush`), `held`
 * (still, by `hold`), `blocked` (the browser waits for a gesture), `unavailable` (see `failure`).
 */

/** What the embedded voice speaks at: the first guess, so that the first gesture opens the right one. */
const USUAL_RATE = 22050;
const MUTE_RAMP_S = 0.015;
/** A context takes a moment to start; one that still waits after this waits for a gesture. */
const START_MS = 600;

export class Player extends EventTarget {
  #context = null;
  #node = null; // a promise of the worklet's node; chunks queue behind it in order
  #gain = null;
  #analyser = null;
  #muted = false;
  #generation = 0; // grows with each flush: what is on its way from before one is dropped
  #clock = null; // the last report of the worklet, and when it came
  #heard = null; // where the speech stands while it does not run: {turnId, ms}
  #queued = false; // speech was given that was not yet heard to its end
  #held = false;
  #usual = USUAL_RATE;
  #playedBefore = 0; // samples played by contexts that were closed
  #total = 0;

  /** Whether sound is coming out, or would be but for the mute control. */
  playing = false;
  /** Why there can be no sound: `insecure`, `failed`, or null where there can. */
  failure = null;

  /** What the speech will come at, so that the first gesture opens the right output. @param {number} sampleRate */
  expect(sampleRate) {
    if (sampleRate > 0) this.#usual = sampleRate;
  }

  /** Opens the sound. Browsers allow that only while they handle a press of a key or a button. */
  prime() {
    this.#open((this.#queued && this.#context?.sampleRate) || this.#usual);
    if (this.#context?.state === 'suspended') this.#context.resume().catch(() => {});
  }

  /**
   * Queues a piece of speech.
   * @param {{turnId: string, samples: Int16Array, sampleRate: number, offset: number}} piece mono;
   *   `offset` is the number of the turn's samples before it
   */
  async play({ turnId, samples, sampleRate, offset }) {
    const generation = this.#generation;
    this.#open(sampleRate);
    if (!this.#queued) this.#heard = { turnId, ms: (offset / sampleRate) * 1000 };
    this.#queued = true;
    const node = await this.#node;
    if (!node || generation !== this.#generation) return;
    node.port.postMessage({ do: 'push', generation, turnId, offset, samples }, [samples.buffer]);
  }

  /** Says that the turn's speech is complete; `drained` follows when all of it was heard. */
  async end() {
    const generation = this.#generation;
    const node = await this.#node;
    if (generation === this.#generation) node?.port.postMessage({ do: 'end', generation });
  }

  /** Stops the sound at once and drops what is queued. */
  async flush() {
    this.#heard = this.heard();
    this.#generation++;
    const queued = this.#queued;
    this.#rest();
    if (queued) this.#emit('stopped');
    (await this.#node)?.port.postMessage({ do: 'flush' });
  }

  /** Holds still at once; what is queued stays. */
  async hold() {
    if (this.#held) return;
    this.#heard = this.heard();
    this.#held = true;
    if (this.#queued) this.#emit('held');
    const generation = this.#generation;
    const node = await this.#node;
    if (generation === this.#generation) node?.port.postMessage({ do: 'hold' });
  }

  /** Goes on where it was held. */
  async go() {
    this.#held = false;
    const generation = this.#generation;
    const node = await this.#node;
    if (generation === this.#generation) node?.port.postMessage({ do: 'go' });
  }

  /** Whether it holds still. */
  get held() {
    return this.#held;
  }

  /** Whether speech is being heard, or is about to be. */
  get busy() {
    return this.playing || (this.#queued && this.#context?.state === 'running');
  }

  get muted() {
    return this.#muted;
  }

  set muted(muted) {
    this.#muted = muted;
    this.#gain?.gain.setTargetAtTime(muted ? 0 : 1, this.#context.currentTime, MUTE_RAMP_S);
  }

  /** What is heard now: milliseconds into a turn's speech; null in silence. @returns {{turnId: string, ms: number} | null} */
  position() {
    if (!this.playing || this.#held || !this.#clock) return null;
    const { turnId, position, at } = this.#clock;
    // Reports come every 20 ms; in between the clock runs on, but never far past the last one.
    const since = Math.min(performance.now() - at, 60);
    const latency = (this.#context.outputLatency || this.#context.baseLatency || 0) * 1000;
    return { turnId, ms: Math.max(0, (position / this.#context.sampleRate) * 1000 + since - latency) };
  }

  /** How far the newest speech was heard, also when it is held, stopped or over; null before any. @returns {{turnId: string, ms: number} | null} */
  heard() {
    return this.position() ?? this.#heard;
  }

  /** Loudness of what is heard now, 0 to 1, after the mute control. */
  peak() {
    if (!this.#analyser) return 0;
    const wave = new Float32Array(this.#analyser.fftSize);
    this.#analyser.getFloatTimeDomainData(wave);
    return wave.reduce((peak, value) => Math.max(peak, Math.abs(value)), 0);
  }

  /** Samples played since the page was opened. */
  get playedSamples() {
    return this.#playedBefore + this.#total;
  }

  /** The context's state, rate and clock in seconds; null before the first gesture. */
  get output() {
    if (!this.#context) return null;
    const { state, sampleRate, currentTime } = this.#context;
    return { state, sampleRate, currentTime };
  }

  #open(sampleRate) {
    this.#usual = sampleRate;
    if (this.failure || this.#context?.sampleRate === sampleRate) return;
    this.#close();
    try {
      // At the stream's own rate the browser resamples once, at the very end, without seams.
      this.#context = new AudioContext({ sampleRate, latencyHint: 'interactive' });
    } catch {
      this.#fail('failed');
      return;
    }
    if (!this.#context.audioWorklet) this.#fail('insecure');
    else this.#node = this.#connect(this.#context);
    setTimeout(() => this.#context?.state === 'suspended' && this.#emit('blocked'), START_MS);
  }

  async #connect(context) {
    try {
      await context.audioWorklet.addModule(new URL('player-worklet.js', import.meta.url));
    } catch {
      if (context === this.#context) this.#fail('failed'); // or it was closed for another rate meanwhile
      return null;
    }
    if (context !== this.#context) return null; // A stream at another rate came meanwhile.
    const node = new AudioWorkletNode(context, 'speech-player', { numberOfInputs: 0, outputChannelCount: [1] });
    this.#gain = new GainNode(context, { gain: this.#muted ? 0 : 1 });
    this.#analyser = new AnalyserNode(context, { fftSize: 1024 });
    node.connect(this.#gain).connect(this.#analyser).connect(context.destination);
    node.port.onmessage = ({ data }) => context === this.#context && this.#onReport(data);
    return node;
  }

  #onReport({ is, generation, turnId, position, total }) {
    this.#total = total;
    if (is === 'stopped' || generation !== this.#generation) return;
    if (turnId) this.#heard = { turnId, ms: (position / this.#context.sampleRate) * 1000 };
    if (is === 'drained') {
      const queued = this.#queued;
      this.#rest();
      if (queued) this.#emit('drained');
      return;
    }
    this.#clock = { turnId, position, at: performance.now() };
    if (this.playing || is === 'held') return;
    this.playing = true;
    this.#emit('started');
  }

  #rest() {
    this.#queued = this.#held = this.playing = false;
    this.#clock = null;
  }

  #close() {
    const queued = this.#queued;
    this.#rest();
    if (queued) this.#emit('stopped');
    this.#playedBefore += this.#total;
    this.#total = 0;
    this.#context?.close().catch(() => {});
    this.#context = this.#node = this.#gain = this.#analyser = null;
  }

  #fail(reason) {
    this.failure = reason;
    this.#close();
    this.#emit('unavailable');
  }

  #emit(type) {
    this.dispatchEvent(new Event(type));
  }
}
