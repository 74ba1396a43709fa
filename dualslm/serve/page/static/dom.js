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

const icon = (name) => svg("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, svg("use", { href: `#${name}` }));

const seconds = (value) => `${value.toFixed(1)} s`;

/** Plays a recording; the waveform is its slider. `weigh(pieces)` darkens the bars by what a reply rests on. */
export function player(speech) {
  const audio = new Audio(speech.url);
  const button = h("button", { type: "button" });
  const time = h("time", {}, seconds(speech.seconds));
  const bars = (speech.bars ?? []).map((height, at, all) =>
    svg("rect", { x: at * (100 / all.length), y: 50 - 50 * height, width: 62 / all.length, height: 100 * height, rx: 0.3 }));
  const slider = h("input", { type: "range", min: 0, max: speech.seconds, step: "any", value: 0 });
  slider.setAttribute("aria-label", `Position in ${speech.name}`);
  const wave = h("div.wave", {}, svg("svg", { viewBox: "0 0 100 100", preserveAspectRatio: "none", "aria-hidden": "true" }, ...bars), slider);
  const show = () => {
    const now = audio.currentTime;
    slider.value = now;
    slider.setAttribute("aria-valuetext", `${seconds(now)} of ${seconds(speech.seconds)}`);
    time.textContent = seconds(audio.paused && !now ? speech.seconds : now);
    const share = audio.ended ? 0 : now / speech.seconds;
    bars.forEach((bar, at) => bar.classList.toggle("played", at < share * bars.length));
  };
  const turn = () => {
    button.replaceChildren(icon(audio.paused ? "play" : "pause"));
    button.setAttribute("aria-label", `${audio.paused ? "Play" : "Pause"} ${speech.name}`);
    show();
    if (!audio.paused) requestAnimationFrame(function step() {
      show();
      if (!audio.paused) requestAnimationFrame(step);
    });
  };
  button.onclick = () => (audio.paused ? audio.play() : audio.pause());
  slider.oninput = () => { audio.currentTime = Number(slider.value); show(); };
  audio.onplay = audio.onpause = audio.onended = turn;
  turn();
  const node = h("div.player", {}, button, wave, time);
  node.weigh = (pieces) => {
    wave.classList.toggle("weighed", pieces.length > 0);
    bars.forEach((bar, at) => {
      const moment = ((at + 0.5) / bars.length) * speech.seconds;
      const piece = pieces.find(([from, to]) => from <= moment && moment < to);
      bar.style.setProperty("--heat", strength(piece?.[2] ?? 0));
    });
  };
  return node;
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

/** Puts a reply's words in the place of its text, tinted by what each rests on, and says so in a line. */
export function tint(answer, { tokens, para, ling }) {
  const words = [];
  tokens.forEach((text, at) => {
    if (!words.length || /^\s/.test(text)) words.push({ text: "", para: 0, ling: 0 });
    const word = words.at(-1);
    word.text += text;
    word.para += Math.max(0, para[at]);
    word.ling += Math.max(0, ling[at]);
  });
  answer.replaceChildren(...words.flatMap(({ text, para, ling }) => {
    const [lead, rest] = [text.match(/^\s*/)[0], text.trimStart()];
    const title = `less likely without the tone by ${para.toFixed(1)}, without the words by ${ling.toFixed(1)} nats`;
    return [lead, h("b", { "--wp": strength(para), "--wl": strength(ling), title }, rest)];
  }));
  const most = (channel) =>
    words.filter((word) => word[channel] > 1).toSorted((a, b) => b[channel] - a[channel]).slice(0, 6)
      .toSorted((a, b) => words.indexOf(a) - words.indexOf(b))
      .map((word) => word.text.trim().replace(/[.,!?;:]+$/, "")).join(", ");
  const line = (kind, name, found) => h("p", {}, h(`em.${kind}`, {}, name), " ", found || "nothing");
  return h("div.rests", {}, line("p", "decided by the tone:", most("para")), line("l", "decided by the words:", most("ling")));
}

/** The server's words about what is wrong: "wrong: got this; do that". */
export function complaint(text) {
  const [, wrong, rest] = text.match(/^(.*?): (got .*)$/s) ?? [null, text, ""];
  return h("div.error", { role: "alert" }, h("strong", {}, wrong), rest ? h("span", {}, `${rest}.`) : null);
}

/** "encode 2 ms" and so on, of what is known. */
export function times(found) {
  const rate = found.tokens > 1 && found.decode > 0 ? (found.tokens - 1) / found.decode : null;
  const some = [
    found.encode >= 0 && `encode ${span(found.encode)}`,
    found.prefill >= 0 && `prefill ${span(found.prefill)}`,
    found.first_token !== null && `first token ${span(found.first_token)}`,
    rate && `${rate.toFixed(rate < 10 ? 1 : 0)} tokens/s`,
    found.reused > 0 && `${found.reused} of ${found.positions} positions reused`,
    found.left_out > 0 && `${found.left_out} oldest turns left out`,
  ];
  return h("p.meta", {}, ...some.filter(Boolean).map((text) => h("span", {}, text)));
}

const span = (s) => (s < 0.9995 ? `${Math.round(1000 * s)} ms` : `${s.toFixed(1)} s`);
