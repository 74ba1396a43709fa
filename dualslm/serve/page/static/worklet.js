// Runs beside the page in the audio thread: hands on the microphone's samples in blocks of about 20 ms.

const BLOCK_S = 0.02;

registerProcessor("blocks", class extends AudioWorkletProcessor {
  constructor() {
    super();
    this.block = new Float32Array(Math.round(BLOCK_S * sampleRate)); // `sampleRate` is the audio thread's own
    this.filled = 0;
  }

  process([[samples]]) {
    for (const value of samples ?? []) {
      this.block[this.filled++] = value;
      if (this.filled < this.block.length) continue;
      this.port.postMessage(this.block.slice());
      this.filled = 0;
    }
    return true; // until the page closes the context
  }
});
