// Replies aloud, by the browser's own voices: sentence by sentence while the reply still grows.

const SENTENCE = /^.*?(?:[.!?…]["”’)]*\s+|[。！？]|\n+)/s;
const START_S = 4; // a browser without voices says neither yes nor no; after this it is not waited for
const LETTERS_A_SECOND = 14; // of an ordinary voice, for voices that do not say how far they are

const speech = window.speechSynthesis;
export const hasVoices = Boolean(speech);
export const voices = () => speech?.getVoices() ?? [];

/** One reply read aloud, after a promise is kept: `add` its pieces, then `end`. `said` is what was heard so far. */
export class Reading {
  constructor(voiceName, onChange, after = Promise.resolve()) {
    Object.assign(this, { voiceName, onChange, after, cut: () => {}, rest: "", before: "", open: [], ended: false, began: false, over: !speech });
    speech?.cancel();
  }

  get speaking() { return !this.over && (this.began || this.open.length > 0); }

  add(piece) {
    this.rest += piece;
    for (let found = this.rest.match(SENTENCE); found; found = this.rest.match(SENTENCE)) {
      this.rest = this.rest.slice(found[0].length);
      this.say(found[0]);
    }
  }

  end() {
    if (this.rest) this.say(this.rest);
    this.rest = "";
    this.ended = true;
    this.settle();
  }

  say(text) {
    if (this.over) return;
    if (!text.trim()) { this.before += text; return; }
    const one = new SpeechSynthesisUtterance(text.trim());
    one.voice = voices().find(({ name }) => name === this.voiceName) ?? null;
    const lead = text.length - text.trimStart().length;
    Object.assign(one, { whole: text, at: 0, since: 0 });
    one.onstart = () => { one.since = performance.now(); this.began = true; this.onChange(); };
    one.onboundary = ({ charIndex, charLength }) => (one.at = lead + charIndex + (charLength || 0));
    one.onend = () => { this.before += text; this.settle(one); };
    one.onerror = () => { this.before += text; this.broken = true; this.settle(one); };
    this.open.push(one);
    this.after.then(() => {
      if (this.over) return;
      speech.speak(one);
      setTimeout(() => { if (!this.began) { this.broken = true; this.finish(); } }, 1000 * START_S);
    });
  }

  /** Called with what was heard of the reply where somebody interrupts it. */
  whenCut(then) { this.cut = then; }

  settle(one) {
    if (this.over) return;
    this.open = this.open.filter((other) => other !== one);
    if (this.ended && !this.open.length) this.finish();
  }

  finish() {
    if (this.over) return;
    this.over = true;
    this.onChange();
  }

  /** What was heard: whole sentences, and of the present one the words so far. */
  get said() {
    const [now] = this.open;
    if (!now?.since) return this.before;
    const guess = (LETTERS_A_SECOND * (performance.now() - now.since)) / 1000;
    const part = now.whole.slice(0, now.at || guess);
    // a guess may end inside a word, which then was not said
    return this.before + (now.at || part.length === now.whole.length ? part : part.replace(/\S+$/, ""));
  }

  /** Ends it. Somebody who speaks `interrupts` it: then no more counts as said than was heard, if anything was. */
  stop(interrupts) {
    if (this.over) return;
    const said = this.began && !this.broken ? this.said.trimEnd() : "";
    this.over = true;
    speech?.cancel();
    if (interrupts && said) this.cut(said);
    this.onChange();
  }
}
