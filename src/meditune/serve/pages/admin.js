// The operator's page: metrics from the store, refreshed every 30 seconds while the page is visible.

import { chart, meter, percent, plain } from "./charts.js";
import { $, closable, el, open, plural, safe } from "./dom.js";
import { authorization, remember } from "./stream.js";

const EVERY_MS = 30_000;
let asked = 0;

async function refresh() {
  const hours = document.querySelector('input[name="hours"]:checked').value;
  const mine = ++asked;
  let response;
  try {
    response = await fetch(`/v1/admin/status?hours=${hours}`, { headers: authorization() });
  } catch {
    return trouble("The server can't be reached. This page shows the last metrics received from it.");
  }
  const data = await response.json().catch(() => ({}));
  if (mine !== asked) return;
  if (response.status === 401 || response.status === 403) {
    trouble(response.status === 403 ? "This key can't open this page: it lacks the admin scope." : (data.error?.message ?? "A key is required."));
    if (!$("key").open) open($("key"));
    return;
  }
  if (!response.ok) return trouble(data.error?.message ?? "The server failed.");
  $("trouble").hidden = true;
  draw(data);
  $("status").textContent = `Updated at ${clock(data.time)}`;
}

function draw(data) {
  const titled = (each) => each.closest(".card")?.querySelector("h3").textContent;
  const open = new Set([...document.querySelectorAll("details[open]")].map(titled));
  $("figures").replaceChildren(alerts(data), tiles(data), charts(data), servers(data), versions(data), drift(data), updates(data));
  for (const each of document.querySelectorAll("details")) each.open = open.has(titled(each));
}

function section(id, title, ...children) {
  return el("section", { "aria-labelledby": `${id}-title`, id }, el("h2", { id: `${id}-title` }, title), ...children);
}

function alerts(data) {
  const found = data.drift.flatMap((each) => [
    ...(each.problem ? [note("Drift can't be checked", each.problem)] : []),
    ...(each.unsent ?? []).map((said) => note("An alert couldn't be sent", said)),
    ...(each.alerts ?? []).map(alert),
  ]);
  const lost = data.servers.filter((each) => !each.alive).map((each) => note("A server disappeared", `${each.address || each.name} stopped without a normal shutdown. Its last heartbeat was at ${clock(each.time)}.`));
  const failed = data.updates.flatMap((each) => (each.failures ?? []).map((said) => note("An update failed", said)));
  const every = [...found, ...lost, ...failed];
  return section("alerts", every.length ? plural(every.length, "alert") : "No alerts", ...every);
}

function note(title, text) {
  return el("div", { class: "card alert" }, el("h3", {}, title), el("p", {}, text));
}

function alert(each) {
  const { examples = [] } = each.evidence ?? {};
  return el(
    "div",
    { class: "card alert" },
    el("h3", {}, `${each.title} `, el("span", { class: "state bad" }, each.severity)),
    el("p", {}, each.said),
    el("p", { class: "small" }, `Since request ${plain(each.since)}${each.since_id ? ` (${each.since_id})` : ""}, detected at request ${plain(each.opened)}. ${each.effect_name} ${each.effect.toFixed(2)}.`),
    examples.length ? el("details", {}, el("summary", {}, "Example questions"), el("ul", {}, ...examples.slice(0, 5).map(question))) : null,
  );
}

// Every alert contains the same groups of new questions, so the page shows the groups only once.
function fresh(each) {
  const groups = (each.alerts ?? []).find((alert) => alert.evidence?.groups?.length)?.evidence.groups ?? [];
  if (!groups.length) return [];
  return [
    el("h3", {}, "Questions unlike those in the reference"),
    ...groups.flatMap((group) => [el("p", { class: "small" }, `${plural(group.questions, "question")} (${percent(group.share)}) about ${group.name}`), el("ul", { class: "questions" }, ...group.examples.slice(0, 3).map(question))]),
  ];
}

function question(each) {
  return el("li", {}, each.question ?? "(text not stored)", " ", el("code", { class: "small" }, each.id));
}

function tiles(data) {
  const { answers, feedback } = data;
  const of = (name) => (answers.count ? answers.outcomes[name] / answers.count : null);
  const rated = feedback.up + feedback.down;
  const cost = Object.values(data.this_server.cost).reduce((sum, each) => sum + each, 0);
  const made = [
    ["Answers", plain(answers.count), answers.complete ? `${plain(data.this_server.running)} running, ${plain(data.this_server.waiting)} waiting` : "latest answers only; there are more"],
    ["Median response time", seconds(answers.seconds.p50), `95th percentile ${seconds(answers.seconds.p95)}; median time to first token ${seconds(answers.first_token.p50)}`],
    ["Abstained", percent(of("abstained")), `${plain(answers.outcomes.declined)} declined`],
    ["Escalated", plain(answers.outcomes.escalated), "answered with urgent help"],
    ["Unsupported sentences", percent(answers.sentences ? answers.unsupported / answers.sentences : null), `${plain(answers.unsupported)} of ${plain(answers.sentences)}`],
    ["Best passage", answers.retrieval.p50 === null ? "–" : answers.retrieval.p50.toFixed(2), `median cosine similarity; 10th percentile ${answers.retrieval.p10 === null ? "–" : answers.retrieval.p10.toFixed(2)}`],
    ["Feedback", rated ? `${percent(feedback.up / rated)} up` : "–", `${plain(rated)} ratings, ${plain(feedback.corrections)} corrections, ${plain(feedback.experts)} by experts`],
    ["Tokens", plain(answers.tokens.prompt + answers.tokens.completion), cost ? `cost of this server: ${cost.toFixed(2)}` : `${plain(answers.tokens.completion)} of them generated`],
  ];
  return section("now", "Answers", el("dl", { class: "tiles" }, ...made.map(([name, value, small]) => el("div", { class: "tile" }, el("dt", {}, name), el("dd", {}, value, el("div", { class: "small" }, small))))));
}

