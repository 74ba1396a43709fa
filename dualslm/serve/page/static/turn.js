// One turn of the conversation: what was said, its words and voice, its replies, and what can be done with it.

import * as api from "./api.js";
import { complaint, details, editor, gauges, h, player, tint } from "./dom.js";
import { copy } from "./share.js";
import { cut } from "./sound.js";
import { audio } from "./talk.js";
import { tones } from "./tones.js";

const ANOTHER = { temperature: 0.7, top_p: 0.95 }; // the likeliest reply would be the same one again

/** Shows a turn; `node.begin()` asks for what was heard and for the first reply, `node.restore()` shows what is known. */
export function showTurn(turn, page) {
  const replies = h("div.replies", {});
  const below = h("div.below", {});
  const node = h("li.turn", { tabIndex: -1 }, turn.speech ? spoken(turn) : h("div.said.typed", {}, turn.text), replies, below);
  turn.nodes = { node, replies, below };
  node.begin = async () => {
    let hearing = null;
    const listen = () => (hearing ??= turn.speech ? hear(turn, page) : Promise.resolve());
    const went = await answer(turn, page, null, { onFirst: listen });
    if (went && turn.speech) await listen();
    if (turn.speech && !went) turn.heardNode.hidden = true;
    if (turn.deaf) turn.heardNode.replaceChildren(complaint(turn.deaf));
    if (went) below.replaceChildren(acts(turn, page));
    page.save();
    return went;
  };
  node.restore = () => {
    if (turn.heard) showHeard(turn);
    else if (turn.speech) turn.heardNode.hidden = true;
    if (turn.trace) turn.player.trace(turn.trace);
    const given = turn.replies;
    turn.replies = [];
    for (const reply of given) {
      const [line, text] = show(reply, turn);
      text.textContent = reply.text;
      text.setAttribute("aria-busy", "false");
      finish(reply, turn, line);
      keep(turn, page, reply, line, text);
    }
    below.replaceChildren(acts(turn, page));
  };
  return node;
}

function spoken(turn) {
  turn.player = player(turn.speech);
  const wait = () => h("span.wait", {}, "listening");
  turn.heardNode = h("div.heard", {},
    h("div", {}, h("h2", {}, h("em.l", {}, "Words")), h("p.words", {}, wait())),
    h("div", {}, h("h2", {}, h("em.p", {}, "Tone")), h("div.tone", {}, wait())));
  const shown = turn.speech.bars ? turn.player : h("p.name", {}, turn.speech.name);
  return h("div.said", {}, shown, turn.heardNode);
}

// ---------------------------------------------------------------- what was heard

/** Asked once the reply has begun, which it would otherwise keep waiting. */
async function hear(turn, page) {
  const asked = { model: page.about.model, input_audio: audio(turn.speech) };
  try {
    turn.heard = await api.hear(asked);
  } catch (error) {
    turn.deaf = error.message;
    return;
  }
  showHeard(turn);
  // the picture alone waits for it
  api.trace(asked).then(({ windows }) => {
    turn.trace = windows;
    turn.player.trace(windows);
    return page.save();
  }).catch(() => {});
}

function showHeard(turn) {
  turn.heardNode.querySelector(".words").replaceChildren(turn.heard.words || h("span.wait", {}, "no words"));
  turn.heardNode.querySelector(".tone").replaceChildren(gauges(turn.heard.attributes));
}

// ---------------------------------------------------------------- replies

/** Streams one more reply to a turn, in a tone; true where something was said. */
async function answer(turn, page, tone, { onFirst = () => {}, another = false } = {}) {
  const channels = page.channels();
  const reply = { text: "", tone, channels, times: null, ended: null, another };
  const [line, text] = show(reply, turn);
  const end = () => turn.panel?.hidden === false ? turn.panel : line;
  end().scrollIntoView({ block: "nearest" });
  let went = true;
  await page.run(turn, async (signal, reading) => {
    // what was heard of it is the reply, wherever it is stopped
    reading?.whenCut((said) => {
      reply.ended = "interrupted";
      reply.text = said;
      text.textContent = said;
      finish(reply, turn, line);
      page.save();
    });
    const asked = page.talk.request(turn, tone, channels);
    if (another) Object.assign(asked, ANOTHER, { seed: Math.floor(2 ** 31 * Math.random()) });
    try {
      reply.times = await api.reply(asked, signal, (piece) => {
        if (signal.aborted) return;
        onFirst();
        reply.text += piece;
        reading?.add(piece);
        following(end(), () => (text.textContent = reply.text));
      });
      reading?.end();
    } catch (error) {
      if (error.name === "AbortError" && reply.text) reply.ended ??= "stopped";
      else went = failed(turn, page, line, error);
    }
    following(end(), () => { if (went) finish(reply, turn, line); });
  });
  text.setAttribute("aria-busy", "false");
  if (went) keep(turn, page, reply, line, text);
  return went;
}

