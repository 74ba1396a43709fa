// The conversation as data: turns with their recordings and replies, how it is put to the server, whole, each time, and
// how it is kept and handed on.

import { taken } from "./sound.js";

const FORMAT = 1;

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

  /** The conversation as JSON has it. */
  plain() {
    const turns = this.turns.filter((turn) => turn.replies.length).map((turn) => ({
      text: turn.text, speech: bare(turn.speech), heard: turn.heard, trace: turn.trace, kept: turn.kept,
      replies: turn.replies.map(({ text, tone, channels, times, ended, another }) => ({
        text, channels, times, ended, another, tone: tone && { ...tone, speech: bare(tone.speech) },
      })),
    }));
    return { format: FORMAT, system: this.system, turns };
  }

  /** A conversation from JSON; whatever is no conversation is refused. */
  static async of(plain, model) {
    if (plain?.format !== FORMAT || !Array.isArray(plain.turns)) throw new Error("no conversation");
    const talk = new Talk(model, String(plain.system ?? ""));
    for (const turn of plain.turns) {
      const replies = await Promise.all(turn.replies.map(async (reply) => ({
        ...reply, text: String(reply.text),
        tone: reply.tone?.speech ? { ...reply.tone, speech: await taken(reply.tone.speech) } : reply.tone,
      })));
      const speech = turn.speech ? await taken(turn.speech) : undefined;
      talk.turns.push({ ...turn, text: speech ? undefined : String(turn.text), speech, replies });
    }
    return talk;
  }
}

const bare = (speech) => speech && { name: speech.name, data: speech.data };

export const audio = (speech) => ({ data: speech.data, format: "wav" });

/** A user message. A tone is `{ caption }` or `{ speech }`; without one P is the recording's own. */
export function said(turn, tone) {
  if (!turn.speech) return { role: "user", content: turn.text };
  const part = { type: "input_audio", input_audio: audio(turn.speech) };
  if (tone?.caption) part.tone = { caption: tone.caption };
  if (tone?.speech) part.tone = audio(tone.speech);
  return { role: "user", content: [part] };
}
