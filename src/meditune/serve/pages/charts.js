// Charts of metrics over time, built as SVG elements so that no text becomes markup. A table shows the same numbers.

import { el } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, LEFT, BOTTOM, TOP] = [460, 150, 42, 20, 8];

export function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// Returns a chart of stacked bars (`stacked`) or lines, with one series for each `{ name, values }`. Unknown values are left out.
export function chart(title, series, times, { stacked = false, shown = plain, unit = "" } = {}) {
  const sums = times.map((_, place) => series.reduce((sum, each) => sum + (each.values[place] ?? 0), 0));
  const most = Math.max(...(stacked ? sums : series.flatMap((each) => each.values.map((value) => value ?? 0))), 0);
  const top = nice(most);
  const body = stacked ? bars(series, times.length, top) : lines(series, times.length, top);
  const label = `${title}: ${series.map((each) => `${each.name} up to ${shown(Math.max(...each.values.map((value) => value ?? 0), 0))}`).join(", ")}`;
  const drawn = svg("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label });
  for (const share of [0, 0.5, 1]) {
    const height = y(share * top, top);
    drawn.append(svg("line", { class: "axis", x1: LEFT, x2: WIDTH, y1: height, y2: height }));
    drawn.append(svg("text", { x: LEFT - 6, y: height + 4, "text-anchor": "end" }, shown(share * top)));
  }
  for (const [place, anchor] of [[0, "start"], [times.length - 1, "end"]]) {
    const x = place ? WIDTH : LEFT;
    drawn.append(svg("text", { x, y: HEIGHT - 4, "text-anchor": anchor }, when(times[place], times)));
  }
  drawn.append(...body);
  const keys = series.length > 1 ? el("p", { class: "keys" }, ...series.map((each, n) => el("span", {}, el("i", { class: `s${n + 1}` }), each.name))) : null;
  return el("figure", { class: "card" }, el("h3", {}, unit ? `${title} (${unit})` : title), keys, drawn, table(title, series, times, shown));
}

export function meter(share) {
  return svg("svg", { class: "bar", viewBox: "0 0 128 10", "aria-hidden": "true", preserveAspectRatio: "none" },
    svg("rect", { class: "rail", width: 128, height: 10 }), svg("rect", { class: "fill", width: 128 * share, height: 10 }));
}

export function plain(value) {
  if (value === null || value === undefined) return "–";
  return value >= 100 || Number.isInteger(value) ? Math.round(value).toLocaleString("en") : value.toPrecision(2);
}

export function percent(value) {
  return value === null || value === undefined ? "–" : `${(100 * value).toFixed(value < 0.1 && value > 0 ? 1 : 0)}%`;
}

function bars(series, count, top) {
  const width = (WIDTH - LEFT) / count;
  const made = [];
  for (let place = 0; place < count; place++) {
    let below = 0;
    series.forEach((each, n) => {
      const value = each.values[place] ?? 0;
      if (!value) return;
      const [from, to] = [y(below, top), y(below + value, top)];
      made.push(svg("rect", { class: `s${n + 1}`, x: LEFT + place * width + 1, y: to, width: Math.max(1, width - 2), height: Math.max(0, from - to) }));
      below += value;
    });
  }
  return made;
}

function lines(series, count, top) {
  const x = (place) => LEFT + ((place + 0.5) * (WIDTH - LEFT)) / count;
  return series.flatMap((each, n) => {
    const runs = [[]];
    each.values.forEach((value, place) => (value === null || value === undefined ? runs.push([]) : runs.at(-1).push([x(place), y(value, top)])));
    return runs.filter((run) => run.length).flatMap((run) => [
      svg("polyline", { class: `s${n + 1}`, points: run.map((point) => point.map((each) => each.toFixed(1)).join(",")).join(" ") }),
      ...(run.length === 1 ? [svg("circle", { class: `s${n + 1}`, cx: run[0][0], cy: run[0][1], r: 2.5 })] : []),
    ]);
  });
}

function y(value, top) {
  return HEIGHT - BOTTOM - (value / top) * (HEIGHT - BOTTOM - TOP);
}

function nice(most) {
  if (!most) return 1;
  const step = 10 ** Math.floor(Math.log10(most));
  return [1, 2, 5, 10].map((each) => each * step).find((each) => each >= most);
}

function when(time, times) {
  const long = times.at(-1) - times[0] > 2 * 86400;
  return new Date(1000 * time).toLocaleString([], long ? { month: "short", day: "numeric" } : { hour: "2-digit", minute: "2-digit" });
}

function table(title, series, times, shown) {
  const rows = times.map((time, place) => el("tr", {}, el("th", { scope: "row" }, new Date(1000 * time).toLocaleString([], { dateStyle: "short", timeStyle: "short" })), ...series.map((each) => el("td", { class: "n" }, shown(each.values[place] ?? null)))));
  const head = el("tr", {}, el("th", { scope: "col" }, "From"), ...series.map((each) => el("th", { scope: "col" }, each.name)));
  return el("details", {}, el("summary", {}, "As a table"), el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `${title}, as a table` }, el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows))));
}