function show(reply, turn) {
  const text = h("p.answer", { "aria-live": "polite", "aria-busy": "true" });
  const line = h("div.reply", {}, how(reply), text);
  turn.nodes.replies.append(line);
  return [line, text];
}

/** What stands under a reply: whether it was stopped, and what it took. */
function finish(reply, turn, line) {
  line.querySelectorAll(".meta").forEach((node) => node.remove());
  if (reply.ended) line.append(h("p.meta", {}, `${reply.ended}; the conversation keeps what was said`));
  if (reply.times) line.append(details(reply.times, Boolean(turn.speech)));
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
  turn.unanswered = stopped && !turn.replies.length;
  turn.refused = error.code;
  if (!turn.replies.length) page.forget(turn);
  return false;
}

function how({ tone, channels, another }) {
  const some = [];
  if (tone) some.push(tone.name);
  if (another) some.push("another try");
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
    one.radio = h("input", { type: "radio", checked: at === turn.kept, onchange: () => { turn.kept = at; page.save(); } });
    one.radio.name = turn.group ??= `turn-${crypto.randomUUID?.() ?? Math.random()}`;
    one.radio.title = "the conversation goes on from this reply";
    one.radio.setAttribute("aria-label", "The conversation goes on from this reply");
    if (!one.line.querySelector(".how")) one.line.prepend(h("p.how", {}, "as it was said"));
    one.line.prepend(one.radio);
  });
  page.save();
}

// ---------------------------------------------------------------- what can be done with a turn

function acts(turn, page) {
  const again = async (tone, more) => {
    page.notice("");
    await page.hush();
    await answer(turn, page, tone, more);
    page.save();
  };
  const panel = turn.speech ? (turn.panel = tones(turn, page, again)) : null;
  const row = h("div.acts", {});
  if (panel) row.append(opens(panel));
  if (turn.speech && page.about.likelihoods) row.append(weighs(turn, page));
  row.append(
    h("button.chip", { type: "button", onclick: () => again(turn.replies[turn.kept]?.tone ?? null, { another: true }) }, "Try again"),
    copies(turn), edits(turn, page));
  if (turn.speech && !page.about.likelihoods) row.append(h("span.wait", {}, "The LLM runs elsewhere: how sure it is, and what a reply rests on, is not known here."));
  return h("div", {}, row, panel);
}

function opens(panel) {
  panel.hidden = true;
  const open = h("button.chip", { type: "button", "aria-expanded": "false" }, "Same words, another tone");
  open.onclick = () => {
    panel.hidden = !panel.hidden;
    open.setAttribute("aria-expanded", String(!panel.hidden));
    if (!panel.hidden) panel.scrollIntoView({ block: "nearest" });
  };
  return open;
}

function weighs(turn, page) {
  const button = h("button.chip", { type: "button" }, "What decided the reply");
  button.onclick = async () => {
    button.disabled = true;
    try {
      for (const reply of turn.replies.filter((one) => one.weighed !== one.text)) {
        const found = await api.weigh(page.talk.answered(turn, reply));
        reply.weighed = reply.text;
        reply.line.querySelector(".rests")?.remove();
        reply.text_node.after(tint(reply.text_node, found));
        if (reply === turn.replies[turn.kept]) turn.player.weigh(found.pieces);
      }
      button.disabled = false;
    } catch (error) {
      button.replaceWith(complaint(error.message));
    }
  };
  return button;
}

function copies(turn) {
  const button = h("button.chip", { type: "button" }, "Copy");
  button.onclick = async () => {
    await copy(turn.replies[turn.kept].text);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  };
  return button;
}

/** Says a turn anew, trimmed or in other words; what came after it no longer fits and leaves the conversation. */
function edits(turn, page) {
  const button = h("button.chip", { type: "button" }, turn.speech ? "Trim" : "Edit");
  button.onclick = async () => {
    const later = page.last(turn) ? null : h("p.wait", {}, "What came after it leaves the conversation.");
    const saidNode = turn.nodes.node.querySelector(".said");
    const close = (form) => { form.replaceWith(saidNode); button.disabled = false; };
    const anew = async (made) => { await page.rewind(turn); await page.say(made); };
    button.disabled = true;
    if (turn.speech) {
      const form = h("div.said", {}, editor(turn.speech, ["Say it trimmed", "Cancel"],
        async (from, to) => anew({ speech: await cut(turn.speech, from, to) }), () => close(form)), later);
      saidNode.replaceWith(form);
      return;
    }
    const field = h("textarea", { value: turn.text, rows: 2, "aria-label": "What you say instead" });
    const form = h("form.said.edit", {}, field, later, h("div.row", {}, h("button.chip.go", { type: "submit" }, "Say it"),
      h("button.chip", { type: "button", onclick: () => close(form) }, "Cancel")));
    form.onsubmit = (event) => {
      event.preventDefault();
      const text = field.value.trim();
      if (text) anew({ text });
    };
    saidNode.replaceWith(form);
    field.focus();
  };
  return button;
}
