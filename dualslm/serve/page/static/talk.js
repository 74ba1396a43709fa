// The conversation as data: turns with their recordings and replies, and how it is put to the server, whole, each time.

/** The source of each channel, as `View.parse` reads it. */
export const view = ({ para, ling }) => `${para ? "speech" : "none"},${ling ? "speech" : "none"}`;

export class Talk {
  constructor(model, system) {
    this.model = model;
    this.system = system;
    this.turns = [];
  }

  /** The request that asks for a reply to the turn, said in a tone, read through channels. */
  request(turn, tone, channels) {
    const messages = this.system ? [{ role: "system", content: this.system }] : [];
    for (const one of this.turns.slice(0, this.turns.indexOf(turn))) {
      const kept = one.replies[one.kept];
      messages.push(said(one, kept?.tone));
      if (kept?.text) messages.push({ role: "assistant", content: kept.text });
    }
    return { model: this.model, messages: [...messages, said(turn, tone)], view: view(channels) };
  }

  /** The same request with the reply that was given, to be weighed. */
  answered(turn, reply) {
    const asked = this.request(turn, reply.tone, reply.channels);
    return { ...asked, messages: [...asked.messages, { role: "assistant", content: reply.text }] };
  }
}

export const audio = (speech) => ({ data: speech.data, format: "wav" });

/** A user message. A tone is `{ caption }` or `{ speech }`; without one P is the recording's own. */
function said(turn, tone) {
  if (!turn.speech) return { role: "user", content: turn.text };
  const part = { type: "input_audio", input_audio: audio(turn.speech) };
  if (tone?.caption) part.tone = { caption: tone.caption };
  if (tone?.speech) part.tone = audio(tone.speech);
  return { role: "user", content: [part] };
}
