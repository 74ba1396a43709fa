// The page: the composer, the conversation as it grows, the three tones of the first screen, and the examples.

import * as api from "./api.js";
import { complaint, editor, h, hush, icon } from "./dom.js";
import { threeTones } from "./hero.js";
import { Listener, LiveWave } from "./listen.js";
import { asFile, canShare, download, fromFile } from "./share.js";
import { cut, take } from "./sound.js";
import * as store from "./store.js";
import { Talk } from "./talk.js";
import { showTurn } from "./turn.js";
import { Reading, hasVoices, voices } from "./voice.js";

const $ = (id) => document.getElementById(id);
const state = { talk: new Talk("", ""), about: null, running: null, done: null, reading: null, hero: null, unanswered: null };

// ---------------------------------------------------------------- saying something

/** Adds a turn and answers it. A reply that still grows is ended: its beginning stays. `quiet`: no fuss if nobody spoke. */
async function say({ quiet = false, ...turn }) {
  if (!state.about) return notice("The server has not answered yet.");
  await page.hush();
  notice("");
  if (!state.talk.turns.length) state.talk.system = $("system").value.trim();
  Object.assign(turn, { replies: [], kept: 0 });
  state.talk.turns.push(turn);
  started(true);
  const node = add(turn);
  node.scrollIntoView({ block: "start", behavior: "smooth" });
  node.focus({ preventScroll: true });
  if (turn.played) turn.played = turn.player.play();
  const went = await node.begin();
  state.unanswered = quiet && turn.unanswered ? turn : null;
  if (!went && quiet && turn.refused === "no_speech") node.remove();
  started(state.talk.turns.length > 0 || $("turns").children.length > 0);
  return undefined;
}

function add(turn) {
  const node = showTurn(turn, page);
  $("turns").append(node);
  return node;
}

/** Shows the conversation or the first screen. */
function started(on) {
  $("start").hidden = on;
  if (on) state.hero?.stop();
  $("more").hidden = !on || !state.about?.clips.length;
  $("new").hidden = $("download").hidden = !on;
  $("share").hidden = !on || !canShare(new File([""], "talk.html", { type: "text/html" }));
}

/** What turns, recordings and the microphone may ask of the page. */
const page = {
  get about() { return state.about; },
  get talk() { return state.talk; },
  say,
  notice,
  channels: () => ({ para: $("para").checked, ling: $("ling").checked }),
  speaking: () => Boolean(state.reading?.speaking),
  last: (turn) => state.talk.turns.at(-1) === turn,
  save: () => store.save(state.talk.plain()),

  /** Runs a reply, read aloud where that is wanted; its signal is aborted by whoever stops it. */
  run(turn, work) {
    const stop = new AbortController();
    state.running = stop;
    state.reading = $("aloud").checked && !turn.silent ? new Reading(store.setting.get("voice"), refresh, turn.played) : null;
    const { reading } = state;
    state.done = (async () => {
      try {
        await work(stop.signal, reading);
      } finally {
        state.running = null;
        if (stop.signal.aborted) reading?.stop(false);
        refresh();
      }
    })();
    refresh();
    return state.done;
  },

  /** Somebody speaks, or wants to: what was heard of the reply stays, and no more. */
  interrupt() {
    hush();
    state.reading?.stop(true);
    state.running?.abort();
    return state.done;
  },

  /** Silence, before something else is answered: what is written of the reply stays. */
  hush() {
    state.reading?.stop(false);
    state.running?.abort();
    return state.done;
  },

  /** A turn that could not be answered leaves the conversation. */
  forget(turn) {
    state.talk.turns = state.talk.turns.filter((one) => one !== turn);
  },

  /** Takes a turn and all after it out of the conversation. */
  async rewind(turn) {
    await page.hush();
    for (const one of state.talk.turns.splice(state.talk.turns.indexOf(turn))) one.nodes.node.remove();
    await page.save();
  },

  /** The turn that was interrupted before a word was said, taken out to be said with what followed. */
  async takeUnanswered() {
    await state.done;
    const turn = state.unanswered;
    state.unanswered = null;
    turn?.nodes.node.remove();
    return turn;
  },

  async clip({ file }) {
    const answer = await fetch(`page/clips/${file}`);
    return take(await answer.blob(), file);
  },
};

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

function refresh() {
  const busy = state.running !== null || page.speaking();
  $("stop").hidden = !busy || listener.mode === "recording";
  $("send").hidden = busy || listener.mode !== "off";
}

