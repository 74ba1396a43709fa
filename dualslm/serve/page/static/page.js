// The page: the composer, the conversation as it grows, and the examples.

import * as api from "./api.js";
import { complaint, h } from "./dom.js";
import { noMicrophone, record, take } from "./sound.js";
import { Talk } from "./talk.js";
import { showTurn } from "./turn.js";

const $ = (id) => document.getElementById(id);
const state = { talk: new Talk("", ""), about: null, running: null, recorder: null };

// ---------------------------------------------------------------- saying something

/** Adds a turn and answers it; only one reply grows at a time. */
async function say(turn) {
  if (!state.about) return notice("The server has not answered yet.");
  if (state.running) return notice("A reply is growing: stop it first, or wait.");
  notice("");
  if (!state.talk.turns.length) state.talk.system = $("system").value.trim();
  turn.replies = [];
  turn.kept = 0;
  state.talk.turns.push(turn);
  $("start").hidden = true;
  $("more").hidden = !state.about.clips.length;
  $("new").hidden = false;
  const node = showTurn(turn, page);
  $("turns").append(node);
  node.scrollIntoView({ block: "start", behavior: "smooth" });
  node.focus({ preventScroll: true });
  await node.begin();
}

/** What a turn may ask of the page. */
const page = {
  get about() { return state.about; },
  get talk() { return state.talk; },
  channels: () => ({ para: $("para").checked, ling: $("ling").checked }),
  busy: () => state.running !== null,
  last: (turn) => state.talk.turns.at(-1) === turn,
  /** Runs a reply: its signal is aborted by Stop. */
  async run(work) {
    const stop = new AbortController();
    state.running = stop;
    $("send").hidden = true;
    $("stop").hidden = false;
    try {
      await work(stop.signal);
    } finally {
      state.running = null;
      $("send").hidden = false;
      $("stop").hidden = true;
    }
  },
  /** A turn that could not be answered leaves the conversation. */
  forget(turn) {
    state.talk.turns = state.talk.turns.filter((one) => one !== turn);
  },
};

async function sayFile(file) {
  if (file) await say({ speech: await take(file, file.name || "the recording") });
}

async function clip({ file }) {
  const answer = await fetch(`page/clips/${file}`);
  return take(await answer.blob(), file);
}
page.clip = clip;
page.notice = notice;

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

// ---------------------------------------------------------------- the composer

async function toggleRecording() {
  if (state.recorder) {
    const recorder = state.recorder;
    live(null);
    const blob = await recorder.finish();
    return say({ speech: await take(blob, "your recording") });
  }
  notice(noMicrophone());
  if (noMicrophone()) return undefined;
  try {
    live(await record((level, time) => {
      $("record").style.setProperty("--level", level);
      $("recording").firstChild.textContent = `${time.toFixed(1)} s `;
    }));
  } catch (error) {
    notice(error.name === "NotAllowedError"
      ? "The microphone was not allowed. Allow it in the browser, drop a recording, or type."
      : "No microphone was found. Drop a recording, choose an example, or type.");
  }
  return undefined;
}

function live(recorder) {
  state.recorder = recorder;
  const on = recorder !== null;
  $("record").classList.toggle("live", on);
  $("record").setAttribute("aria-label", on ? "Send the recording" : "Record");
  $("record").querySelector("use").setAttribute("href", on ? "#up" : "#mic");
  $("record").title = on ? "Send the recording" : "Record";
  $("recording").replaceChildren(on ? "0.0 s " : "", h("span", {}, "press again to send, Esc to discard"));
  $("recording").hidden = !on;
  for (const id of ["text", "choose", "send"]) $(id).hidden = on;
}

function wireComposer() {
  $("record").onclick = toggleRecording;
  $("stop").onclick = () => state.running?.abort();
  $("composer").onsubmit = (event) => {
    event.preventDefault();
    const text = $("text").value.trim();
    if (!text || state.running) return;
    $("text").value = "";
    $("send").classList.remove("ready");
    say({ text });
  };
  $("text").oninput = () => $("send").classList.toggle("ready", $("text").value.trim() !== "");
  $("text").onkeydown = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      $("composer").requestSubmit();
    }
  };
  $("file").onchange = async () => {
    const [file] = $("file").files;
    await sayFile(file);
    $("file").value = "";
  };
  document.onkeydown = (event) => {
    if (event.key !== "Escape") return;
    if (state.recorder) {
      state.recorder.drop();
      live(null);
    } else state.running?.abort();
  };
  $("key").onchange = () => { api.setKey($("key").value); if (!state.about) begin(); };
}

function wireDrop() {
  let depth = 0;
  const show = (by) => { depth = Math.max(0, depth + by); $("drop").hidden = depth === 0; };
  document.ondragenter = (event) => { event.preventDefault(); show(1); };
  document.ondragleave = () => show(-1);
  document.ondragover = (event) => event.preventDefault();
  document.ondrop = (event) => {
    event.preventDefault();
    show(-depth);
    sayFile(event.dataTransfer.files[0]);
  };
}

// ---------------------------------------------------------------- examples

function examples(clips, then) {
  const groups = Map.groupBy(clips, (one) => one.part);
  return [...groups].map(([part, some]) => h("div", {}, h("h3", {}, part), h("ul", {}, ...some.map((one) =>
    h("li", {}, h("button.example", { type: "button", onclick: () => then(one) },
      h("span", {}, one.text), h("span.p", {}, one.tone)))))));
}

async function sayClip(one) {
  if ($("menu").matches(":popover-open")) $("menu").hidePopover();
  await say({ speech: await clip(one) });
}

function newTalk() {
  state.running?.abort();
  state.talk = new Talk(state.about?.model, $("system").value.trim());
  $("turns").replaceChildren();
  $("start").hidden = false;
  $("more").hidden = $("new").hidden = true;
  notice("");
}

async function begin() {
  try {
    state.about = await api.about();
  } catch (error) {
    $("turns").replaceChildren(h("li", {}, complaint(error.message)));
    return;
  }
  const { model, limits, system, clips } = state.about;
  $("model").textContent = model === "dualslm" ? "" : model;
  $("limits").textContent = limits;
  $("system").value = system ?? "";
  $("examples").replaceChildren(...examples(clips, sayClip));
  $("menu").replaceChildren(h("div.examples", {}, ...examples(clips, sayClip)));
  newTalk();
}

wireComposer();
wireDrop();
$("new").onclick = () => { newTalk(); $("record").focus(); };
begin();
