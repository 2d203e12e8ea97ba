// Requests to the server, and an outbox that keeps unsaved changes in the browser until they are sent.

export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

const fragment = new URLSearchParams(location.hash.slice(1)).get("token");
if (fragment) {
  sessionStorage.setItem("token", fragment);
  history.replaceState(null, "", location.pathname);
}

export async function request(method, path, body, rater) {
  const headers = {};
  const token = sessionStorage.getItem("token");
  if (token) headers["X-Review-Token"] = token;
  if (rater) headers["X-Rater"] = rater;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const response = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  if (response.ok) return response.status === 204 ? null : response.json();
  const refusal = await response.json().catch(() => ({}));
  const detail = typeof refusal.detail === "string" ? refusal.detail : `The server refused the request (${response.status}).`;
  throw new Refused(detail, response.status);
}

const passing = (error) => !(error instanceof Refused) || error.status >= 500 || error.status === 429;

export class Outbox {
  // Sends changes in order, one at a time. A newer change to a path replaces a waiting change to the same path.
  constructor(name, rater, told) {
    this.name = name;
    this.rater = rater;
    this.told = told;
    this.waiting = JSON.parse(localStorage.getItem(name) || "[]");
    this.sending = null;
    this.pause = 0;
    addEventListener("online", () => this.flush());
  }

  get size() {
    return this.waiting.length + (this.sending ? 1 : 0);
  }

  add(method, path, body, soon = 0) {
    this.waiting = this.waiting.filter((each) => each.path !== path);
    this.waiting.push({ method, path, body });
    this.keep();
    this.told("saving");
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.flush(), soon);
  }

  keep() {
    const all = this.sending ? [this.sending, ...this.waiting] : this.waiting;
    if (all.length) localStorage.setItem(this.name, JSON.stringify(all));
    else localStorage.removeItem(this.name);
  }

  async flush() {
    clearTimeout(this.timer);
    if (this.running) return this.running;
    this.running = this.run();
    await this.running;
    this.running = null;
    return null;
  }

  async run() {
    while (this.waiting.length) {
      this.sending = this.waiting.shift();
      const { method, path, body } = this.sending;
      try {
        await request(method, path, body, this.rater);
        this.pause = 0;
      } catch (error) {
        if (passing(error)) {
          if (!this.waiting.some((each) => each.path === path)) this.waiting.unshift(this.sending);
          this.sending = null;
          this.keep();
          this.pause = Math.min(15, this.pause * 2 || 1);
          this.timer = setTimeout(() => this.flush(), this.pause * 1000);
          this.told("waiting");
          return;
        }
        this.told("refused", error.message);
      }
      this.sending = null;
      this.keep();
    }
    this.told("saved");
  }
}
