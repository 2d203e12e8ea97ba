// Thumbs and the correction form under an answer.

import { el, hidden, icon } from "./dom.js";
import { say } from "./stream.js";

const REASONS = [
  ["wrong", "It's wrong"],
  ["unsupported", "The source doesn't say that"],
  ["unclear", "Hard to understand"],
  ["incomplete", "Something is missing"],
  ["unsafe", "It could do harm"],
];
const DECISIONS = [
  ["yes", "Yes"],
  ["no", "No"],
  ["maybe", "Unclear"],
];
let count = 0;

// `decided`: the answer contains a decision (yes, no or maybe), which the user can also correct.
export function thumbs(id, announce, decided = false) {
  const box = el("div", { class: "thumbs", role: "group", "aria-label": "Was this answer good?" });
  const form = el("div", {});
  let stored = ""; // the rating that the server has
  let fields; // the correction form, which keeps its entries while it is closed
  const buttons = Object.fromEntries(
    [
      ["up", "Good answer"],
      ["down", "Bad answer"],
    ].map(([rating, label]) => [rating, el("button", { type: "button", "aria-pressed": "false", title: label, onclick: () => rate(rating) }, icon(rating), hidden(label))]),
  );
  box.append(buttons.up, buttons.down);

  async function rate(rating) {
    for (const [name, button] of Object.entries(buttons)) button.setAttribute("aria-pressed", String(name === rating));
    if (rating === "down") fields ??= correction(id, form, announce, decided);
    form.replaceChildren(...(rating === "down" ? [fields] : []));
    form.querySelector("input")?.focus();
    if (rating === stored) return;
    stored = rating;
    if (!(await submit({ id, rating }, form, announce, rating === "up" ? "Thank you." : ""))) stored = "";
  }
  return { box, form };
}

function correction(id, form, announce, decided) {
  const number = ++count;
  let sent = false;
  const reasons = REASONS.map(([value, label]) => el("label", {}, el("input", { type: "checkbox", name: "reason", value }), label));
  const text = el("textarea", { id: `better-${number}`, rows: 3, maxlength: 20000 });
  const send = async (event) => {
    event.preventDefault();
    const chosen = [...event.target.querySelectorAll("input[name=reason]:checked")].map((each) => each.value);
    const right = event.target.querySelector("input[type=radio]:checked")?.value;
    // Without an entry, the server keeps what was sent before. A form from the history is empty, and must erase nothing.
    const entries = Object.entries({ reasons: chosen, correction: text.value }).filter(([, value]) => sent || value.length);
    const feedback = { id, rating: "down", ...Object.fromEntries(entries), ...(right ? { decision: right } : {}) };
    sent = (await submit(feedback, form, announce, "Thank you. Your feedback was sent.", true)) || sent;
  };
  const choices = DECISIONS.map(([value, label]) => el("label", {}, el("input", { type: "radio", name: `right-${number}`, value }), label));
  return el(
    "form",
    { class: "correct", onsubmit: send },
    el("fieldset", {}, el("legend", {}, "What is wrong with it?"), ...reasons),
    decided ? el("fieldset", {}, el("legend", {}, "What is the right answer? (optional)"), ...choices) : null,
    el("label", { for: text.id }, "What should the answer say? (optional)"),
    text,
    el("p", { class: "small" }, "The operator of this server stores your feedback. Don't write anything that identifies you or a real patient."),
    el("p", { class: "row" }, el("button", { class: "main" }, "Send"), el("button", { type: "button", onclick: () => form.replaceChildren() }, "Cancel")),
  );
}

// Returns whether the feedback was stored.
async function submit(feedback, form, announce, thanks, close = false) {
  try {
    await say(feedback);
    if (close) form.replaceChildren(el("p", { class: "small" }, thanks));
    if (thanks) announce(thanks);
    return true;
  } catch (error) {
    const message = `Your feedback wasn't stored. ${error.message}`;
    form.append(el("p", { class: "small", role: "alert" }, message));
    return false;
  }
}
