// One turn of the conversation: what was said, its words and voice, its replies, and the same words in another tone.

import * as api from "./api.js";
import { complaint, gauges, h, player, times, tint } from "./dom.js";
import { take } from "./sound.js";
import { audio } from "./talk.js";

/** Shows a turn; `node.begin()` asks for what was heard and for the first reply. */
export function showTurn(turn, page) {
  const replies = h("div.replies", {});
  const below = h("div", {});
  const node = h("li.turn", { tabIndex: -1 }, turn.speech ? spoken(turn) : h("div.said.typed", {}, turn.text), replies, below);
  turn.nodes = { node, replies, below };
  node.begin = async () => {
    let hearing = null;
    const listen = () => (hearing ??= turn.speech ? hear(turn, page) : Promise.resolve());
    const went = await answer(turn, page, null, listen);
    if (!turn.speech) return;
    if (went) await listen();
    else turn.heardNode.hidden = true;
    if (turn.deaf) turn.heardNode.replaceChildren(complaint(turn.deaf));
    if (went) below.replaceChildren(acts(turn, page));
  };
  return node;
}

function spoken(turn) {
  turn.player = player(turn.speech);
  const wait = () => h("span.wait", {}, "listening");
  turn.heardNode = h("div.heard", {},
    h("div", {}, h("h2", {}, h("em.l", {}, "Words"), h("span", {}, " from L alone")), h("p.words", {}, wait())),
    h("div", {}, h("h2", {}, h("em.p", {}, "Tone"), h("span", {}, " from P alone")), h("div.tone", {}, wait())));
  const shown = turn.speech.bars ? turn.player : h("p.name", {}, turn.speech.name);
  return h("div.said", {}, shown, turn.heardNode);
}

// ---------------------------------------------------------------- what was heard

/** Asked once the reply has begun, which it would otherwise keep waiting. */
async function hear(turn, page) {
  try {
    turn.heard = await api.hear({ model: page.about.model, input_audio: audio(turn.speech) });
  } catch (error) {
    turn.deaf = error.message;
    return;
  }
  turn.heardNode.querySelector(".words").replaceChildren(turn.heard.words || h("span.wait", {}, "no words"));
  turn.heardNode.querySelector(".tone").replaceChildren(gauges(turn.heard.attributes));
}

// ---------------------------------------------------------------- replies

/** Streams one more reply to a turn, in a tone; true where something was said. `onFirst` is called when it begins. */
async function answer(turn, page, tone, onFirst = () => {}) {
  const channels = page.channels();
  const reply = { text: "", tone, channels, times: null };
  const text = h("p.answer", { "aria-live": "polite", "aria-busy": "true" });
  const line = h("div.reply", {}, how(reply), text);
  turn.nodes.replies.append(line);
  const end = () => turn.panel?.hidden === false ? turn.panel : line;
  end().scrollIntoView({ block: "nearest" });
  let went = true;
  await page.run(async (signal) => {
    try {
      const found = await api.reply(page.talk.request(turn, tone, channels), signal, (piece) => {
        onFirst();
        reply.text += piece;
        following(end(), () => (text.textContent = reply.text));
      });
      reply.times = found;
      following(end(), () => line.append(times(found)));
    } catch (error) {
      if (error.name === "AbortError" && reply.text) line.append(h("p.meta", {}, "stopped; the conversation keeps what was said"));
      else went = failed(turn, page, line, error);
    }
  });
  text.setAttribute("aria-busy", "false");
  if (went) keep(turn, page, reply, line, text);
  return went;
}

/** Changes something above the end of a node; whoever saw its end still sees it. */
function following(node, change) {
  const seen = node.getBoundingClientRect().bottom < window.innerHeight;
  change();
  if (seen) node.scrollIntoView({ block: "nearest" });
}

function failed(turn, page, line, error) {
  const stopped = error.name === "AbortError";
  line.replaceChildren(stopped ? h("p.meta", {}, "stopped before a word was said") : complaint(error.message));
  if (!turn.replies.length) page.forget(turn);
  return false;
}

function how({ tone, channels }) {
  const some = [];
  if (tone) some.push(tone.name);
  if (!channels.para) some.push("without the tone");
  if (!channels.ling) some.push("without the words");
  return some.length ? h("p.how", {}, some.join(", ")) : null;
}