function charts(data) {
  const parts = data.over_time;
  const times = parts.map((each) => each.from);
  const outcome = (name) => ({ name, values: parts.map((each) => each.outcomes[name]) });
  const share = (over, under) => parts.map((each) => (under(each) ? over(each) / under(each) : null));
  return section(
    "time",
    "Over time",
    el(
      "div",
      { class: "charts" },
      chart("Answers by outcome", ["answered", "abstained", "escalated", "declined"].map(outcome), times, { stacked: true }),
      chart("95th percentile of the response time", [{ name: "95th percentile", values: parts.map((each) => each.p95) }], times, { unit: "seconds" }),
      chart("Shares", [
        { name: "abstained", values: share((each) => each.outcomes.abstained, (each) => each.count) },
        { name: "unsupported sentences", values: share((each) => each.unsupported, (each) => each.sentences) },
      ], times, { shown: percent }),
      chart("Feedback", [{ name: "up", values: parts.map((each) => each.up) }, { name: "down", values: parts.map((each) => each.down) }], times, { stacked: true }),
    ),
  );
}

function servers(data) {
  const rows = data.servers.map((each) => [link(each.address) ?? each.name, each.model, code(each.version), code(each.index), each.engine, clock(each.started), state(each.alive ? "alive" : "lost", each.alive)]);
  return section("servers", "Servers", grid(["Address", "Model", "Version", "Index", "Engine", "Since", "State"], rows, "No server has sent a heartbeat yet."));
}

function versions(data) {
  const rows = data.versions.map((each) => [each.model, code(each.index), plain(each.answers), clock(each.first), clock(each.last)]);
  return section("versions", "Versions that answered", grid(["Model", "Index", "Answers", "First", "Last"], rows, "No answers in this time span."));
}

function drift(data) {
  if (!data.drift.length) return section("drift", "Drift", el("p", { class: "small" }, "Drift isn't monitored. Fit a reference with meditune drift fit, then start the server with it: meditune serve RUN --drift REFERENCE"));
  return section("drift", "Drift", ...data.drift.flatMap((each) => {
    const rows = Object.entries(each.signals ?? {}).map(([name, row]) => ({ cells: [row.title, row.about, state(row.state, row.state === "open" ? false : undefined), el("span", {}, meter(row.share), ` ${percent(row.share)}`)], name: row.state }));
    return [
      el("p", { class: "small" }, `${plain(each.requests ?? 0)} requests compared with the reference ${each.reference}; last check at ${clock(each.time)}.`),
      grid(["Signal", "About", "State", "Evidence"], rows, "No check has run yet."),
      ...fresh(each),
      ...(each.remarks ?? []).map((said) => el("p", { class: "small" }, said)),
    ];
  }));
}

function updates(data) {
  const rows = data.updates.map((each) => [each.folder, clock(each.time), plain(each.library?.there), plain(each.retracted), plain(each.flagged), code(each.index)]);
  return section("updates", "Last update of the literature", grid(["Literature folder", "When", "Articles", "Newly retracted", "Answers flagged", "Index"], rows, "No update has been recorded. To run one: meditune update LITERATURE --store DIR"));
}

function grid(names, rows, none) {
  if (!rows.length) return el("p", { class: "small" }, none);
  const made = rows.map((row) => {
    const { cells, name } = Array.isArray(row) ? { cells: row, name: null } : row;
    return el("tr", { class: name }, ...cells.map((cell) => el("td", { class: "n" }, cell ?? "–")));
  });
  const head = el("tr", {}, ...names.map((name) => el("th", { scope: "col" }, name)));
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": names.join(", ") }, el("table", {}, el("thead", {}, head), el("tbody", {}, ...made)));
}

function state(text, good) {
  return el("span", { class: `state${good === undefined ? "" : good ? " good" : " bad"}` }, text);
}

function code(text) {
  return text ? el("code", {}, String(text).slice(0, 12)) : null;
}

function link(address) {
  const url = safe(address);
  return url ? el("a", { href: url, rel: "noopener noreferrer" }, url) : null;
}

function seconds(value) {
  return value === null ? "–" : `${value.toFixed(value < 10 ? 2 : 0)} s`;
}

function clock(time) {
  return time ? new Date(1000 * time).toLocaleString([], { dateStyle: "short", timeStyle: "short" }) : "–";
}

function trouble(text) {
  $("trouble").textContent = text;
  $("trouble").hidden = false;
}

$("key-form").addEventListener("submit", () => {
  remember($("key-text").value.trim());
  $("key-text").value = "";
  refresh();
});
closable($("key"));
for (const each of document.querySelectorAll('input[name="hours"]')) each.addEventListener("change", refresh);
setInterval(() => document.visibilityState === "visible" && !$("key").open && refresh(), EVERY_MS);
await refresh();
if (location.hash) document.querySelector(`#${CSS.escape(location.hash.slice(1))}`)?.scrollIntoView();
