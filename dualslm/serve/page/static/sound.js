// Recordings: from the microphone or a file to bytes that the server reads, and to a picture of their loudness.

export const RATE = 16000; // Hz, what the encoder hears
const READS = /^(RIFF|fLaC|OggS|ID3|\xff[\xe2-\xfb])/; // what the server decodes itself: wav, flac, ogg, mp3
const BARS = 72;
const RAW = { channelCount: 1, autoGainControl: false, noiseSuppression: false }; // loudness is tone

/** A file as the conversation keeps it: base64 for the server, an address to play, bars to draw, seconds. */
export async function take(blob, name) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  const heard = await decode(bytes);
  const head = String.fromCharCode(...bytes.subarray(0, 4));
  const sent = heard && !READS.test(head) ? wav(heard) : bytes; // webm, m4a and the like: decoded here
  const url = URL.createObjectURL(heard ? new Blob([wav(heard)], { type: "audio/wav" }) : blob);
  return { name, data: base64(sent), url, bars: heard ? loudness(heard) : null, seconds: heard ? heard.length / RATE : 0 };
}

/** A recording that was kept as base64. */
export const taken = ({ name, data }) => take(new Blob([unbase64(data)]), name);

/** Samples as a recording, at the rate that the encoder hears. */
export const ofSamples = async (samples, rate, name) =>
  take(new Blob([wav(rate === RATE ? samples : await decode(wav(samples, rate)))]), name);

/** The samples of a recording, 16 kHz mono; null where the browser cannot decode it. */
export const samplesOf = (speech) => decode(unbase64(speech.data));

/** The part of a recording from a second to another. */
export async function cut(speech, from, to) {
  const samples = await samplesOf(speech);
  return ofSamples(samples.slice(Math.round(from * RATE), Math.round(to * RATE)), RATE, speech.name);
}

export function join(blocks) {
  const whole = new Float32Array(blocks.reduce((sum, block) => sum + block.length, 0));
  let at = 0;
  for (const block of blocks) {
    whole.set(block, at);
    at += block.length;
  }
  return whole;
}

/** 16 kHz mono samples; null where the browser cannot decode it, which the server then tells in words. */
async function decode(bytes) {
  if (!bytes.length) return null;
  try {
    const context = new OfflineAudioContext(1, 1, RATE);
    const buffer = await context.decodeAudioData(bytes.slice().buffer);
    const mono = new Float32Array(buffer.length);
    for (let channel = 0; channel < buffer.numberOfChannels; channel++) {
      buffer.getChannelData(channel).forEach((value, at) => (mono[at] += value / buffer.numberOfChannels));
    }
    return mono;
  } catch {
    return null;
  }
}

function loudness(samples) {
  const step = Math.max(1, samples.length / BARS);
  const bars = Array.from({ length: Math.min(BARS, samples.length) }, (_, bar) => {
    let sum = 0;
    const [from, to] = [Math.floor(bar * step), Math.floor((bar + 1) * step)];
    for (let at = from; at < to; at++) sum += samples[at] ** 2;
    return Math.sqrt(sum / Math.max(1, to - from));
  });
  const most = Math.max(...bars, 1e-4);
  return bars.map((bar) => Math.max(0.06, (bar / most) ** 0.7));
}

/** The bytes of a 16-bit wav file. */
function wav(samples, rate = RATE) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, word) => [...word].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples.length, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, 1, true); // channels
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  samples.forEach((value, i) => view.setInt16(44 + 2 * i, Math.max(-1, Math.min(1, value)) * 32767, true));
  return new Uint8Array(view.buffer);
}

export function base64(bytes) {
  let text = "";
  for (let at = 0; at < bytes.length; at += 32768) text += String.fromCharCode(...bytes.subarray(at, at + 32768));
  return btoa(text);
}

const unbase64 = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

/** Why nothing can be recorded here; empty where it can be tried. */
export function noMicrophone() {
  if (!window.isSecureContext) {
    return "Browsers lend the microphone to https and localhost only (serve with --ssl-certfile). Drop a recording, or type.";
  }
  if (!navigator.mediaDevices?.getUserMedia || !window.AudioWorklet) return "This browser cannot record. Drop a recording, or type.";
  return "";
}

/** Opens the microphone: `onBlock` gets samples, 20 ms at a time. Gives its rate in Hz, and `close`. */
export async function openMicrophone(onBlock, { echoCancellation = false } = {}) {
  const stream = await navigator.mediaDevices.getUserMedia({ audio: { ...RAW, echoCancellation } });
  const context = new AudioContext();
  const close = () => {
    stream.getTracks().forEach((track) => track.stop());
    context.close();
  };
  try {
    await context.audioWorklet.addModule("page/worklet.js");
    const node = new AudioWorkletNode(context, "blocks");
    node.port.onmessage = ({ data }) => onBlock(data);
    context.createMediaStreamSource(stream).connect(node);
    node.connect(context.destination); // silent, but browsers run only what leads somewhere
    await context.resume();
  } catch (error) {
    close();
    throw error;
  }
  return { rate: context.sampleRate, close };
}
