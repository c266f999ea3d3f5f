// The server's answers: JSON, streams of events, and errors with what to change.

let key = "";

/** The key goes with every request from now on; it lives in this module and nowhere else. */
export function setKey(value) {
  key = value.trim();
}

export class ApiError extends Error {
  constructor(message, { status = 0, param = null, code = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, param, code, retryAfter });
  }
}

export async function getJson(path) {
  const response = await send(path, { headers: headers() });
  return response.json();
}

/** Events of a POST: `{event, data}` with the data parsed, until the server says [DONE]. */
export async function* stream(path, body, signal) {
  const response = await send(path, {
    method: "POST",
    headers: { ...headers(), "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const parse = eventParser();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new ApiError("The connection ended before the answer did. Try again.");
      for (const { event, data } of parse(value)) {
        if (data === "[DONE]") return;
        const parsed = JSON.parse(data);
        if (parsed.error) throw new ApiError(parsed.error.message, parsed.error);
        yield { event, data: parsed };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Cuts text that comes in pieces into server-sent events. */
export function eventParser() {
  let rest = "";
  return (piece) => {
    const blocks = (rest + piece).replace(/\r\n?/g, "\n").split("\n\n");
    rest = blocks.pop();
    return blocks.map(parseEvent).filter((event) => event.data);
  };
}

function parseEvent(block) {
  const event = { event: "message", data: "" };
  for (const line of block.split("\n")) {
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "event") event.event = value;
    if (field === "data") event.data += (event.data && "\n") + value;
  }
  return event;
}

function headers() {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function send(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer. Is it still running?");
  }
  if (response.ok) return response;
  const retryAfter = response.headers.get("Retry-After");
  const { error } = await response.json().catch(() => ({}));
  const fallback = `The server answered ${response.status} ${response.statusText}.`;
  throw new ApiError(error?.message ?? fallback, { ...error, status: response.status, retryAfter });
}