/** Files a reply. Where there are several, the conversation goes on from the chosen one. */
function keep(turn, page, reply, line, text) {
  turn.replies.push(reply);
  Object.assign(reply, { line, text_node: text });
  if (turn.replies.length < 2) return;
  turn.nodes.replies.classList.add("several");
  turn.replies.forEach((one, at) => {
    if (one.radio) return;
    one.radio = h("input", { type: "radio", checked: at === turn.kept, onchange: () => (turn.kept = at) });
    one.radio.name = turn.group ??= `turn-${crypto.randomUUID?.() ?? Math.random()}`;
    one.radio.title = "the conversation goes on from this reply";
    one.radio.setAttribute("aria-label", "The conversation goes on from this reply");
    if (!one.line.querySelector(".how")) one.line.prepend(h("p.how", {}, "as it was said"));
    one.line.prepend(one.radio);
  });
}

// ---------------------------------------------------------------- what can be done with a turn

function acts(turn, page) {
  const panel = (turn.panel = tones(turn, page));
  panel.hidden = true;
  const open = h("button.chip", { type: "button", "aria-expanded": "false" }, "Same words, another tone");
  open.onclick = () => {
    panel.hidden = !panel.hidden;
    open.setAttribute("aria-expanded", String(!panel.hidden));
    if (!panel.hidden) panel.scrollIntoView({ block: "nearest" });
  };
  const weigh = h("button.chip", { type: "button" }, "What decided the reply");
  weigh.onclick = () => rests(turn, page, weigh);
  const away = h("span.wait", {}, "The LLM runs elsewhere: how sure it is, and what a reply rests on, is not known here.");
  return h("div", {}, h("div.acts", {}, open, page.about.likelihoods ? weigh : away), panel);
}

async function rests(turn, page, button) {
  button.disabled = true;
  try {
    for (const reply of turn.replies.filter((one) => !one.weighed)) {
      const found = await api.weigh(page.talk.answered(turn, reply));
      reply.weighed = true;
      reply.text_node.after(tint(reply.text_node, found));
      if (reply === turn.replies[turn.kept]) turn.player.weigh(found.pieces);
    }
    button.disabled = false;
  } catch (error) {
    button.replaceWith(complaint(error.message));
  }
}

function tones(turn, page) {
  const again = async (tone) => {
    if (page.busy()) return page.notice("A reply is growing: stop it first, or wait.");
    page.notice("");
    return answer(turn, page, tone);
  };
  const captions = Object.entries(turn.heard?.captions ?? {});
  const chips = captions.map(([value, caption]) =>
    h("button.chip", { type: "button", onclick: () => again({ caption, name: `as if it sounded ${value}` }) }, value));
  return h("div.tones", { role: "group", "aria-label": "Another tone" },
    h("p", {}, "The words stay, P is replaced. How shall it sound?"),
    chips.length ? h("div.chips", {}, ...chips) : null,
    inWords(turn, again), ofClip(turn, page, again));
}

function inWords(turn, again) {
  const field = h("input", { type: "text", value: turn.heard?.caption ?? "", required: true });
  field.id = id();
  const form = h("form", {}, h("label", { htmlFor: field.id }, "In words"), field, h("button.chip", { type: "submit" }, "Answer"));
  form.onsubmit = (event) => {
    event.preventDefault();
    again({ caption: field.value.trim(), name: `in the tone “${field.value.trim()}”` });
  };
  return form;
}

/** P of another recording: an example, an earlier turn, or a file. */
function ofClip(turn, page, again) {
  const earlier = page.talk.turns.filter((one) => one !== turn && one.speech);
  const list = h("select", {}, ...page.about.clips.map((one, at) => h("option", { value: `clip ${at}` }, `${one.tone}: ${one.text}`)),
    ...earlier.map((one, at) => h("option", { value: `turn ${at}` }, `earlier: ${one.heard?.words ?? one.speech.name}`)),
    h("option", { value: "file" }, "a file …"));
  list.id = id();
  const file = h("input", { type: "file", accept: "audio/*", hidden: true });
  const use = (speech, name) => again({ speech, name: `in the tone of ${name}` });
  file.onchange = async () => use(await take(file.files[0], file.files[0].name), file.files[0].name);
  const form = h("form", {}, h("label", { htmlFor: list.id }, "As in a clip"), list, h("button.chip", { type: "submit" }, "Answer"), file);
  form.onsubmit = async (event) => {
    event.preventDefault();
    const [kind, at] = list.value.split(" ");
    if (kind === "file") return file.click();
    if (kind === "turn") return use(earlier[at].speech, "an earlier turn");
    const one = page.about.clips[at];
    return use(await page.clip(one), `the clip “${one.text}” (${one.tone})`);
  };
  return form;
}

let count = 0;
const id = () => `field-${++count}`;
