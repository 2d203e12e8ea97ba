// One question with its answer, drawn as the events arrive.

import { el, icon, plural } from "./dom.js";
import { thumbs } from "./feedback.js";
import { instead, list, mark } from "./sources.js";

const LABELS = { yes: "Probably yes", no: "Probably no", maybe: "Unclear: the evidence is mixed" };

export class Turn {
  // `announce` sends a text to the screen reader.
  constructor(question, announce) {
    this.announce = announce;
    this.sources = [];
    this.sentences = [];
    this.notices = el("div", {});
    this.prose = el("p", { class: "prose" });
    this.wait = el("p", { class: "waiting" }, document.body.dataset.sources === "yes" ? "Looking for sources …" : "Writing …");
    this.after = el("div", {});
    this.reply = el("div", { class: "reply", "aria-busy": "true" }, this.notices, this.prose, this.wait, this.after);
    this.node = el("article", { class: "turn", "aria-label": "Question and answer" }, el("h2", { class: "asked", tabindex: "-1" }, question), this.reply);
  }

  tell(kind, data) {
    if (kind === "sources") {
      this.sources = data.sources;
      this.wait.textContent = `Reading ${plural(this.sources.length, "source")} …`;
      this.announce(`Reading ${plural(this.sources.length, "source")}.`);
    } else if (kind === "notice") this.notice(data);
    else if (kind === "sentence") this.sentence(data);
    else if (kind === "answer") this.finish(data);
  }

  notice({ level, text, title }) {
    if (level === "refusal" && this.sources.length) this.prose.replaceChildren();
    const head = title ? el("h3", {}, ...(level === "urgent" ? [icon("alert")] : []), title) : null;
    const box = el("div", { class: `notice ${level}`, role: level === "urgent" ? "alert" : null }, head, ...lines(text, level));
    this.notices.append(box);
    if (level === "urgent" || level === "refusal") this.wait.hidden = true;
  }

  sentence(sentence) {
    this.sentences.push(sentence);
    if (!sentence.shown) return;
    this.wait.textContent = "Writing …";
    const cited = sentence.citations.map((each) => [each, this.sources[each.number - 1]]).filter(([, source]) => source);
    const [words, last] = cut(sentence.text);
    this.prose.append(el("span", {}, words, el("span", { class: "keep" }, last, ...cited.map(([each, source]) => mark(each, source)))));
  }

  finish(answer) {
    this.done();
    this.answer = answer;
    if (answer.decision && answer.outcome === "answered") this.prose.before(decision(answer.decision));
    if (answer.outcome === "abstained") {
      this.prose.replaceChildren();
      if (answer.sources.length) this.after.append(instead(answer.sources));
    } else if (answer.sources.length) this.after.append(list(answer.sources, answer.sentences));
    const left = answer.sentences.filter((each) => !each.shown);
    if (left.length && answer.outcome === "answered") this.after.append(leftOut(left));
    this.after.append(this.foot(answer));
    this.announce(answer.outcome === "answered" ? "The answer is complete." : "There is no answer. Read the message instead.");
  }

  foot(answer) {
    const facts = [];
    if (answer.reading_grade !== null && answer.outcome === "answered") facts.push(`Reading level: grade ${Math.max(1, Math.round(answer.reading_grade))}`);
    if (answer.versions?.judge && answer.sentences.length && answer.sources.length) facts.push(checkedBy(answer.versions.judge));
    if (answer.outcome !== "escalated") facts.push(answer.limits);
    const foot = el("div", { class: "foot" }, el("p", { class: "small" }, facts.join(" · ")));
    if (!answer.id) return foot;
    const { box, form } = thumbs(answer.id, this.announce, Boolean(answer.decision));
    foot.append(box);
    return el("div", {}, foot, form);
  }

  stopped() {
    this.done();
    this.after.append(el("p", { class: "small" }, "Stopped."));
    this.announce("Stopped.");
  }

  fail(trouble, again) {
    this.done();
    if (trouble.urgent) return this.notice({ level: "urgent", text: trouble.message, title: trouble.title });
    const button = trouble.again ? el("button", { type: "button", onclick: again }, "Try again") : null;
    this.after.append(
      el("div", { class: "notice error", role: "alert" }, el("h3", {}, trouble.title), el("p", {}, trouble.message), button ? el("p", { class: "row" }, button) : null),
    );
    if (button && trouble.wait) countdown(button, trouble.wait);
  }

  done() {
    this.wait.hidden = true;
    this.reply.setAttribute("aria-busy", "false");
  }
}

// Returns a sentence without its last word, and the last word, which must stay on the same line as the citation.
function cut(text) {
  const place = text.lastIndexOf(" ") + 1;
  return text.length - place > 24 ? [text, ""] : [text.slice(0, place), text.slice(place)];
}

// Returns the lines as elements: lines that begin with "- " become a list, and the line that says whom to call is emphasized.
function lines(text, level) {
  const found = [];
  text.split("\n").forEach((line) => {
    if (line.startsWith("- ")) {
      if (found.at(-1)?.tagName !== "UL") found.push(el("ul", {}));
      found.at(-1).append(el("li", {}, line.slice(2)));
    } else if (line) found.push(el("p", { class: level === "urgent" && line.startsWith("Call ") ? "call" : null }, line));
  });
  return found;
}

function decision({ answer, probabilities, calibrated }) {
  const best = Math.round(100 * Math.max(...Object.values(probabilities)));
  const label = answer ? LABELS[answer] : "The model isn't sure enough to answer yes or no";
  const how = calibrated ? "" : ", not calibrated";
  return el("p", { class: "decision" }, el("strong", {}, label), answer ? el("span", { class: "small" }, `${best}% sure${how}`) : null);
}

function checkedBy(judge) {
  return `Sentences checked by: ${judge}${judge === "lexical detector" ? " (compares words)" : ""}`;
}

function leftOut(sentences) {
  const items = sentences.map((each) => el("li", {}, `${each.text} (${each.why})`));
  return el("details", {}, el("summary", {}, `${plural(sentences.length, "sentence")} left out`), el("p", {}, "The model wrote these sentences, but they failed a check. Don't rely on them."), el("ul", {}, ...items));
}

function countdown(button, seconds) {
  let left = Math.min(seconds, 600);
  const step = () => {
    button.disabled = left > 0;
    button.textContent = left > 0 ? `Try again in ${left} s` : "Try again";
    if (left-- > 0 && button.isConnected) setTimeout(step, 1000);
  };
  button.after(el("span", { class: "hidden" }));
  setTimeout(step);
}
