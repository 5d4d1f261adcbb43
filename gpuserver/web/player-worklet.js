/** Plays queued PCM16 without gaps on the audio thread, and says how much of it was played. */

/** Sound held back at the start of speech, so that an uneven network leaves no holes. */
const HEADROOM_S = 0.06;
/** After a hole the network is known to be uneven. */
const HEADROOM_AFTER_HOLE_S = 0.2;
/** A stop fades out and a return fades in this long: an edge in the wave would click. */
const FADE_S = 0.006;
const REPORT_S = 0.02;

class SpeechPlayer extends AudioWorkletProcessor {
  constructor() {
    super();
    this.total = 0;
    this.headroom = HEADROOM_S;
    this.clear();
    this.port.onmessage = ({ data }) => this[data.do](data);
  }

  clear() {
    this.chunks = [];
    this.at = 0; // the next sample of the first chunk
    this.waiting = 0; // samples not yet played
    this.flowing = false;
    this.ended = false;
    this.flushing = false;
    this.held = false;
    this.gain = 1;
    this.sinceReport = 0;
  }

  /** A piece of a turn's speech; `offset` is the number of the turn's samples before it. */
  push({ turnId, offset, samples, generation }) {
    if (this.flushing) this.clear();
    this.generation = generation;
    this.chunks.push({ turnId, offset, samples });
    this.waiting += samples.length;
    this.ended = false;
  }

  /** No more speech comes: what is queued plays out, however short it is. */
  end({ generation }) {
    this.generation = generation;
    this.ended = true;
    if (!this.waiting) this.drained();
  }

  /** Stops at once. */
  flush() {
    if (this.flowing && this.gain > 0) this.flushing = true;
    else this.stopped();
  }

  /** Holds still without dropping anything. */
  hold() {
    this.held = true;
    if (!this.flowing) this.gain = 0;
  }

  /** Goes on where it was held. */
  go() {
    this.held = false;
    if (!this.flowing) this.gain = 1;
  }

  process(_inputs, [[out]]) {
    const enough = this.waiting >= this.headroom * sampleRate || (this.ended && this.waiting > 0);
    if (this.held && this.gain === 0) return true;
    if (!this.flowing && !enough) return true;
    this.flowing = true;
    for (let i = 0; i < out.length; i++) {
      if (!this.waiting) {
        this.ranDry();
        return true;
      }
      out[i] = this.next() * this.fade();
      if (this.gain === 0) {
        this.silenced();
        return true;
      }
    }
    this.sinceReport += out.length;
    if (this.sinceReport >= REPORT_S * sampleRate) this.report('playing');
    return true;
  }

  next() {
    const [chunk] = this.chunks;
    const sample = chunk.samples[this.at++] / 32768;
    this.turnId = chunk.turnId;
    this.position = chunk.offset + this.at;
    this.waiting--;
    this.total++;
    if (this.at === chunk.samples.length) {
      this.chunks.shift();
      this.at = 0;
    }
    return sample;
  }

  /** How loud the next sample is: on the way to silence while it stops, and back while it returns. */
  fade() {
    const step = 1 / (FADE_S * sampleRate);
    const to = this.held || this.flushing ? 0 : 1;
    this.gain = to ? Math.min(1, this.gain + step) : Math.max(0, this.gain - step);
    return this.gain;
  }

  silenced() {
    if (this.flushing) this.stopped();
    else this.report('held');
  }

  ranDry() {
    this.flowing = false;
    if (this.flushing) this.stopped();
    else if (this.ended) this.drained();
    else this.headroom = HEADROOM_AFTER_HOLE_S;
  }

  drained() {
    this.clear();
    this.report('drained');
  }

  /** Who stops it knows; what was played since the last report counts as well. */
  stopped() {
    this.clear();
    this.report('stopped');
  }

  report(is) {
    this.sinceReport = 0;
    if (this.flushing) return;
    const { generation, turnId, position, total } = this;
    this.port.postMessage({ is, generation, turnId, position, total });
  }
}

registerProcessor('speech-player', SpeechPlayer);
