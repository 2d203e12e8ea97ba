import { Outbox, Refused, request } from "/saving.js";

const $ = (id) => document.getElementById(id);
const SCREENS = ["sign-in", "rating", "end"];
const IDLE_S = 300; // more time than this on one rating counts as a pause
const STATUS = {
  saving: "Saving…",
  saved: "Saved",
  waiting: "Not saved yet: the server can't be reached. Retrying…",
  refused: "Not saved yet, only stored in this browser.",
};

let set, rater, outbox, work, item;
let at = 0; // index of the item in `work`
let line = 0; // index of the item's active axis
let moving = false; // true while an answer is being fetched
let since = performance.now();
const undoable = [];

const axesOf = (entry) => set.axes.filter((axis) => entry.axes.includes(axis.name));
const rated = (name) => Object.hasOwn(item.ratings, name);
const finished = (entry) => entry.done >= entry.axes.length;
const clamp = (number, most) => Math.max(0, Math.min(most, number));

function show(screen) {
  for (const each of SCREENS) $(each).hidden = each !== screen;
}

function trouble(text) {
  $("trouble").textContent = text || "";
  $("trouble").hidden = !text;
}

function saving(state, detail) {
  $("saved").textContent = detail ? `${STATUS[state]} ${detail}` : STATUS[state];
  $("saved").dataset.state = state;
  ending();
}

async function asked(...what) {
  try {
    const answer = await request(...what);
    trouble("");
    return answer;
  } catch (error) {
    if (error instanceof Refused && error.status === 403) leave();
    trouble(error instanceof Refused ? error.message : "The server can't be reached. Your ratings are stored in this browser; try again in a moment.");
    throw error;
  }
}

async function start() {
  set = await asked("GET", "/api/set");
  const { words } = set.task;
  for (const place of document.querySelectorAll("[data-word]")) place.textContent = words[place.dataset.word];
  $("welcome").textContent = set.adjudicating ? "Settling disagreements" : words.title;
  $("purpose").textContent = set.adjudicating ? words.settling : words.purpose;
  document.title = `${$("welcome").textContent} – Meditune`;
  $("change").append(`Change the ${words.better.toLowerCase()} `, element("kbd", "", "B"));
  if (set.task.edits) $("better").rows = 12;
  const most = Math.max(...set.axes.map((axis) => axis.options.length));
  $("numbers").replaceChildren(...Array.from({ length: most }, (_, index) => [element("kbd", "", String(index + 1)), " "]).flat());
  rater = sessionStorage.getItem(`rater-${set.id}`);
  if (rater) await begin();
  else signIn();
}

function signIn() {
  show("sign-in");
  $("name").focus();
}

function leave() {
  sessionStorage.removeItem(`rater-${set.id}`);
  undoable.length = 0;
  $("name").value = "";
  signIn();
}

async function begin() {
  outbox = new Outbox(`outbox-${set.id}-${set.adjudicating ? 2 : 1}-${rater}`, rater, saving);
  await outbox.flush();
  work = await asked("GET", "/api/work", undefined, rater);
  const open = work.findIndex((entry) => !finished(entry));
  if (open < 0) end();
  else await go(open);
}

async function go(place) {
  if (moving) return;
  moving = true;
  const entry = work[place];
  let found;
  try {
    if (outbox.size) await outbox.flush();
    found = await asked("GET", `/api/items/${entry.id}`, undefined, rater);
  } finally {
    moving = false;
  }
  at = place;
  item = found;
  show("rating");
  draw(entry);
  const open = axesOf(entry).findIndex((axis) => !rated(axis.name));
  activate(open < 0 ? 0 : open, false);
  scrollTo(0, 0);
  $("question").focus({ preventScroll: true });
}

function draw(entry) {
  const turns = item.turns ?? [];
  $("earlier").hidden = !turns.length;
  $("earlier").replaceChildren(
    ...turns.map(({ role, text }) => {
      const turn = element("p", "passage", text);
      turn.prepend(element("strong", "", `${role[0].toUpperCase()}${role.slice(1)}:`), " ");
      return turn;
    }),
  );
  $("question").textContent = item.question;
  $("sources").hidden = !item.context.length;
  $("sources").open = set.task.shows_sources;
  $("sources-summary").textContent = item.context.length === 1 ? "Source (S)" : `Sources: ${item.context.length} passages (S)`;
  $("passages").replaceChildren(
    ...item.context.map(({ label, text }) => {
      const passage = element("p", "passage", text);
      if (label) passage.prepend(element("strong", "", label), " ");
      return passage;
    }),
  );
  $("answer").textContent = item.answer || "(The answer is empty.)";
  $("comment").value = item.comment;
  $("better").value = item.better || unchanged();
  $("decision").hidden = !item.decision;
  $("decision").replaceChildren("Decision: ", element("strong", "", item.decision));
  origin();
  written();
  edited();
  rewriting(!set.task.edits || Boolean(item.better));
  $("axes").replaceChildren(...axesOf(entry).map(form));
  progress();
}

