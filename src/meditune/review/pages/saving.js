// Requests to the server, and an outbox that keeps unsaved changes in the browser until they are sent.

export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

function takeToken() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!token) return;
  sessionStorage.setItem("token", token);
  history.replaceState(null, "", location.pathname);
}
takeToken();
addEventListener("hashchange", takeToken); // a new link opened in the same tab doesn't load the page again

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
const deniesAll = (error) => [401, 403, 421].includes(error.status); // token, rater or host: not about this change

export class Outbox {
  // Sends changes in order, one at a time. A newer change to a path replaces a waiting change to the same path.
  // A refused change is kept, and sent again with the next change or the next time the page is opened.
  constructor(name, rater, told) {
    this.name = name;
    this.rater = rater;
    this.told = told;
    this.waiting = JSON.parse(localStorage.getItem(name) || "[]");
    this.refused = [];
    this.sending = null;
    this.pause = 0;
    for (const event of ["online", "hashchange"]) addEventListener(event, () => this.flush());
  }

  get all() {
    return [...this.refused, ...(this.sending ? [this.sending] : []), ...this.waiting];
  }

  get size() {
    return this.all.length;
  }

  add(method, path, body, soon = 0) {
    const others = (changes) => changes.filter((each) => each.path !== path);
    this.refused = others(this.refused);
    this.waiting = others(this.waiting);
    this.waiting.push({ method, path, body });
    this.keep();
    this.told("saving");
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.flush(), soon);
  }

  keep() {
    if (this.size) localStorage.setItem(this.name, JSON.stringify(this.all));
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
    this.waiting = [...this.refused, ...this.waiting];
    this.refused = [];
    let refusal = null;
    while (this.waiting.length) {
      this.sending = this.waiting.shift();
      const { method, path, body } = this.sending;
      let failure = null;
      try {
        await request(method, path, body, this.rater);
        this.pause = 0;
      } catch (error) {
        failure = error;
        const kept = passing(error) ? this.waiting : this.refused;
        if (!this.waiting.some((each) => each.path === path)) kept.unshift(this.sending);
      }
      this.sending = null;
      this.keep();
      if (failure && passing(failure)) {
        this.pause = Math.min(15, this.pause * 2 || 1);
        this.timer = setTimeout(() => this.flush(), this.pause * 1000);
        this.told("waiting");
        return;
      }
      refusal = failure || refusal;
      if (failure && deniesAll(failure)) break;
    }
    if (refusal) this.told("refused", refusal.message);
    else this.told("saved");
  }
}