// ---------------------------------------------------------------- files and recordings that wait

/** One recording is said at once; several wait, to be listened to, trimmed and said in turn; a conversation comes back. */
async function takeFiles(files) {
  const some = [...files];
  const [first] = some;
  if (!first) return;
  const saved = some.length === 1 ? await fromFile(first) : null;
  if (saved) await comeBack(saved);
  else if (some.length === 1) await say({ speech: await take(first, first.name || "the recording") });
  else for (const file of some) wait(await take(file, file.name || "a recording"));
}

/** Puts a recording aside, to be listened to before it is said. */
function wait(speech) {
  const item = h("li", {});
  const done = () => { item.remove(); $("tray").hidden = !$("waiting").children.length; $("all").hidden = $("waiting").children.length < 2; };
  item.say = async (from = 0, to = speech.seconds, more = {}) => {
    done();
    const whole = from <= 0 && to >= speech.seconds;
    await say({ speech: whole ? speech : await cut(speech, from, to), ...more });
  };
  item.append(editor(speech, ["Say it", "Discard"], item.say, done));
  $("waiting").append(item);
  $("tray").hidden = false;
  $("all").hidden = $("waiting").children.length < 2;
  item.scrollIntoView({ block: "nearest" });
}

async function sayAll() {
  const items = [...$("waiting").children];
  for (const item of items) {
    const [from, to] = [...item.querySelectorAll(".ends input")].map((field) => Number(field.value));
    // read aloud one over the other they could not be understood
    await item.say(from, to, { silent: item !== items.at(-1) });
  }
}

async function comeBack(saved) {
  if (state.talk.turns.length) return notice("Begin a new conversation first; then drop this one again.");
  try {
    state.talk = await Talk.of(saved, state.about.model);
  } catch {
    return notice("This file holds no conversation.");
  }
  for (const turn of state.talk.turns) add(turn).restore();
  started(state.talk.turns.length > 0);
  return page.save();
}

// ---------------------------------------------------------------- the composer

const MODES = { recording: "press to send, or let go", waiting: "listening, speak whenever you like", hearing: "hearing you" };
const wave = new LiveWave($("live"));
const listener = new Listener(page, wave, showListening);

function showListening() {
  const { mode, handsFree, seconds } = listener;
  const on = mode !== "off";
  const button = $("record");
  const [label, drawn] = handsFree ? ["Stop listening", "square"] : on ? ["Send the recording", "up"] : ["Record", "mic"];
  button.classList.toggle("live", on);
  if (button.title !== label) {
    button.title = label;
    button.setAttribute("aria-label", label);
    button.replaceChildren(icon(drawn));
  }
  $("time").textContent = mode === "waiting" ? "" : `${seconds.toFixed(1)} s `;
  if ($("mode").textContent !== (MODES[mode] ?? "")) $("mode").textContent = MODES[mode] ?? "";
  $("recording").hidden = !on;
  for (const id of ["text", "choose"]) $(id).hidden = on;
  for (const id of ["discard", "listen"]) $(id).hidden = mode !== "recording";
  $("hands").setAttribute("aria-pressed", String(handsFree));
  refresh();
}

function wireMicrophone() {
  const button = $("record");
  button.onpointerdown = (event) => {
    if (event.button !== 0) return;
    button.setPointerCapture(event.pointerId);
    listener.press(event.timeStamp);
  };
  button.onpointerup = button.onpointercancel = (event) => listener.release(event.timeStamp);
  button.oncontextmenu = (event) => event.preventDefault(); // a long touch asks for no menu here
  button.onclick = (event) => { if (event.detail === 0) listener.press(event.timeStamp); }; // Enter, and whoever clicks without a pointer
  $("discard").onclick = () => { listener.stop(); button.focus(); };
  $("listen").onclick = async () => {
    const speech = await listener.recorded();
    if (speech) wait(speech);
  };
  $("hands").onclick = () => listener.toggleHandsFree();
  const talks = ({ code, target }) =>
    code === "Space" && !target.closest?.("input, textarea, select, button:not(#record), summary, a, [contenteditable]");
  document.addEventListener("keydown", (event) => {
    if (!talks(event)) return;
    event.preventDefault(); // neither scroll nor click
    if (!event.repeat) listener.press(event.timeStamp);
  });
  document.addEventListener("keyup", (event) => {
    if (!talks(event)) return;
    event.preventDefault();
    listener.release(event.timeStamp);
  });
}

