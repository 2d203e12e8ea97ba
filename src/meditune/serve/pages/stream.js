// Requests to the server. Answers arrive as server-sent events. If the server requires a key, this tab stores the key.

const KEY = "meditune.key";
let entered = null;

export class Trouble extends Error {
  // An error to show to the user. `again`: trying again may help, after `wait` seconds. `key`: a key is required.
  // `long`: the question is too long. `urgent`: the question sounds like an emergency.
  constructor(title, message, { again = true, wait = 0, key = false, long = false, urgent = false } = {}) {
    super(message);
    Object.assign(this, { title, again, wait, key, long, urgent });
  }
}

export function remember(key) {
  entered = key;
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // In a browser that stores nothing, the key is kept until the page is closed.
  }
}

// Returns the request header with the key, if there is one.
export function authorization() {
  let key = entered;
  try {
    key ??= sessionStorage.getItem(KEY);
  } catch {
    // The browser stores nothing.
  }
  return key ? { authorization: `Bearer ${key}` } : {};
}

// Calls `tell(kind, data)` for every event until the answer is complete. Throws Trouble, or AbortError if the user stops it.
export async function ask(body, signal, tell) {
  const response = await send("/v1/ask", { ...body, stream: true }, signal);
  if (!(response.headers.get("content-type") ?? "").startsWith("text/event-stream")) throw broken();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let answered = false;
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : lost();
    });
    if (done) break;
    const parts = (rest + value).split(/\r?\n\r?\n/);
    rest = parts.pop();
    for (const part of parts) {
      const { kind, data } = parsed(part);
      if (!data) continue;
      if (kind === "error") throw refused(data.error?.status ?? 500, data.error, 0);
      tell(kind, data);
      answered ||= kind === "answer";
    }
  }
  if (!answered) throw lost();
}

export async function say(feedback) {
  await send("/v1/feedback", feedback);
}

async function send(path, body, signal) {
  const headers = { "content-type": "application/json", ...authorization() };
  let response;
  try {
    response = await fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw lost();
  }
  if (response.ok) return response;
  const reply = await response.json().catch(() => ({}));
  throw refused(response.status, reply.error, Number(response.headers.get("retry-after")) || 0);
}

function parsed(part) {
  let kind = "message";
  const lines = [];
  for (const line of part.split(/\r?\n/)) {
    if (line.startsWith("event:")) kind = line.slice(6).trim();
    if (line.startsWith("data:")) lines.push(line.slice(5).trimStart());
  }
  try {
    return { kind, data: lines.length ? JSON.parse(lines.join("\n")) : null };
  } catch {
    return { kind, data: null };
  }
}

function lost() {
  return navigator.onLine
    ? new Trouble("The server can't be reached", "The connection was lost. Your question is still here; try again.")
    : new Trouble("You are offline", "There is no network connection. Try again when you are online.");
}

function broken() {
  return new Trouble("Unexpected response", "The response didn't come from this server. Reload the page.");
}

function refused(status, error, wait) {
  const message = error?.message;
  if (error?.code === "message_too_long") return new Trouble("This question is too long", message, { again: false, long: true });
  if (error?.code === "emergency_in_long_message") return new Trouble("This may be an emergency", message, { again: false, long: true, urgent: true });
  if (status === 401) return new Trouble("A key is required", message ?? "", { key: true });
  if (status === 403) return new Trouble("Not allowed", message ?? "This key doesn't allow questions.", { again: false });
  if (status === 429) {
    const more = wait ? ` Try again in ${wait} ${wait === 1 ? "second" : "seconds"}.` : " Try again in a moment.";
    return new Trouble("Too many questions right now", `The server is busy, or you sent too many questions.${more} In an emergency, call your emergency number now.`, { wait });
  }
  if (status === 404) return new Trouble("This server doesn't answer questions", message ?? "It has no assistant.", { again: false });
  if (status < 500) return new Trouble("This question can't be answered", message ?? "", { again: false });
  if (status === 504) return new Trouble("It took too long", "The server took too long to answer. Try again, or ask a shorter question.");
  return new Trouble("Something went wrong", "The server couldn't finish the answer. Try again.");
}
