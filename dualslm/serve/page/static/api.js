// What the page asks of its server: replies through the same endpoint that any OpenAI client uses, and what was heard.

let key = "";

export function setKey(text) {
  key = text.trim();
}

/** A mistake that the user can mend, in the server's words. */
export class Refused extends Error {
  constructor(message, code) {
    super(message);
    this.code = code;
  }
}

async function ask(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  let answer;
  try {
    answer = await fetch(path, { method: body ? "POST" : "GET", headers, signal, body: body && JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("the server does not answer; see whether dualslm serve still runs");
  }
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

async function refusal(answer) {
  if (answer.status === 401) return new Refused("the server asks for an API key; put it in under Settings", "key");
  try {
    const { error, detail } = await answer.json();
    return new Refused(error?.message ?? String(detail), error?.code);
  } catch {
    return new Refused(`the server answered ${answer.status} ${answer.statusText}`);
  }
}

/** The model's name, its system text, the example clips, and whether the server can tell likelihoods. */
export async function about() {
  const [answer, clips] = await Promise.all([ask("v1/about"), ask("page/examples")]);
  return { ...(await answer.json()), clips: await clips.json() };
}

/** The words of a recording from L alone, the attributes and their degrees from P alone. */
export const hear = async (body, signal) => (await ask("v1/heard", body, signal)).json();

/** How a recording sounds from moment to moment: `windows` with their emotion. */
export const trace = async (body, signal) => (await ask("v1/trace", body, signal)).json();

/** What the last reply of a conversation rests on. */
export const weigh = async (body) => (await ask("v1/influence", body)).json();

/** Streams the reply to a conversation: `onPiece` gets the text as it grows. Gives the server's times, where it tells them. */
export async function reply(body, signal, onPiece) {
  const began = performance.now();
  const whole = { ...body, stream: true, stream_options: { include_usage: true } };
  const answer = await ask("v1/chat/completions", whole, signal);
  const found = { first_token: null };
  for await (const event of events(answer.body)) {
    if (event.error) throw new Refused(event.error.message);
    const piece = event.choices?.[0]?.delta?.content;
    if (piece) {
      found.first_token ??= (performance.now() - began) / 1000;
      onPiece(piece);
    }
    if (event.usage) Object.assign(found, spent(event));
  }
  return found;
}

/** Times in s and counts as the last event tells them. */
function spent({ usage, seconds, left_out_turns }) {
  const { encode, first_token, whole } = seconds;
  return {
    encode, first_token, prefill: first_token - encode, decode: whole - first_token, left_out: left_out_turns,
    tokens: usage.completion_tokens, positions: usage.prompt_tokens, reused: usage.prompt_tokens_details.cached_tokens,
  };
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
    }
  }
}
