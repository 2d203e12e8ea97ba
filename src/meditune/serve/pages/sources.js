// A source: its button below the answer, and its passage with the supporting sentences highlighted.

import { $, closable, el, hidden, open, plural, safe } from "./dom.js";

const dialog = $("source");
closable(dialog);

export function show(source, quotes = []) {
  $("source-number").textContent = `Source ${source.number}`;
  $("source-title").textContent = title(source);
  $("source-facts").textContent = facts(source).join(" · ");
  const marked = quotes.filter((quote) => quote && source.text.includes(quote));
  $("source-note").hidden = !marked.length;
  $("source-text").replaceChildren(...parts(source.text, marked));
  const address = safe(source.url);
  const link = $("source-link");
  link.hidden = !address;
  if (address) link.href = address;
  else link.removeAttribute("href");
  open(dialog);
  dialog.querySelector("mark")?.scrollIntoView({ block: "center" });
}

export function close() {
  if (dialog.open) dialog.close();
}

export function title(source) {
  return (source.title || source.id).replace(" (are) ", " ").replace(/\s+\?$/, "?");
}

export function facts(source) {
  const named = source.url ? host(source.url) : source.source;
  const restricted = source.restricted ? "restricted: don't pass it on" : "";
  return [source.section, named, source.date, source.licence, restricted].filter(Boolean);
}

// Returns a citation: a button with the source's number, which opens the source.
export function mark(citation, source) {
  const press = () => show(source, [citation.quote]);
  const label = `Source ${citation.number}: ${title(source)}`;
  return el("button", { type: "button", class: "cite", "aria-label": label, "aria-haspopup": "dialog", title: title(source), onclick: press }, String(citation.number));
}

// Returns the list of sources below an answer, with the cited sources first.
export function list(sources, sentences) {
  const quotes = new Map();
  for (const sentence of sentences.filter((each) => each.shown))
    for (const citation of sentence.citations) quotes.set(citation.number, [...(quotes.get(citation.number) ?? []), citation.quote]);
  const cited = sources.filter((each) => quotes.has(each.number));
  const others = sources.filter((each) => !quotes.has(each.number));
  const box = el("section", { class: "sources", "aria-label": "Sources" });
  box.append(el("h3", {}, cited.length ? "Sources" : "Passages found"), ...cited.map((each) => chip(each, quotes.get(each.number))));
  if (!cited.length) box.append(...others.map((each) => chip(each, [])));
  else if (others.length)
    box.append(
      el("details", { class: "others" }, el("summary", {}, `${plural(others.length, "more passage")}`), el("div", { class: "sources unused" }, ...others.map((each) => chip(each, [])))),
    );
  return box;
}

// Returns the passages that are shown instead of an answer.
export function instead(sources) {
  const cards = sources.map((each) =>
    el("button", { type: "button", class: "quote", "aria-haspopup": "dialog", onclick: () => show(each) }, el("strong", {}, `${each.number}. ${title(each)}`), el("span", {}, each.text)),
  );
  return el("section", { class: "quotes", "aria-label": "What the sources say" }, el("h3", {}, "What the sources say"), ...cards);
}

function chip(source, quotes) {
  return el("button", { type: "button", class: "chip", "aria-haspopup": "dialog", onclick: () => show(source, quotes) }, el("b", {}, String(source.number)), hidden(" "), el("span", {}, title(source)));
}

function host(address) {
  const url = safe(address);
  return url ? new URL(url).hostname.replace(/^www\./, "") : "";
}

// Returns the text with every quote highlighted.
function parts(text, quotes) {
  const found = [];
  let from = 0;
  const places = quotes.map((quote) => [text.indexOf(quote), quote]).sort((a, b) => a[0] - b[0]);
  for (const [place, quote] of places) {
    if (place < from) continue;
    found.push(text.slice(from, place), el("mark", {}, quote));
    from = place + quote.length;
  }
  return [...found, text.slice(from)];
}
