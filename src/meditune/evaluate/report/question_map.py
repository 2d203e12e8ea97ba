"""Clusters of questions for the page: a map as SVG, coloured by source, and a table."""

from __future__ import annotations

from collections import Counter
from statistics import median
from typing import Any

from markupsafe import Markup, escape

WIDE, HIGH, MARGIN = 1000, 640, 24
COLOURS = 6
"""Sources with a colour of their own; further ones share the last"""
WORDS = 2
"""Of a cluster's name, on the map"""
_LINE = 20
_LETTER = 9.6
"""Width of a letter of a label, about"""


def drawn(found: dict[str, Any]) -> dict[str, Any] | None:
    """`svg`, and `legend`: (colour, source, points) of each source; None where there are too few questions."""
    points = found["points"]
    if not points:
        return None
    sources = [name for name, _ in Counter(point["source"] for point in points).most_common()]
    colour = {name: min(number, COLOURS - 1) for number, name in enumerate(sources)}
    names = {row["cluster"]: row["name"] for row in found["clusters"]}
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
    clusters = "; ".join(f"{row['name']} ({row['questions']})" for row in found["clusters"])
    head = f"<title>Map of {len(points)} questions by meaning. Clusters: {escape(clusters)}</title>"
    svg = f'<svg class="map" role="img" viewBox="0 0 {WIDE} {HIGH}">{head}{"".join(dots)}{labels}</svg>'
    counts = Counter(point["source"] for point in points)
    return {"svg": Markup(svg), "legend": [(colour[name], name, counts[name]) for name in sources]}


def clusters(found: dict[str, Any]) -> dict[str, Any]:
    """The table: each cluster with its share of each set, and how varied each set is."""
    wholes = Counter[str]()
    for row in found["clusters"]:
        wholes.update(row["where"])
    most = max(100 * count / wholes[name] for row in found["clusters"] for name, count in row["where"].items())
    rows = [
        row | {"shares": {name: 100 * row["where"].get(name, 0) / whole for name, whole in wholes.items()}}
        for row in found["clusters"]
    ]
    return found | {"rows": rows, "sets": list(wholes), "most": most}


def _place(x: float, y: float) -> tuple[float, float]:
    return MARGIN + x * (WIDE - 2 * MARGIN), HIGH - MARGIN - y * (HIGH - 2 * MARGIN)


def _labels(points: list[dict[str, Any]], names: dict[int, str]) -> list[tuple[str, float, float]]:
    """Each cluster's name in the middle of its points, moved up or down where it would lie on another one."""
    placed: list[tuple[str, float, float]] = []
    wanted = []
    for cluster, name in names.items():
        members = [point for point in points if point["cluster"] == cluster]
        if members:
            x, y = _place(*(median(point[axis] for point in members) for axis in ("x", "y")))
            name = ", ".join(name.split(", ")[:WORDS])
            half = len(name) * _LETTER / 2
            wanted.append((name, min(max(x, half), WIDE - half), y))
    for name, x, y in sorted(wanted, key=lambda label: label[2]):
        free = [y + step * _LINE / 2 for step in sorted(range(-24, 25), key=abs)]
        clear = (at for at in free if _LINE <= at <= HIGH - 6 and not any(_touch(name, x, at, *one) for one in placed))
        placed.append((name, x, next(clear, y)))
    return placed


def _touch(name: str, x: float, y: float, other: str, other_x: float, other_y: float) -> bool:
    return abs(y - other_y) < _LINE and abs(x - other_x) < (len(name) + len(other)) * _LETTER / 2 + 6
