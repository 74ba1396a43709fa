// Speaking to the page: record and send, hold to talk (the button or Space), or hands-free turns that end by themselves.

import * as api from "./api.js";
import { VoiceActivity, decibel } from "./activity.js";
import { emotionColour } from "./dom.js";
import { RATE, join, noMicrophone, ofSamples, openMicrophone, samplesOf } from "./sound.js";

const HOLD_S = 0.35; // a shorter press begins a recording that a second press ends
const TRACE_S = 1; // between two looks at how it sounds
const WINDOW_S = 2; // of the recording, that such a look takes in
const LONGEST_S = 115; // the server's own limit is 120 s unless set otherwise
const PAUSE = new Float32Array(4800); // between two halves of a turn

/** The living waveform: one bar for each tenth of a second, in the colour of the emotion that was heard. */
export class LiveWave {
  constructor(canvas) {
    this.canvas = canvas;
    this.clear();
  }

  clear() {
    this.bars = [];
    this.most = -90;
    this.count = 0;
    this.emotion = null;
    this.draw();
  }

  push(block) {
    this.most = Math.max(this.most, decibel(block));
    if (++this.count % 5) return;
    this.bars.push({ height: Math.max(0.05, Math.min(1, (this.most + 60) / 50)), emotion: this.emotion });
    this.most = -90;
    this.draw();
  }

  /** An emotion that was just heard colours what it was heard in, too. */
  hear(emotion) {
    this.emotion = emotion;
    for (const bar of this.bars.slice(-10 * WINDOW_S)) bar.emotion ??= emotion;
    this.draw();
  }

  /** A variable of the style sheet as a canvas understands it: in the light or the dark, as the page is. */
  colour(name) {
    this.canvas.style.color = `var(${name})`;
    return getComputedStyle(this.canvas).color;
  }

  draw() {
    const { canvas } = this;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    const scale = window.devicePixelRatio || 1;
    if (canvas.width !== width * scale) [canvas.width, canvas.height] = [width * scale, height * scale];
    const pen = canvas.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, width, height);
    this.bars.slice(-Math.floor(width / 5)).reverse().forEach(({ height: loud, emotion }, at) => {
      pen.fillStyle = this.colour(emotion ? emotionColour(emotion) : "--soft");
      pen.fillRect(width - 5 * (at + 1), (height * (1 - loud)) / 2, 3, height * loud);
    });
  }
}

/** What the microphone of a page does; the page shows `mode`: "off", "recording", "waiting", "hearing". */
export class Listener {
  constructor(page, wave, onChange) {
    Object.assign(this, { page, wave, onChange, mode: "off", microphone: null, handsFree: false, pressed: 0, opening: false });
    this.activity = new VoiceActivity(() => this.begun(), (blocks) => this.ended(blocks));
  }

  /** Seconds that the present turn has. */
  get seconds() { return this.blocks.length * 0.02; }
  blocks = [];

  // -------------------------------------------------------------- press, hold, release

  /** The button or Space goes down, at a time in ms: begins a recording, or sends the one that runs. */
  async press(at) {
    if (this.opening) return;
    if (this.handsFree) { this.stop(); return; }
    if (this.mode === "recording") { await this.finish(); return; }
    this.pressed = at;
    this.page.interrupt();
    this.set("recording");
    if (!(await this.open())) this.set("off");
  }

  /** It comes up: after a hold the recording is sent, after a tap it goes on until the next press. */
  async release(at) {
    const held = this.pressed && at - this.pressed > 1000 * HOLD_S;
    this.pressed = 0;
    // the browser's question about the microphone takes the release of a hold away: such a recording goes on too
    if (held && this.mode === "recording" && this.seconds > 0) await this.finish();
  }

  async finish() {
    const speech = await this.recorded();
    if (speech) await this.page.say({ speech });
  }

  /** The recording so far as a clip, to be listened to first. */
  async recorded() {
    const { blocks } = this;
    const rate = this.microphone?.rate;
    this.stop();
    return blocks.length ? ofSamples(join(blocks), rate, "your recording") : null;
  }

  /** Closes the microphone; what was recorded and not sent is gone. */
  stop() {
    this.microphone?.close();
    this.looking?.abort();
    Object.assign(this, { microphone: null, handsFree: false, pressed: 0, blocks: [] });
    this.activity.reset();
    this.wave.clear();
    this.set("off");
  }

  async open(settings) {
    const wrong = noMicrophone();
    this.page.notice(wrong);
    if (wrong) return false;
    this.blocks = [];
    this.opening = true;
    try {
      this.microphone = await openMicrophone((block) => this.hear(block), settings);
      return true;
    } catch (error) {
      this.page.notice(error.name === "NotAllowedError"
        ? "The microphone was not allowed. Allow it in the browser, drop a recording, or type."
        : "No microphone was found. Drop a recording, choose an example, or type.");
      return false;
    } finally {
      this.opening = false;
    }
  }

  // -------------------------------------------------------------- hands-free

  /** Listens until it is switched off: a pause ends a turn, and speaking interrupts the reply. */
  async toggleHandsFree() {
    if (this.handsFree) { this.stop(); return; }
    if (this.mode === "recording") this.stop();
    // what the loudspeaker says must not come back as the user's next turn
    if (!(await this.open({ echoCancellation: true }))) return;
    this.handsFree = true;
    this.set("waiting");
  }

  hear(block) {
    if (!this.microphone) return;
    this.wave.push(block);
    if (this.handsFree) {
      this.activity.guarded = this.page.speaking();
      this.activity.push(block);
      this.blocks = this.activity.speaking ? this.activity.blocks : [];
    } else {
      this.blocks.push(block);
      if (this.seconds >= LONGEST_S) this.finish();
    }
    if (this.mode !== "waiting" && this.blocks.length % 5 === 0) this.onChange();
    if (this.blocks.length > 0) this.look();
  }

  begun() {
    this.page.interrupt();
    this.set("hearing");
  }

  async ended(blocks) {
    const { rate } = this.microphone;
    this.wave.clear();
    this.set("waiting");
    // somebody who paused and went on before the reply had begun said one turn, not two
    const half = await this.page.takeUnanswered();
    const speech = await ofSamples(join(blocks), rate, "your recording");
    if (!half) { await this.page.say({ speech, quiet: true }); return; }
    const both = [await samplesOf(half.speech), PAUSE, await samplesOf(speech)];
    await this.page.say({ speech: await ofSamples(join(both), RATE, speech.name), quiet: true });
  }

  // -------------------------------------------------------------- how it sounds

  /** Asks now and then how the last seconds sound; one question at a time. */
  async look() {
    const now = performance.now();
    if (!this.page.about || this.looking || this.seconds < 1.2 || now - (this.looked ?? 0) < 1000 * TRACE_S) return;
    this.looked = now;
    this.looking = new AbortController();
    const { signal } = this.looking;
    try {
      const last = await ofSamples(join(this.blocks.slice(-50 * WINDOW_S)), this.microphone.rate, "");
      const { windows } = await api.trace({ model: this.page.about.model, input_audio: { data: last.data, format: "wav" } }, signal);
      URL.revokeObjectURL(last.url);
      if (!signal.aborted && windows.length) this.wave.hear(windows.at(-1).emotion);
    } catch {
      // a silent second, or one too many: the picture goes without its colour
    } finally {
      if (this.looking?.signal === signal) this.looking = null;
    }
  }

  set(mode) {
    this.mode = mode;
    if (mode === "off") this.looking = null;
    this.onChange();
  }
}