function wireComposer() {
  $("stop").onclick = () => page.interrupt();
  $("composer").onsubmit = (event) => {
    event.preventDefault();
    const text = $("text").value.trim();
    if (!text) return;
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
    await takeFiles($("file").files);
    $("file").value = "";
  };
  $("all").onclick = sayAll;
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.target.closest?.("[popover]")) return;
    if (listener.mode !== "off") listener.stop();
    else page.interrupt();
  });
  $("key").onchange = () => { api.setKey($("key").value); if (!state.about) begin(); };
  // what is scrolled to must not come to lie behind the composer
  new ResizeObserver(() => document.documentElement.style.setProperty("--composer", `${$("say").offsetHeight}px`)).observe($("say"));
}

function wireVoice() {
  $("aloud").checked = hasVoices && store.setting.get("aloud", "yes") === "yes";
  $("aloud").disabled = !hasVoices;
  $("aloud").onchange = () => {
    store.setting.set("aloud", $("aloud").checked ? "yes" : "no");
    if (!$("aloud").checked) state.reading?.stop(false);
  };
  const list = () => {
    $("voice").replaceChildren(h("option", { value: "" }, "the browser's own choice"),
      ...voices().map(({ name, lang }) => h("option", { value: name, selected: name === store.setting.get("voice") }, `${name} (${lang})`)));
  };
  list();
  window.speechSynthesis?.addEventListener?.("voiceschanged", list);
  $("voice").onchange = () => store.setting.set("voice", $("voice").value);
  window.addEventListener("pagehide", () => window.speechSynthesis?.cancel());
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
    takeFiles(event.dataTransfer.files);
  };
}

function wireTalk() {
  $("new").onclick = async () => {
    await newTalk();
    $("record").focus();
  };
  $("download").onclick = () => download(asFile(state.talk));
  $("share").onclick = () => navigator.share({ files: [asFile(state.talk)] }).catch(() => {}); // closed again
}

// ---------------------------------------------------------------- examples

function examples(clips, then) {
  const groups = new Map();
  for (const one of clips) groups.set(one.part, [...groups.get(one.part) ?? [], one]);
  return [...groups].map(([part, some]) => h("div", {}, h("h3", {}, part), h("ul", {}, ...some.map((one) =>
    h("li", {}, h("button.example", { type: "button", onclick: () => then(one) },
      h("span", {}, one.text), h("span.p", {}, one.tone)))))));
}

/** An example is heard while it is answered. */
async function sayClip(one) {
  if ($("menu").matches(":popover-open")) $("menu").hidePopover();
  await say({ speech: await page.clip(one), played: true });
}

/** The three clips that say the same words; none where the examples hold no such three. */
function sameWords(clips) {
  for (const { text } of clips) {
    const same = clips.filter((one) => one.text === text);
    if (same.length >= 3) return same.slice(0, 3);
  }
  return [];
}

/** Forgets the conversation, here and in the browser's store. */
async function newTalk() {
  listener.stop();
  await page.hush();
  await store.clear();
  state.talk = new Talk(state.about?.model, $("system").value.trim());
  $("turns").replaceChildren();
  $("waiting").replaceChildren();
  $("tray").hidden = true;
  notice("");
  started(false);
  showHero();
}

function showHero() {
  const clips = sameWords(state.about?.clips ?? []);
  if (!clips.length) return;
  state.hero?.stop();
  state.hero = threeTones(clips, page, sayClip);
  $("hero").replaceChildren(state.hero.node);
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
  for (const id of ["limits", "about"]) $(id).textContent = limits;
  $("system").value = system ?? "";
  const same = sameWords(clips);
  $("examples").replaceChildren(...examples(clips.filter((one) => !same.includes(one)), sayClip));
  $("menu").replaceChildren(h("h2.unseen", {}, "Examples"), h("div.examples", {}, ...examples(clips, sayClip)));
  $("turns").replaceChildren();
  const kept = await store.load();
  if (kept?.turns.length && !state.talk.turns.length) await comeBack(kept);
  if (state.talk.turns.length) return;
  state.talk = new Talk(model, $("system").value.trim());
  started(false);
  showHero();
}

wireMicrophone();
wireComposer();
wireVoice();
wireDrop();
wireTalk();
showListening();
begin();