const unchanged = () => (set.task.edits ? item.answer : "");

function origin() {
  $("origin").hidden = !item.source;
  const name = item.link ? element("a", "", item.source) : element("span", "", item.source);
  if (item.link) Object.assign(name, { href: item.link, target: "_blank", rel: "noopener noreferrer" });
  $("origin").replaceChildren("From: ", name);
}

function written() {
  // Raters' texts, shown to the adjudicator.
  const notes = (item.written || []).flatMap(({ comment, better }) => {
    const made = [];
    if (comment) made.push(element("p", "passage", `A rater's comment: ${comment}`));
    if (better) {
      const text = element("p", "passage", `A rater's text: ${better}`);
      const take = element("button", "", "Use this text");
      take.type = "button";
      take.addEventListener("click", () => rewrite(better));
      made.push(text, take);
    }
    return made;
  });
  $("written").replaceChildren(...notes);
}

function edited() {
  $("edit").hidden = !set.task.edits || !item.better;
}

function rewriting(open) {
  $("rewriting").hidden = !open;
  $("change").hidden = open;
}

function change() {
  rewriting(true);
  $("better").focus();
  $("better").setSelectionRange(0, 0);
}

function rewrite(text) {
  rewriting(true);
  $("better").value = text;
  note();
}

function element(tag, style, text) {
  const made = document.createElement(tag);
  if (style) made.className = style;
  if (text !== undefined) made.textContent = text;
  return made;
}

function form(axis, place) {
  const box = element("fieldset", "axis");
  box.dataset.axis = axis.name;
  const legend = element("legend", "", axis.title);
  legend.append(element("span", "small", axis.question));
  const options = element("div", "options");
  const all = [...axis.options.map(({ label, hint }, index) => [label, hint, index + 1]), [set.cannot, "", null]];
  for (const [label, hint, option] of all) {
    const button = element("button", option === null ? "option cannot" : "option");
    button.type = "button";
    button.dataset.option = option ?? 0;
    button.append(element("kbd", "", String(option ?? 0)), element("span", "", label));
    if (hint) button.append(element("span", "small hint", hint));
    const others = item.votes[axis.name]?.[option];
    if (others) button.append(element("span", "small chosen", `chosen by ${others}`));
    button.addEventListener("click", () => {
      line = place;
      choose(axis, option);
    });
    options.append(button);
  }
  box.append(legend, options);
  box.addEventListener("focusin", () => activate(place, false));
  mark(box, axis);
  return box;
}

function mark(box, axis) {
  const chosen = rated(axis.name) ? String(item.ratings[axis.name] ?? 0) : "";
  for (const button of box.querySelectorAll(".option")) {
    button.setAttribute("aria-pressed", String(button.dataset.option === chosen));
  }
  box.classList.toggle("rated", chosen !== "");
}

const boxes = () => [...document.querySelectorAll("#axes .axis")];

function activate(place, scroll = true) {
  const all = boxes();
  if (place !== line || !all[place].classList.contains("active")) since = performance.now();
  line = place;
  all.forEach((box, index) => box.classList.toggle("active", index === place));
  if (scroll) {
    all[place].scrollIntoView({ block: "nearest" });
    const chosen = all[place].querySelector("[aria-pressed=true]") || all[place].querySelector(".option");
    chosen.focus({ preventScroll: true });
  }
}

function progress() {
  const entry = work[at];
  const names = entry.axes.filter(rated);
  entry.done = names.length;
  const done = work.filter(finished).length;
  $("place").textContent = `Answer ${at + 1} of ${work.length}`;
  $("progress").max = work.length;
  $("progress").value = done;
  $("count").textContent = `${done} finished`;
  $("undo").disabled = !undoable.length;
  $("back").disabled = at === 0;
  const left = entry.axes.length - names.length;
  $("next").textContent = at + 1 < work.length || left ? "Next →" : "Finish";
  const still = entry.axes.length > 1 ? `${left} of ${entry.axes.length} still to rate for this answer.` : "Not rated yet.";
  $("missing").textContent = left ? still : "All questions rated. Press Enter for the next answer.";
}

function seconds() {
  const spent = (performance.now() - since) / 1000;
  return Math.round(Math.min(spent, IDLE_S) * 10) / 10;
}

function choose(axis, option) {
  if (moving) return; // the key press was meant for the answer that is being loaded
  const before = rated(axis.name) ? item.ratings[axis.name] : undefined;
  undoable.push({ id: item.id, axis, before });
  put(axis, option);
  const all = axesOf(work[at]);
  const later = all.findIndex((each, index) => index > line && !rated(each.name));
  const open = later >= 0 ? later : all.findIndex((each) => !rated(each.name));
  activate(open >= 0 ? open : line);
}

