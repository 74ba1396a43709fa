// The first screen: one sentence in three tones, and the three replies, side by side, unasked.

import * as api from "./api.js";
import { emotionColour, h, player } from "./dom.js";
import { Talk } from "./talk.js";

/** Shows the clips that say the same words, and asks for the reply to each; `stop` ends what still grows. */
export function threeTones(clips, page, onSay) {
  const stopping = new AbortController();
  const cards = clips.map((one) => card(one, page, onSay, stopping.signal));
  const all = h("button.chip", { type: "button" }, "Play all three");
  all.onclick = async () => {
    for (const one of cards) await (await one.player)?.play();
  };
  const node = h("section.tones3", { "aria-label": "One sentence, three tones" },
    h("div.line", {}, h("p.sentence", {}, `“${clips[0].text}”`), all), h("div.cards", {}, ...cards.map((one) => one.node)));
  return { node, stop: () => stopping.abort() };
}

function card(clip, page, onSay, signal) {
  const reply = h("p.told", { "aria-busy": "true" });
  const sound = h("div.sound", {});
  const node = h("article.card", { "--of": `var(${emotionColour(clip.tone)})` }, h("h3", {}, clip.tone), sound, reply,
    h("button.chip.say", { type: "button", onclick: () => onSay(clip), "aria-label": `Talk on from the ${clip.tone} one` }, "Talk on from here"));
  const loaded = page.clip(clip).then((speech) => {
    const shown = player({ ...speech, name: `the ${clip.tone} one` });
    sound.replaceChildren(shown);
    return [speech, shown];
  });
  loaded.then(async ([speech]) => {
    const turn = { speech, replies: [], kept: 0 };
    const talk = new Talk(page.about.model, page.about.system ?? "");
    talk.turns.push(turn);
    await api.reply(talk.request(turn, null, { para: true, ling: true }), signal, (piece) => reply.append(piece));
  }).catch((error) => {
    if (error.name !== "AbortError") reply.replaceChildren(h("span.wait", {}, error.message));
  }).finally(() => reply.setAttribute("aria-busy", "false"));
  return { node, player: loaded.then(([, shown]) => shown, () => null) };
}
