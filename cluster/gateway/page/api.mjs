// The page's calls to its gateway. The token is kept until the tab is closed.
const TOKEN = "outrider-token";

export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const token = {
  get: () => sessionStorage.getItem(TOKEN) ?? "",
  set: (value) => (value ? sessionStorage.setItem(TOKEN, value) : sessionStorage.removeItem(TOKEN)),
};

// A response. Throws a Refusal with the gateway's message.
export async function call(path, options = {}) {
  const headers = {...(token.get() && {Authorization: `Bearer ${token.get()}`}), ...(options.body && {"Content-Type": "application/json"})};
  const response = await fetch(path, {...options, headers});
  if (response.ok) return response;
  let message = `the gateway answered ${response.status}`;
  try {
    message = (await response.json()).error.message;
  } catch { /* a proxy's answer, which is no JSON of ours */ }
  throw new Refusal(response.status, message);
}

// The data of server-sent events, up to [DONE]. Throws a Refusal if an event is an error.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let unread = "";
  for (;;) {
    const {done, value} = await reader.read();
    if (done) return;
    const blocks = (unread + value).split("\n\n");
    unread = blocks.pop();
    for (const block of blocks) {
      if (!block.startsWith("data: ") || block === "data: [DONE]") continue;
      const data = JSON.parse(block.slice(6));
      if (data.error) throw new Refusal(response.status, data.error.message);
      yield data;
    }
  }
}

// Streams one chat. Calls `onOutput` with the output after every chunk, and returns the last one.
export async function chat(request, signal, onOutput) {
  const began = performance.now();
  const body = JSON.stringify({...request, stream: true, speculation_detail: true, return_token_ids: true});
  let output = empty();
  for await (const chunk of events(await call("v1/chat/completions", {method: "POST", body, signal}))) {
    output = grown(output, chunk, (performance.now() - began) / 1000);
    onOutput(output);
  }
  if (output.finish === null) throw new Refusal(0, "the stream ended before the answer did");
  return output;
}

export const empty = () => ({pieces: [], tokenIds: [], rounds: 0, drafted: 0, accepted: 0, firstAt: null, seconds: 0, finish: null, fingerprint: ""});

// The output after adding a chunk. A piece is {text, reasoning, drafted}.
export function grown(output, chunk, seconds) {
  const [choice] = chunk.choices, more = choice?.speculation, ids = choice?.token_ids ?? [], figures = chunk.metrics?.speculative_decoding;
  return {
    pieces: more ? joined(output.pieces, more.pieces) : output.pieces,
    tokenIds: ids.length ? [...output.tokenIds, ...ids] : output.tokenIds,
    rounds: figures?.rounds ?? output.rounds + ids.length - (more?.accepted ?? 0),  // each round has one token that is not a draft
    drafted: output.drafted + (more?.drafted ?? 0),
    accepted: output.accepted + (more?.accepted ?? 0),
    firstAt: output.firstAt ?? (ids.length ? seconds : null),
    seconds,
    finish: choice?.finish_reason ?? output.finish,
    fingerprint: chunk.system_fingerprint ?? output.fingerprint,
  };
}

function joined(pieces, more) {
  const all = [...pieces];
  for (const one of more) {
    const piece = {text: one.content ?? one.reasoning, reasoning: one.content === undefined, drafted: one.drafted}, last = all.at(-1);
    if (last && last.reasoning === piece.reasoning && last.drafted === piece.drafted) all[all.length - 1] = {...last, text: last.text + piece.text};
    else all.push(piece);
  }
  return all;
}

export const text = (output, reasoning = false) => output.pieces.filter((piece) => piece.reasoning === reasoning).map((piece) => piece.text).join("");

// Tokens per second after the first message.
export const speed = (output) => (output.seconds > output.firstAt ? (output.tokenIds.length - 1) / (output.seconds - output.firstAt) : 0);

// A description of how two outputs differ in tokens, text, reasoning or finish reason; "" if they are equal.
export function difference(one, other) {
  const place = one.tokenIds.findIndex((id, n) => id !== other.tokenIds[n]);
  if (place >= 0 || one.tokenIds.length !== other.tokenIds.length) return `they part at token ${(place < 0 ? one.tokenIds.length : place) + 1}`;
  if (text(one) !== text(other) || text(one, true) !== text(other, true)) return "the same tokens, but another text";
  return one.finish === other.finish ? "" : `one ended with ${one.finish}, the other with ${other.finish}`;
}
