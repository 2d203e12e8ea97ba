"""Data coverage, data quality and ratings by people: sections of report.html, each also a page of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from markupsafe import Markup, escape

from meditune.data.diversity import BY_NAME
from meditune.evaluate.report.before_after import Row, row_of
from meditune.evaluate.report.formatting import count, number, write_page
from meditune.files import read_json
from meditune.readability import TARGET
from meditune.statistics import Metric

WIDE, HIGH, MARGIN = 1000, 640, 24
COLOURS = 6
"""Number of sources with a colour of their own; further ones share the last colour"""
WORDS = 2
"""Number of words of a cluster's name on the map"""
_LINE = 20
_LETTER = 9.6
"""Approximate width of a letter of a label"""


def draw_clusters(result: dict[str, Any]) -> dict[str, Any] | None:
    """Return `svg`, and `legend` with (colour, source, points) of each source; None if there are too few questions."""
    points = result["points"]
    if not points:
        return None
    sources = [name for name, _ in Counter(point["source"] for point in points).most_common()]
    colour = {name: min(number, COLOURS - 1) for number, name in enumerate(sources)}
    names = {row["cluster"]: row["name"] for row in result["clusters"]}
    dots = []
    for point in points:
        x, y = _place(point["x"], point["y"])
        words = f"{point['question']} ({point['source']}; {names[point['cluster']]})".lstrip()
        title = f"<title>{escape(words)}</title>"
        dots.append(f'<circle class="s{colour[point["source"]]}" cx="{x:.0f}" cy="{y:.0f}" r="4">{title}</circle>')
    labels = "".join(
        f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="middle">{escape(name)}</text>'
        for name, x, y in _labels(points, names)
    )
    clusters = "; ".join(f"{row['name']} ({row['questions']})" for row in result["clusters"])
    head = f"<title>Map of {len(points)} questions by meaning. Clusters: {escape(clusters)}</title>"
    svg = f'<svg class="map" role="img" viewBox="0 0 {WIDE} {HIGH}">{head}{"".join(dots)}{labels}</svg>'
    counts = Counter(point["source"] for point in points)
    return {"svg": Markup(svg), "legend": [(colour[name], name, counts[name]) for name in sources]}


def clusters(result: dict[str, Any]) -> dict[str, Any]:
    """Return the table of clusters with their share of each set, and the diversity of each set."""
    totals = Counter[str]()
    for row in result["clusters"]:
        totals.update(row["where"])
    most = max(100 * count / totals[name] for row in result["clusters"] for name, count in row["where"].items())
    rows = [
        row | {"shares": {name: 100 * row["where"].get(name, 0) / total for name, total in totals.items()}}
        for row in result["clusters"]
    ]
    return result | {"rows": rows, "sets": list(totals), "most": most}


def _place(x: float, y: float) -> tuple[float, float]:
    return MARGIN + x * (WIDE - 2 * MARGIN), HIGH - MARGIN - y * (HIGH - 2 * MARGIN)


def _labels(points: list[dict[str, Any]], names: dict[int, str]) -> list[tuple[str, float, float]]:
    """Return each cluster's name and position: the middle of its points, moved up or down to avoid overlaps."""
    placed: list[tuple[str, float, float]] = []
    labels = []
    for cluster, name in names.items():
        members = [point for point in points if point["cluster"] == cluster]
        if members:
            x, y = _place(*(median(point[axis] for point in members) for axis in ("x", "y")))
            name = ", ".join(name.split(", ")[:WORDS])
            half = len(name) * _LETTER / 2
            labels.append((name, min(max(x, half), WIDE - half), y))
    for name, x, y in sorted(labels, key=lambda label: label[2]):
        free = [y + step * _LINE / 2 for step in sorted(range(-24, 25), key=abs)]
        clear = (at for at in free if _LINE <= at <= HIGH - 6 and not any(_touch(name, x, at, *one) for one in placed))
        placed.append((name, x, next(clear, y)))
    return placed


def _touch(name: str, x: float, y: float, other: str, other_x: float, other_y: float) -> bool:
    return abs(y - other_y) < _LINE and abs(x - other_x) < (len(name) + len(other)) * _LETTER / 2 + 6


HERE = Path(__file__).parent
GRADES = (0.0, 24.0)
"""Ends of the scale on which reading grades are drawn"""
_NEVER_ALONE = {"people"}
"""Dimensions that are shown even if they have only one group"""


