/** Cuts the microphone's sound into frames of PCM16 on the audio thread, each with its loudness. */

/** What the meter shows: from a quiet room to a voice too near, in decibels of full scale. */
const QUIET_DB = -66;
const LOUD_DB = -6;

class MicrophoneProcessor extends AudioWorkletProcessor {
  constructor({ processorOptions: { size, step } }) {
    super();
    this.size = size; // samples of a frame
    this.step = step; // samples of the context that are averaged to one
    this.samples = new Int16Array(size);
    this.filled = 0;
    this.power = 0;
    this.sum = 0;
    this.summed = 0;
  }

  process([[channel]]) {
    for (const value of channel ?? []) {
      this.sum += value;
      this.summed += 1;
      if (this.summed < this.step) continue;
      this.add(this.sum / this.step);
      this.sum = this.summed = 0;
    }
    return true;
  }

  add(value) {
    const clipped = Math.max(-1, Math.min(1, value));
    this.samples[this.filled++] = clipped * 32767;
    this.power += clipped * clipped;
    if (this.filled === this.size) this.post();
  }

  post() {
    const { samples } = this;
    const loudness = (10 * Math.log10(this.power / this.size + 1e-12) - QUIET_DB) / (LOUD_DB - QUIET_DB);
    const level = Math.max(0, Math.min(1, loudness));
    this.port.postMessage({ samples, level }, [samples.buffer]);
    this.samples = new Int16Array(this.size);
    this.filled = 0;
    this.power = 0;
  }
}

registerProcessor('microphone', MicrophoneProcessor);