function put(axis, option) {
  const path = `/api/items/${item.id}/ratings/${axis.name}`;
  if (option === undefined) {
    delete item.ratings[axis.name];
    outbox.add("DELETE", path);
  } else {
    item.ratings[axis.name] = option;
    outbox.add("PUT", path, { option, seconds: seconds() });
  }
  since = performance.now();
  mark(boxes().find((box) => box.dataset.axis === axis.name), axis);
  progress();
}

async function undo() {
  const last = undoable.at(-1);
  if (!last || moving) return;
  const place = work.findIndex((entry) => entry.id === last.id);
  if (item.id !== last.id) await go(place);
  undoable.pop();
  put(last.axis, last.before);
  activate(axesOf(work[place]).findIndex((axis) => axis.name === last.axis.name));
}

function note() {
  item.comment = $("comment").value;
  const better = $("better").value;
  item.better = set.task.edits && better.trim() === item.answer.trim() ? "" : better;
  edited();
  outbox.add("PUT", `/api/items/${item.id}/notes`, { comment: item.comment, better: item.better }, 500);
}

function onward() {
  const open = axesOf(work[at]).findIndex((axis) => !rated(axis.name));
  if (open >= 0) activate(open);
  else step(1);
}

function step(by) {
  if (at + by < 0) return;
  if (at + by < work.length) go(at + by);
  else if (work.every(finished)) end();
  else unfinished();
}

function unfinished() {
  const after = work.findIndex((entry, index) => index > at && !finished(entry));
  const open = after >= 0 ? after : work.findIndex((entry) => !finished(entry));
  if (open >= 0) go(open);
  else end();
}

async function end() {
  await outbox.flush();
  show("end");
  ending();
  if (!work.length) {
    $("end-title").textContent = set.task.words.none;
    $("end-text").textContent = "No answers are assigned to you. Ask the person who sent you the link.";
  }
  $("again").hidden = !work.length;
  $("end-title").focus();
}

function ending() {
  if ($("end").hidden) return;
  const why = $("saved").dataset.state === "refused" ? $("saved").textContent : "";
  trouble(outbox.size ? why || "Some ratings aren't saved yet. Please keep this page open until this message disappears." : "");
}

const KEYS = {
  ArrowDown: () => activate(clamp(line + 1, boxes().length - 1)),
  ArrowUp: () => activate(clamp(line - 1, boxes().length - 1)),
  ArrowRight: () => step(1),
  ArrowLeft: () => step(-1),
  Enter: onward,
  n: unfinished,
  u: undo,
  s: () => ($("sources").open = !$("sources").open),
  c: () => $("comment").focus(),
  b: change,
  "?": () => $("help-dialog").showModal(),
};

function pressed(event) {
  if ($("rating").hidden || $("help-dialog").open || event.altKey || event.isComposing) return;
  const target = event.target;
  if (target instanceof HTMLTextAreaElement) {
    if (event.key === "Escape") target.blur();
    return;
  }
  if (moving) {
    event.preventDefault();
    return;
  }
  if (event.ctrlKey || event.metaKey) {
    if (event.key === "z") {
      event.preventDefault();
      undo();
    }
    return;
  }
  const onControl = target.closest("button, summary") && !target.closest(".option");
  if (onControl && event.key === "Enter") return;
  const axis = axesOf(work[at])[line];
  if (/^[0-9]$/.test(event.key)) {
    const number = Number(event.key);
    if (number <= axis.options.length && !event.repeat) choose(axis, number || null);
    event.preventDefault();
    return;
  }
  const act = KEYS[event.key] || KEYS[event.key.toLowerCase()];
  if (act) {
    event.preventDefault();
    act();
  }
}

$("name-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const name = $("name").value.trim();
  if (!name) return;
  ({ rater } = await asked("POST", "/api/raters", { name }));
  sessionStorage.setItem(`rater-${set.id}`, rater);
  await begin();
});
$("comment").addEventListener("input", note);
$("better").addEventListener("input", note);
$("change").addEventListener("click", change);
$("restore").addEventListener("click", () => rewrite(unchanged()));
$("back").addEventListener("click", () => step(-1));
$("next").addEventListener("click", () => step(1));
$("undo").addEventListener("click", undo);
$("help").addEventListener("click", () => $("help-dialog").showModal());
$("leave").addEventListener("click", leave);
$("again").addEventListener("click", () => go(0));
document.addEventListener("keydown", pressed);
document.addEventListener("visibilitychange", () => {
  if (document.hidden) outbox?.flush();
  else since = performance.now();
});
addEventListener("hashchange", () => {
  if (!set) start(); // the first link was refused
});
addEventListener("beforeunload", (event) => {
  if (outbox?.size) event.preventDefault();
});
start();
