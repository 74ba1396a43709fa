// Recordings: from the microphone or a file to bytes that the server reads, and to a picture of their loudness.

const RATE = 16000; // Hz, what the encoder hears
const READS = /^(RIFF|fLaC|OggS|ID3|\xff[\xe2-\xfb])/; // what the server decodes itself: wav, flac, ogg, mp3
const BARS = 72;
const RAW = { channelCount: 1, autoGainControl: false, noiseSuppression: false, echoCancellation: false }; // loudness is tone

/** A file as the conversation keeps it: base64 for the server, an address to play, bars to draw, seconds. */
export async function take(blob, name) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  const heard = await decode(bytes);
  const head = String.fromCharCode(...bytes.subarray(0, 4));
  const sent = heard && !READS.test(head) ? wav(heard) : bytes; // webm, m4a and the like: decoded here
  const url = URL.createObjectURL(heard ? new Blob([wav(heard)], { type: "audio/wav" }) : blob);
  return { name, data: base64(sent), url, bars: heard ? loudness(heard) : null, seconds: heard ? heard.length / RATE : 0 };
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
function wav(samples) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, word) => [...word].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples.length, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, 1, true); // channels
  view.setUint32(24, RATE, true);
  view.setUint32(28, 2 * RATE, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  samples.forEach((value, i) => view.setInt16(44 + 2 * i, Math.max(-1, Math.min(1, value)) * 32767, true));
  return new Uint8Array(view.buffer);
}

function base64(bytes) {
  let text = "";
  for (let at = 0; at < bytes.length; at += 32768) text += String.fromCharCode(...bytes.subarray(at, at + 32768));
  return btoa(text);
}

/** Why nothing can be recorded here; empty where it can be tried. */
export function noMicrophone() {
  if (!window.isSecureContext) return "Browsers lend the microphone to https and localhost only. Drop a recording, or type.";
  if (!navigator.mediaDevices?.getUserMedia || !window.MediaRecorder) return "This browser cannot record. Drop a recording, or type.";
  return "";
}

/** Begins to record; `onLevel` gets loudness 0 to 1 and seconds. Gives `finish`, which gives the recording, and `drop`. */
export async function record(onLevel) {
  const stream = await navigator.mediaDevices.getUserMedia({ audio: RAW });
  const recorder = new MediaRecorder(stream);
  const chunks = [];
  recorder.ondataavailable = (event) => chunks.push(event.data);
  const context = new AudioContext();
  const meter = context.createAnalyser();
  context.createMediaStreamSource(stream).connect(meter);
  const samples = new Float32Array(meter.fftSize);
  const began = performance.now();
  const timer = setInterval(() => {
    meter.getFloatTimeDomainData(samples);
    const power = samples.reduce((sum, value) => sum + value * value, 0) / samples.length;
    onLevel(Math.min(1, Math.sqrt(power) * 5), (performance.now() - began) / 1000);
  }, 80);
  const end = () =>
    new Promise((done) => {
      clearInterval(timer);
      recorder.onstop = () => {
        stream.getTracks().forEach((track) => track.stop());
        context.close();
        done(new Blob(chunks, { type: recorder.mimeType }));
      };
      recorder.stop();
    });
  recorder.start();
  return { finish: end, drop: end };
}
