// The same words in another tone: P is replaced by an emotion, by a description, or by the P of another recording.

import { h } from "./dom.js";
import { take } from "./sound.js";

/** The panel of a spoken turn; `again(tone)` asks for the reply in a tone. */
export function tones(turn, page, again) {
  const captions = Object.entries(turn.heard?.captions ?? {});
  const chips = captions.map(([value, caption]) =>
    h("button.chip", { type: "button", onclick: () => again({ caption, name: `as if it sounded ${value}` }) }, value));
  return h("div.tones", { role: "group", "aria-label": "Another tone" },
    h("p", {}, "The words stay as they were said. How shall they sound?"),
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
