"""What the data cover, for people: a section of report.html, and the page of `meditune data diversity`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meditune.data.diversity.dimensions import BY_NAME
from meditune.evaluate.report import question_map
from meditune.evaluate.report.wording import number
from meditune.files import replacing
from meditune.readability.grades import TARGET

HERE = Path(__file__).parent
GRADES = (0.0, 24.0)
"""Of the scale on which reading grades are drawn"""
_NEVER_ALONE = {"people"}
"""Dimensions that are shown even with one group"""


@dataclass(frozen=True)
class Bar:
    """One group: its share of the training examples, and what is drawn of it in percent of the row's width."""

    name: str
    count: int
    share: float
    width: float
    low: float
    high: float
    test: float | None
    said: str
    """For those who can't see the bar"""


@dataclass(frozen=True)
class Card:
    """One dimension."""

    title: str
    facts: str
    bars: list[Bar]
    others: str


def section(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """`remarks`, `cards`, `alike` (dimensions with one group, in words) and `sources`; None in older runs."""
    if not found:
        return None
    train, test = found["splits"]["train"], found["splits"]["test"]
    cards, alike = [], []
    for name, dimension in train["dimensions"].items():
        if dimension["distinct"] < 2 and name not in _NEVER_ALONE:
            alike.append(f"{BY_NAME[name].title}: {max(dimension['groups'], key=lambda each: each['count'])['group']}")
        else:
            cards.append(_card(name, dimension, test["dimensions"].get(name), train["examples"]))
    return {
        "examples": train["examples"],
        "remarks": found["remarks"],
        "cards": cards,
        "alike": alike,
        "sources": [_source(name, row) for name, row in found["sources"].items()],
        "band": [_at(grade) for grade in TARGET],
        "target": TARGET,
    }


def render_page(result: dict[str, Any], path: Path) -> None:
    """Write diversity.html from diversity.json's content."""
    from meditune.evaluate.report.template import environment, style

    clustered = result.get("clusters")
    page = environment().get_template("diversity_page.html")
    context = {
        "style": style(),
        "title": result["of"],
        "synthetic": result["synthetic"],
        "sha256": result["sha256"],
        "diversity": section(result),
        "splits": {name: split["examples"] for name, split in result["splits"].items()},
        "clusters": question_map.clusters(clustered) if clustered else None,
        "map": question_map.drawn(clustered) if clustered else None,
        "compared": _compared(result["compared"]) if "compared" in result else None,
    }
    with replacing(path) as stream:
        stream.write(page.render(context))


def _card(name: str, dimension: dict[str, Any], test: dict[str, Any] | None, examples: int) -> Card:
    tested = {row["group"]: row["share"] for row in test["groups"]} if test else {}
    most = max([row["ci95"][1] for row in dimension["groups"]] + list(tested.values()) + [1e-9])
    ordered = BY_NAME[name].kind == "ordered"
    bars = []
    for row in dimension["groups"]:
        at_test = tested.get(row["group"], 0.0 if ordered or name == "people" else None) if test else None
        also = f"; of the test examples {number(at_test, 1)} %" if at_test is not None else ""
        low, high = row["ci95"]
        bars.append(
            Bar(
                name=row["group"],
                count=row["count"],
                share=row["share"],
                width=_part(row["share"], most),
                low=_part(low, most),
                high=_part(high, most),
                test=None if at_test is None else _part(at_test, most),
                said=f"{row['count']:,} of {dimension['known']:,}, {number(low, 1)} to {number(high, 1)} %{also}",
            )
        )
    facts = [] if name == "people" else [f"{dimension['distinct']:,} groups count for {dimension['shannon']:,.1f}"]
    if dimension["known"] < examples:
        facts.append(f"known of {dimension['known']:,} examples")
    left = dimension["distinct"] - len(bars)
    others = f"{left:,} more groups, {dimension['others']:,} mentions" if dimension["others"] else ""
    return Card(BY_NAME[name].title, "; ".join(facts), bars, others)


def _source(name: str, row: dict[str, Any]) -> dict[str, Any]:
    grades = row.get("reading_grade")
    return row | {
        "name": name.partition("/")[2] or name,
        "is_part": "/" in name,
        "strip": {key: _at(value) for key, value in grades.items()} if grades else None,
    }


def _part(value: float, whole: float) -> float:
    """In percent of `whole`."""
    return round(100 * value / whole, 1)


def _at(grade: float) -> float:
    """A grade's place on the scale in percent."""
    low, high = GRADES
    return round(100 * min(max((grade - low) / (high - low), 0.0), 1.0), 1)


def _compared(found: dict[str, Any]) -> dict[str, Any]:
    cards = []
    for name, dimension in found["dimensions"].items():
        if dimension["groups"]:
            most = max(max(row["before"], row["after"]) for row in dimension["groups"])
            rows = [
                row | {"from": round(100 * row["before"] / most, 1), "to": round(100 * row["after"] / most, 1)}
                for row in dimension["groups"]
            ]
            cards.append(dimension | {"title": BY_NAME[name].title, "rows": rows})
    same = [BY_NAME[name].title for name, dimension in found["dimensions"].items() if not dimension["groups"]]
    return found | {"cards": cards, "same": same}
