// The chat page: the form, the conversation, and the data stored in the browser.

import { Turn } from "./answer.js";
import { $, closable, el, hidden, icon, open } from "./dom.js";
import * as history from "./history.js";
import { close as closeSource } from "./sources.js";
import { ask, remember, Trouble } from "./stream.js";

const STYLE = "meditune.style";
const THEME = "meditune.theme";
const MOST_BEFORE = 6;
const MOST_CHARACTERS = Number(document.body.dataset.characters);
let conversation = fresh();
let running = null;

function fresh() {
  return { id: crypto.randomUUID?.() ?? String(Date.now()), turns: [] };
}

function announce(text) {
  $("status").textContent = text;
}

function style() {
  return document.querySelector("input[name=style]:checked").value;
}

async function put(question) {
  $("welcome").hidden = true;
  const turn = new Turn(question, announce);
  $("turns").append(turn.node);
  turn.node.scrollIntoView({ block: "start" });
  announce(document.body.dataset.sources === "yes" ? "Looking for sources." : "Writing.");
  const controller = new AbortController();
  running = controller;
  busy(true);
  // A server that tries a new version recognizes a conversation by its first question, so the first question is always sent.
  const answered = conversation.turns.filter((each) => each.text);
  const before = [...answered.slice(0, 1), ...answered.slice(1).slice(1 - MOST_BEFORE)];
  const past = before.map((each) => ({ question: each.question.slice(0, MOST_CHARACTERS), answer: each.text.slice(0, 2000) }));
  const events = [];
  const here = conversation;
  try {
    await ask({ question, style: style(), history: past }, controller.signal, (kind, data) => {
      events.push([kind, data]);
      turn.tell(kind, data);
    });
    here.turns.push({ question, text: turn.answer.text, events: events.filter(([kind]) => kind !== "text") });
    history.keep(here);
  } catch (error) {
    if (error.name === "AbortError") turn.stopped();
    else failed(turn, question, error instanceof Trouble ? error : new Trouble("Something went wrong on this page", String(error.message)));
  } finally {
    if (running === controller) {
      running = null;
      busy(false);
    }
  }
}

function failed(turn, question, trouble) {
  const again = () => {
    turn.node.remove();
    put(question);
  };
  if (trouble.key) askForKey(again);
  turn.fail(trouble, again);
  // A question that is too long returns to the form, so that the user can shorten it.
  if (trouble.long && !$("question").value) {
    $("question").value = question;
    counted();
  }
}

function busy(yes) {
  $("stop").hidden = !yes;
  $("send").hidden = yes;
  if (!yes && matchMedia("(hover: hover)").matches) $("question").focus();
}

// Text that is too long isn't cut and can be sent: the refusal includes urgent help if the text calls for it.
function counted() {
  const length = $("question").value.trim().length;
  $("length").hidden = length <= MOST_CHARACTERS * 0.9;
  $("length").classList.toggle("over", length > MOST_CHARACTERS);
  const over = length > MOST_CHARACTERS ? ". This is too long; please shorten it." : "";
  $("length").textContent = `${length.toLocaleString("en")} of ${MOST_CHARACTERS.toLocaleString("en")} characters${over}`;
}

function submit() {
  const question = $("question").value.trim();
  if (!question || running) return;
  $("question").value = "";
  counted();
  put(question);
}

function begin(kept) {
  running?.abort();
  closeSource();
  conversation = kept ?? fresh();
  $("turns").replaceChildren();
  $("welcome").hidden = Boolean(kept);
  for (const each of kept?.turns ?? []) {
    const turn = new Turn(each.question, () => {});
    for (const [kind, data] of each.events ?? []) turn.tell(kind, data);
    $("turns").append(turn.node);
  }
  if (kept) $("turns").lastElementChild?.querySelector("h2").focus();
  else $("question").focus();
}

function listed() {
  const kept = history.all();
  $("no-history").hidden = kept.length > 0;
  $("delete-all").hidden = kept.length === 0;
  $("conversations").replaceChildren(
    ...kept.map((each) => {
      const first = each.turns[0]?.question ?? "";
      const go = () => {
        $("history").close();
        begin(each);
      };
      const remove = () => {
        history.forget(each.id);
        // If it stayed open, the next question would store the whole conversation again.
        if (each.id === conversation.id) begin();
        listed();
        $("history-title").focus();
      };
      const when = new Date(each.when).toLocaleDateString(undefined, { day: "numeric", month: "short", year: "numeric" });
      return el(
        "li",
        {},
        el("button", { type: "button", class: "go", onclick: go }, el("span", {}, first), el("span", { class: "small" }, when)),
        el("button", { type: "button", class: "close", title: "Delete", onclick: remove }, icon("trash"), hidden(`Delete: ${first}`)),
      );
    }),
  );
}

function askForKey(then) {
  const form = $("key-form");
  form.onsubmit = () => {
    remember($("key-text").value.trim());
    $("key-text").value = "";
    then();
  };
  if (!$("key").open) open($("key"));
}

function themed(name) {
  if (name) document.documentElement.dataset.theme = name;
  const dark = name ? name === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  $("theme-name").textContent = dark ? "Light colours" : "Dark colours";
  return dark;
}

function stored(name, value) {
  try {
    if (value === undefined) return localStorage.getItem(name);
    localStorage.setItem(name, value);
  } catch {
    // The page also works in a browser that stores nothing.
  }
  return null;
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
$("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
});
$("question").addEventListener("input", counted);
$("stop").addEventListener("click", () => running?.abort());
$("new").addEventListener("click", () => begin());
$("open-history").addEventListener("click", () => {
  listed();
  open($("history"));
});
$("delete-all").addEventListener("click", () => {
  history.forgetAll();
  begin();
  listed();
});
$("theme").addEventListener("click", () => {
  const name = themed(document.documentElement.dataset.theme) ? "light" : "dark";
  stored(THEME, name);
  themed(name);
});
for (const example of document.querySelectorAll(".example")) example.addEventListener("click", () => !running && put(example.textContent));
for (const radio of document.querySelectorAll("input[name=style]")) radio.addEventListener("change", () => stored(STYLE, radio.value));
const chosen = stored(STYLE);
if (chosen) for (const radio of document.querySelectorAll("input[name=style]")) radio.checked = radio.value === chosen;
themed(stored(THEME) ?? "");
closable($("history"));
closable($("key"));
