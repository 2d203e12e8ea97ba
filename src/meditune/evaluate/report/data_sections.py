"""Sections of report.html about data coverage, data quality and ratings by people; each can also be a separate page."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from meditune import __version__
from meditune.data.diversity import BY_NAME
from meditune.evaluate.report.before_after import Row, row_of
from meditune.evaluate.report.formatting import write_page
from meditune.files import read_json
from meditune.readability import TARGET
from meditune.statistics import Metric

WIDE, HIGH, MARGIN = 1000, 640, 24
COLOURS = 6
"""Number of colours for sources; the last colour is for all remaining sources"""
WORDS = 2
"""Maximum number of words of a cluster's name that the map shows"""
_LINE = 20
_LETTER = 9.6
"""Approximate width of a character in a label"""


def cluster_map(result: dict[str, Any]) -> dict[str, Any] | None:
    """Return the map's `dots`, `labels` and `legend` (colour, name and number of points of each source), or None."""
    points = result["points"]
    if not points:
        return None
    counts = Counter(point["source"] for point in points)
    colour = {name: min(number, COLOURS - 1) for number, (name, _) in enumerate(counts.most_common())}
    names = {row["cluster"]: row["name"] for row in result["clusters"]}
    dots = []
    for point in points:
        title = f"{point['question']} ({point['source']}; {names[point['cluster']]})".lstrip()
        dots.append((colour[point["source"]], *_place(point["x"], point["y"]), title))
    return {
        "dots": dots,
        "labels": _labels(points, names),
        "legend": [(number, name, counts[name]) for name, number in colour.items()],
    }


def clusters(result: dict[str, Any]) -> dict[str, Any]:
    """Return `result` with `rows` (clusters with their `shares` of each set), `sets` and the greatest share, `most`."""
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

    def is_free(name: str, x: float, y: float) -> bool:
        return _LINE <= y <= HIGH - 6 and not any(
            abs(y - other_y) < _LINE and abs(x - other_x) < (len(name) + len(other)) * _LETTER / 2 + 6
            for other, other_x, other_y in placed
        )

    for name, x, y in sorted(labels, key=lambda label: label[2]):
        near = [y + step * _LINE / 2 for step in sorted(range(-24, 25), key=abs)]
        placed.append((name, x, next((at for at in near if is_free(name, x, at)), y)))
    return placed


GRADES = (0.0, 24.0)
"""Ends of the scale on which reading grades are drawn"""
_NEVER_ALONE = {"people"}
"""Dimensions that are shown even if they have only one group"""


def diversity_section(survey: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return `remarks`, `cards`, `alike` (dimensions with one group, as text) and `sources`; None without a survey."""
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
        "remarks": survey["remarks"],
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
        result=result,
        diversity=diversity_section(result),
        dimensions=BY_NAME,
        clusters=clusters(clustered) if clustered else None,
        map=cluster_map(clustered) if clustered else None,
    )


def _card(name: str, dimension: dict[str, Any], test: dict[str, Any] | None, examples: int) -> dict[str, Any]:
    """Return a card, whose `bars` are groups of the training split, each with the group's share of the test split."""
    tested = {row["group"]: row["share"] for row in test["groups"]} if test else {}
    unseen = 0.0 if test and (BY_NAME[name].kind == "ordered" or name == "people") else None
    distinct, effective, known = dimension["distinct"], dimension["shannon"], dimension["known"]
    facts = [] if name == "people" else [f"{distinct:,} groups, effective number {effective:,.1f}"]
    if known < examples:
        facts.append(f"known for {known:,} examples")
    left = distinct - len(dimension["groups"])
    return {
        "title": BY_NAME[name].title,
        "facts": "; ".join(facts),
        "bars": [(row, tested.get(row["group"], unseen)) for row in dimension["groups"]],
        "most": max([row["ci95"][1] for row in dimension["groups"]] + list(tested.values()) + [1e-9]),
        "known": known,
        "others": f"{left:,} more groups, {dimension['others']:,} mentions" if dimension["others"] else "",
    }


def _source(name: str, row: dict[str, Any]) -> dict[str, Any]:
    grades = row.get("reading_grade")
    return row | {
        "name": name.partition("/")[2] or name,
        "is_part": "/" in name,
        "strip": {key: _at(value) for key, value in grades.items()} if grades else None,
    }


def _at(grade: float) -> float:
    """Return a grade's position on the scale in percent."""
    low, high = GRADES
    return round(100 * min(max((grade - low) / (high - low), 0.0), 1.0), 1)


def render_quality(folder: Path) -> Path:
    """Write `audit.html`, one file that works offline, to an audit's folder and return the file's path."""
    path = folder / "audit.html"
    write_page(path, "quality_page.html", quality=read_json(folder / "quality.json"), version=__version__)
    return path


def review_rows(results: dict[str, Any] | None) -> list[tuple[Row, dict[str, Any]]]:
    """Return for each criterion a table row that compares tuned with base, and the scores of each origin."""
    if not results or not results["ratings"]:
        return []
    found = []
    for axis in ({"title": "All criteria", "question": ""} | results["overall"], *results["axes"].values()):
        metric = Metric(axis["title"], axis["title"], "up", 1, axis["question"])
        base, tuned = ((axis["origins"].get(name) or {}).get("score") for name in ("base", "tuned"))
        found.append((row_of(metric, base, tuned, axis["difference"], False), axis["origins"]))
    return found


def render_review(results: dict[str, Any], path: Path) -> None:
    """Write the results of a review to `path`, as one HTML file that works offline."""
    write_page(path, "review_page.html", review=results, review_rows=review_rows(results))
