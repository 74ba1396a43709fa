// Small pieces of the page: elements, a player with its waveform, gauges, the tinted words of a reply.

/** An element: `h("button.quiet", { onclick }, "text", child, ...)`. */
export function h(what, props = {}, ...children) {
  const [tag, ...classes] = what.split(".");
  const node = document.createElement(tag);
  if (classes.length) node.className = classes.join(" ");
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("--")) node.style.setProperty(name, value);
    else if (name in node && !name.startsWith("aria") && name !== "list") node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const SVG = "http://www.w3.org/2000/svg";

export function svg(tag, props = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(props)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

export const icon = (name) => svg("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, svg("use", { href: `#${name}` }));

const seconds = (value) => `${value.toFixed(1)} s`;

const COLOURS = {
  neutral: "neutral", happy: "happy", sad: "sad", angry: "angry", afraid: "afraid",
  fearful: "afraid", surprised: "happy", disgusted: "angry",
};

/** Its variable in the style sheet; an emotion without a colour of its own has that of the tone. */
export const emotionColour = (emotion) => `--${COLOURS[emotion] ?? "p"}`;

let playing = null; // one at a time

/** Plays a recording; its waveform is a slider.
 *
 * `node.play()` gives a promise that is kept at its end; `node.range(from, to)` plays and shows a part alone;
 * `node.trace(windows)` draws the emotion over it; `node.weigh(pieces)` darkens the bars by what a reply rests on. */
export function player(speech) {
  const audio = new Audio(speech.url);
  const part = { from: 0, to: speech.seconds };
  const button = h("button", { type: "button" });
  const time = h("time", {}, seconds(speech.seconds));
  const bars = (speech.bars ?? []).map((height, at, all) =>
    svg("rect", { x: at * (100 / all.length), y: 50 - 50 * height, width: 62 / all.length, height: 100 * height, rx: 0.3 }));
  const moments = bars.map((_, at) => ((at + 0.5) / bars.length) * speech.seconds);
  const slider = h("input", { type: "range", min: 0, max: speech.seconds, step: "any", value: 0 });
  slider.setAttribute("aria-label", `Position in ${speech.name}`);
  const wave = h("div.wave", {}, svg("svg", { viewBox: "0 0 100 100", preserveAspectRatio: "none", "aria-hidden": "true" }, ...bars), slider);
  const show = () => {
    const now = audio.currentTime;
    slider.value = now;
    slider.setAttribute("aria-valuetext", `${seconds(now)} of ${seconds(speech.seconds)}`);
    time.textContent = seconds(audio.paused && now <= part.from ? part.to - part.from : now - part.from);
    bars.forEach((bar, at) => {
      bar.classList.toggle("played", !audio.ended && part.from <= moments[at] && moments[at] < now);
      bar.classList.toggle("outside", moments[at] < part.from || moments[at] > part.to);
    });
  };
  const turn = () => {
    button.replaceChildren(icon(audio.paused ? "play" : "pause"));
    button.setAttribute("aria-label", `${audio.paused ? "Play" : "Pause"} ${speech.name}`);
    show();
    if (!audio.paused) requestAnimationFrame(function step() {
      if (audio.currentTime >= part.to && part.to < speech.seconds) { audio.pause(); audio.currentTime = part.from; }
      show();
      if (!audio.paused) requestAnimationFrame(step);
    });
  };
  const play = () => {
    if (playing !== audio) playing?.pause();
    playing = audio;
    if (audio.currentTime < part.from || audio.currentTime >= part.to) audio.currentTime = part.from;
    const over = new Promise((resolve) => ["pause", "ended", "error"].forEach((kind) => audio.addEventListener(kind, resolve, { once: true })));
    return audio.play().then(() => over, () => undefined); // before a first click browsers may refuse: then it is only shown
  };
  button.onclick = () => (audio.paused ? play() : audio.pause());
  slider.oninput = () => { audio.currentTime = Number(slider.value); show(); };
  audio.onplay = audio.onpause = audio.onended = turn;
  turn();
  const node = h("div.player", {}, button, wave, time);
  node.play = play;
  node.pause = () => audio.pause();
  node.range = (from, to) => { Object.assign(part, { from, to }); audio.currentTime = from; show(); };
  node.trace = (windows) => {
    wave.querySelector(".trace")?.remove();
    bars.forEach((bar, at) => {
      const window = windows.findLast(({ from }) => from <= moments[at]);
      if (window?.emotion) bar.style.setProperty("--of", `var(${emotionColour(window.emotion)})`);
    });
    const changes = windows.filter(({ emotion }, at) => emotion && emotion !== windows[at - 1]?.emotion);
    wave.append(h("div.trace", {}, ...changes.map(({ from, emotion }) =>
      h("span", { "--at": from / speech.seconds, "--of": `var(${emotionColour(emotion)})` }, emotion))));
  };
  node.weigh = (pieces) => {
    wave.classList.toggle("weighed", pieces.length > 0);
    bars.forEach((bar, at) => {
      const piece = pieces.find(([from, to]) => from <= moments[at] && moments[at] < to);
      bar.style.setProperty("--heat", strength(piece?.[2] ?? 0));
    });
  };
  return node;
}

/** Stops whatever clip is playing. */
export const hush = () => playing?.pause();

/** A recording to be listened to and trimmed: `onSend(from, to)` in s, or `onDrop()`. */
export function editor(speech, [send, drop], onSend, onDrop) {
  const shown = player(speech);
  const slider = (name, value) => {
    const field = h("input", { type: "range", min: 0, max: speech.seconds, step: 0.01, value });
    return h("label.end", {}, h("span", {}, name), field);
  };
  const ends = [slider("from", 0), slider("to", speech.seconds)];
  const [from, to] = ends.map((label) => label.querySelector("input"));
  const moved = ({ target }) => {
    const least = Math.min(0.2, speech.seconds);
    if (target === from) from.value = Math.min(from.value, to.value - least);
    else to.value = Math.max(to.value, Number(from.value) + least);
    shown.range(Number(from.value), Number(to.value));
  };
  from.oninput = to.oninput = moved;
  return h("div.editor", { role: "group", "aria-label": speech.name }, shown, speech.bars ? h("div.ends", {}, ...ends) : null,
    h("div.row", {}, h("button.chip.go", { type: "button", onclick: () => { shown.pause(); onSend(Number(from.value), Number(to.value)); } }, send),
      h("button.chip", { type: "button", onclick: () => { shown.pause(); onDrop(); } }, drop)));
}

/** How strongly a loss of so many nats is shown, 0 to 1: half at 2 nats, a factor of 7. */
const strength = (nats) => (nats > 0.3 ? nats / (nats + 2) : 0);

/** One gauge for each attribute: its choices in a row, each filled as far as it is likely. */
export function gauges(attributes) {
  const rows = Object.entries(attributes).map(([name, { value, degrees }]) => {
    const shares = Object.entries(degrees ?? (value ? { [value]: 1 } : {}));
    const cells = shares.map(([choice, share]) =>
       h(`div${choice === value ? ".best" : ""}`, {
        role: "meter", "aria-label": `${name} ${choice}`, "aria-valuemin": 0, "aria-valuemax": 100,
        "aria-valuenow": Math.round(100 * share), title: `${choice}: ${percent(share)}`,
      }, choice, h("i", { "--degree": share })));
    return h("div.gauge", {}, h("dt", {}, name), h("dd", {}, cells.length ? h("div.cells", {}, ...cells) : h("span.wait", {}, "no clear answer")));
  });
  return h("dl.gauges", {}, ...rows);
}

const percent = (share) => `${share > 0.995 && share < 1 ? ">99" : share < 0.005 ? "<1" : Math.round(100 * share)} %`;

/** Puts a reply's words in the place of its text, underlined by what decided each, and says so in a line.
 *
 * A word belongs to the channel whose exchange costs it more: it would be there for the other words, or in any tone. */
export function tint(answer, { tokens, para, ling }) {
  const words = [];
  tokens.forEach((text, at) => {
    if (!words.length || /^\s/.test(text)) words.push({ text: "", para: 0, ling: 0 });
    const word = words.at(-1);
    word.text += text;
    word.para += Math.max(0, para[at]);
    word.ling += Math.max(0, ling[at]);
  });
  for (const word of words) word.by = Math.max(word.para, word.ling) <= 1 ? null : word.para > word.ling ? "para" : "ling";
  answer.replaceChildren(...words.flatMap(({ text, by, para, ling }) => {
    const [lead, rest] = [text.match(/^\s*/)[0], text.trimStart()];
    const title = `less likely in another tone by ${para.toFixed(1)}, after other words by ${ling.toFixed(1)} nats`;
    return [lead, h("b", { "--wp": by === "para" ? strength(para) : 0, "--wl": by === "ling" ? strength(ling) : 0, title }, rest)];
  }));
  const decided = (channel) =>
    words.filter(({ by }) => by === channel).toSorted((a, b) => b[channel] - a[channel]).slice(0, 6)
      .toSorted((a, b) => words.indexOf(a) - words.indexOf(b))
      .map((word) => word.text.trim().replace(/[.,!?;:]+$/, "")).join(", ");
  const line = (kind, name, found) => h("p", {}, h(`em.${kind}`, {}, name), " ", found || "nothing");
  return h("div.rests", {}, line("p", "decided by the tone:", decided("para")), line("l", "decided by the words:", decided("ling")));
}

/** The server's words about what is wrong: "wrong: got this; do that". */
export function complaint(text) {
  const [, wrong, rest] = text.match(/^(.*?): (got .*)$/s) ?? [null, text, ""];
  return h("div.error", { role: "alert" }, h("strong", {}, wrong), rest ? h("span", {}, `${rest}.`) : null);
}

/** What a reply took, in words, behind "details". */
export function details(found, spoken) {
  const rate = found.tokens > 1 && found.decode > 0 ? (found.tokens - 1) / found.decode : null;
  const heard = spoken && found.encode >= 0 ? `${span(found.encode)} to hear the recording and ` : "";
  const lines = [
    found.first_token !== null && `The answer began after ${span(found.first_token)}` +
      (found.prefill >= 0 ? `: ${heard}${span(found.prefill)} to read the conversation.` : "."),
    found.tokens && `It has ${found.tokens} tokens, which are words or parts of words${rate ? `, written at ${rate.toFixed(rate < 10 ? 1 : 0)} tokens/s` : ""}.`,
    found.positions && `The conversation takes ${found.positions} positions of the model's memory` +
      (found.reused > 0 ? `; ${found.reused} of them were remembered from before and not read again.` : "."),
    found.left_out > 0 && `It no longer fits: the ${found.left_out} oldest turns were left out.`,
    spoken && "A recording reaches the model through two channels: L carries the words, P the tone. “Words” above was read from L alone, “Tone” from P alone.",
  ];
  return h("details.meta", {}, h("summary", {}, "details"), ...lines.filter(Boolean).map((text) => h("p", {}, text)));
}

const span = (s) => (s < 0.9995 ? `${Math.round(1000 * s)} ms` : `${s.toFixed(1)} s`);
