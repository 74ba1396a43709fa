// A conversation to take away: one web page with its recordings inside, which any browser plays, and which comes back to
// life when it is dropped on this page.

import { h } from "./dom.js";

const STYLE = "body{font:17px/1.5 system-ui,sans-serif;max-width:42rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}" +
  "audio{width:100%}.said{margin-top:2rem}.reply{font-size:1.2em;margin:.4rem 0}small{opacity:.7}";

/** The conversation as a file. */
export function asFile(talk) {
  const page = document.implementation.createHTMLDocument("A conversation with dualslm");
  const put = (where, tag, text, props = {}) => {
    const node = Object.assign(page.createElement(tag), props);
    node.textContent = text;
    where.append(node);
    return node;
  };
  page.head.prepend(Object.assign(page.createElement("meta"), { name: "viewport", content: "width=device-width" }));
  const charset = page.createElement("meta");
  charset.setAttribute("charset", "utf-8");
  page.head.prepend(charset);
  put(page.head, "style", STYLE);
  put(page.body, "h1", "A conversation with dualslm");
  for (const turn of talk.plain().turns) {
    const said = put(page.body, "div", "", { className: "said" });
    if (turn.speech) {
      put(said, "audio", "", { controls: true, src: `data:${kind(turn.speech.data)};base64,${turn.speech.data}` });
      const voice = turn.heard?.attributes?.emotion?.value;
      if (turn.heard) put(said, "div", `“${turn.heard.words}”${voice ? ` (${voice})` : ""}`);
    } else put(said, "div", turn.text);
    turn.replies.forEach((reply, at) => {
      const line = put(page.body, "p", reply.text, { className: "reply" });
      if (turn.replies.length > 1) line.prepend(put(line, "small", `${at === turn.kept ? "→ " : ""}${reply.tone?.name ?? "as it was said"}: `));
    });
  }
  // "<" would end the element, or begin a comment in it
  const data = put(page.body, "script", JSON.stringify(talk.plain()).replaceAll("<", "\\u003c"), { type: "application/json", id: "talk" });
  data.hidden = true;
  const html = `<!doctype html>\n${page.documentElement.outerHTML}`;
  const day = new Date().toISOString().slice(0, 16).replace("T", " ").replace(":", ".");
  return new File([html], `conversation ${day}.html`, { type: "text/html" });
}

const kind = (data) => (data.startsWith("UklGR") ? "audio/wav" : data.startsWith("ZkxhQ") ? "audio/flac" : data.startsWith("T2dnU") ? "audio/ogg" : "audio/mpeg");

/** What a file of `asFile` holds; null for any other file. */
export async function fromFile(file) {
  if (!/\.html?$/i.test(file.name ?? "")) return null;
  const page = new DOMParser().parseFromString(await file.text(), "text/html"); // parsed, never run
  try {
    return JSON.parse(page.getElementById("talk").textContent);
  } catch {
    return null;
  }
}

export function download(file) {
  const url = URL.createObjectURL(file);
  h("a", { href: url, download: file.name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

export const canShare = (file) => Boolean(navigator.canShare?.({ files: [file] }));

/** Puts text on the clipboard, also where the page came over plain http, which has no clipboard of its own. */
export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = h("textarea", { value: text });
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  return field.remove();
}