def _with_new_key(rows: Sequence[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Return rows with `key`, which earlier versions of Meditune stored as `said`."""
    return [{key: row.get("said"), **row} for row in rows]


def diversity_section(survey: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return `remarks`, `cards`, `alike` (dimensions with one group, as text) and `sources`; None for older runs."""
    if not survey:
        return None
    train, test = survey["splits"]["train"], survey["splits"]["test"]
    cards, alike = [], []
    for name, dimension in train["dimensions"].items():
        if dimension["distinct"] < 2 and name not in _NEVER_ALONE:
            alike.append(f"{BY_NAME[name].title}: {max(dimension['groups'], key=lambda each: each['count'])['group']}")
        else:
            cards.append(_card(name, dimension, test["dimensions"].get(name), train["examples"]))
    return {
        "examples": train["examples"],
        "remarks": _with_new_key(survey["remarks"], "message"),
        "cards": cards,
        "alike": alike,
        "sources": [_source(name, row) for name, row in survey["sources"].items()],
        "band": [_at(grade) for grade in TARGET],
        "target": TARGET,
    }


def render_page(result: dict[str, Any], path: Path) -> None:
    """Write diversity.html from the contents of diversity.json."""
    clustered = result.get("clusters")
    write_page(
        path,
        "diversity_page.html",
        title=result["of"],
        synthetic=result["synthetic"],
        sha256=result["sha256"],
        diversity=diversity_section(result),
        splits={name: split["examples"] for name, split in result["splits"].items()},
        clusters=clusters(clustered) if clustered else None,
        map=draw_clusters(clustered) if clustered else None,
        compared=_compared(result["compared"]) if "compared" in result else None,
    )


def _card(name: str, dimension: dict[str, Any], test: dict[str, Any] | None, examples: int) -> dict[str, Any]:
    tested = {row["group"]: row["share"] for row in test["groups"]} if test else {}
    most = max([row["ci95"][1] for row in dimension["groups"]] + list(tested.values()) + [1e-9])
    ordered = BY_NAME[name].kind == "ordered"
    bars = []
    for row in dimension["groups"]:
        at_test = tested.get(row["group"], 0.0 if ordered or name == "people" else None) if test else None
        also = f"; {number(at_test, 1)} % of the test examples" if at_test is not None else ""
        low, high = row["ci95"]
        bars.append(
            {
                "name": row["group"],
                "share": row["share"],
                "width": _part(row["share"], most),
                "low": _part(low, most),
                "high": _part(high, most),
                "test": None if at_test is None else _part(at_test, most),
                "description": f"{row['count']:,} of {dimension['known']:,}, {number(low, 1)} to {number(high, 1)} "
                f"%{also}",
            }
        )
    distinct, effective = dimension["distinct"], dimension["shannon"]
    facts = [] if name == "people" else [f"{distinct:,} groups, effective number {effective:,.1f}"]
    if dimension["known"] < examples:
        facts.append(f"known for {dimension['known']:,} examples")
    left = dimension["distinct"] - len(bars)
    others = f"{left:,} more groups, {dimension['others']:,} mentions" if dimension["others"] else ""
    return {"title": BY_NAME[name].title, "facts": "; ".join(facts), "bars": bars, "others": others}


def _source(name: str, row: dict[str, Any]) -> dict[str, Any]:
    grades = row.get("reading_grade")
    return row | {
        "name": name.partition("/")[2] or name,
        "is_part": "/" in name,
        "strip": {key: _at(value) for key, value in grades.items()} if grades else None,
    }


def _part(value: float, total: float) -> float:
    """Return `value` in percent of `total`."""
    return round(100 * value / total, 1)


def _at(grade: float) -> float:
    """Return a grade's position on the scale in percent."""
    low, high = GRADES
    return round(100 * min(max((grade - low) / (high - low), 0.0), 1.0), 1)


def _compared(survey: dict[str, Any]) -> dict[str, Any]:
    cards = []
    for name, dimension in survey["dimensions"].items():
        if dimension["groups"]:
            most = max(max(row["before"], row["after"]) for row in dimension["groups"])
            rows = [
                row | {"from": round(100 * row["before"] / most, 1), "to": round(100 * row["after"] / most, 1)}
                for row in dimension["groups"]
            ]
            cards.append(dimension | {"title": BY_NAME[name].title, "rows": rows})
    same = [BY_NAME[name].title for name, dimension in survey["dimensions"].items() if not dimension["groups"]]
    return survey | {"cards": cards, "same": same}


WIDTH, HEIGHT = 100, 42
"""Size of the plot of near-duplicates by threshold, in its own units"""
NAMES = {
    "drop": "dropped",
    "mend": "mended",
    "flag": "flagged",
    "group": "moved into one group",
    "merge": "merged",
    "keep": "kept",
    "off": "off",
}


def quality_section(quality: dict[str, Any]) -> dict[str, Any] | None:
    """Return the template's content from quality.json; None if quality control didn't run."""
    audit = quality.get("audit")
    if not audit:
        return None
    rules = [{"name": name.replace("_", " "), **_rule(row)} for name, row in audit["rules"].items()]
    return {
        "rows": count(audit["rows"]),
        "dropped": count(audit["dropped"]),
        "changed": count(audit["changed"]),
        "rules": rules,
        "shown": [rule for rule in rules if rule["examples"]],
        "alike": number(audit["alike"], 2),
        "thresholds": _bars(audit["near_duplicates"], audit["alike"]),
        "shared": _shared(quality.get("shared") or {}),
    }


def render_quality(folder: Path) -> Path:
    """Write `audit.html`, one file that works offline, to an audit's folder and return its path."""
    from meditune import __version__
    from meditune.evaluate.report import run_sections

    quality, path = read_json(folder / "quality.json"), folder / "audit.html"
    write_page(
        path,
        "quality_page.html",
        title=quality["recipe"],
        version=__version__,
        synthetic=quality["synthetic"],
        not_split=quality["not_split"],
        sources=run_sections.sources(quality),
        quality=quality_section(quality),
    )
    return path


def _rule(row: dict[str, Any]) -> dict[str, Any]:
    done = [f"{count(times)} {NAMES.get(action, action)}" for action, times in row["done"].items()]
    return {
        "meaning": row["meaning"],
        "action": NAMES.get(row["action"], row["action"]),
        "rows": count(row["rows"]),
        "share": f"{number(100 * row['share'], 1)} %",
        "done": ", ".join(done) or "nothing found",
        "examples": row["examples"],
    }


def _bars(thresholds: list[dict[str, Any]], chosen: float) -> list[dict[str, Any]]:
    """Return the number of pairs at or above each threshold, with its bar's position and height."""
    most = max((each["pairs"] for each in thresholds), default=0)
    step = WIDTH / max(len(thresholds), 1)
    return [
        {
            "alike": number(each["alike"], 2),
            "pairs": count(each["pairs"]),
            "left": round(at * step + step * 0.15, 2),
            "width": round(step * 0.7, 2),
            "height": round(HEIGHT * each["pairs"] / most, 2) if most else 0,
            "chosen": abs(each["alike"] - chosen) < 1e-9,
        }
        for at, each in enumerate(thresholds)
    ]


def _shared(shared: dict[str, dict[str, int]]) -> list[tuple[str, list[tuple[str, str]]]]:
    return [(pair, [(trait, count(number_)) for trait, number_ in row.items()]) for pair, row in shared.items()]


OVERALL = "All criteria"
DISPUTES = 10
"""Maximum number of disputed answers on the page"""
TITLES = {"base": "Base", "tuned": "Tuned", "reference": "Reference"}


def review_rows(results: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the template's content from the results of ratings; None if there are no ratings."""
    if not results or not results["ratings"]:
        return None
    return {
        "facts": results,
        "rows": [_row(OVERALL, "", results["overall"])]
        + [_row(axis["title"], axis["question"], axis) for axis in results["axes"].values()],
        "axes": [_shares(axis) for axis in results["axes"].values()],
        "agreement": [_agreement(axis) for axis in results["axes"].values()],
        "disputed": _with_new_key(results["disputed"][:DISPUTES], "votes"),
        "titles": TITLES,
    }


def _row(title: str, meaning: str, axis: dict[str, Any]) -> dict[str, Any]:
    """Return the scores of each origin, and the comparison of tuned and base as in the report's table."""
    origins = axis["origins"]
    base, tuned, reference = (origins.get(name) or {} for name in TITLES)
    metric = Metric(title, title, "up", 1, meaning)
    compared = axis["difference"]
    row: Row = row_of(metric, base.get("score"), tuned.get("score"), compared, False)
    return {
        "row": row,
        "own": {name: _interval(figures.get("ci95")) for name, figures in origins.items()},
        "reference": number(reference.get("score"), 1),
    }


def _shares(axis: dict[str, Any]) -> dict[str, Any]:
    """Return how often each option was chosen, as shares of the ratings other than "can't judge"."""
    rows = []
    for name, figures in axis["origins"].items():
        total = sum(figures["counts"])
        rows.append(
            {
                "name": TITLES.get(name, name),
                "cells": [(count, count / total if total else 0.0) for count in figures["counts"]],
                "cannot": figures["cannot"],
            }
        )
    return {"title": axis["title"], "options": axis["options"], "rows": rows}


def _agreement(axis: dict[str, Any]) -> dict[str, Any]:
    found = axis["agreement"]
    return {
        "title": axis["title"],
        "level": axis["level"],
        "cells": [
            (name, _figure(figure), _interval((figure or {}).get("ci95")), (figure or {}).get("items", 0))
            for name, figure in (("Krippendorff's alpha", found["alpha"]), ("Fleiss' kappa", found["fleiss"]))
        ],
        "pairs": ", ".join(
            f"{' and '.join(pair['raters'])}: {_figure(pair)} ({pair['items']})" for pair in found["cohen"]
        ),
    }


def _figure(figure: dict[str, Any] | None) -> str:
    return "–" if not figure or figure["value"] is None else number(figure["value"], 2)


def _interval(bounds: Any) -> str:
    if not bounds:
        return ""
    digits = 1 if max(map(abs, bounds)) > 1 else 2
    return f"{number(bounds[0], digits)} to {number(bounds[1], digits)}"


def render_review(results: dict[str, Any], path: Path) -> None:
    """Write the results as one HTML file that works offline."""
    write_page(path, "review_page.html", review=review_rows(results), results=results)
