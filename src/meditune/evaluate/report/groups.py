"""Figures by subgroup for the page: for each telling metric a table, worst groups first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from meditune.evaluate.metrics import METRICS, Metric
from meditune.evaluate.report.table import Forest, forest
from meditune.evaluate.report.wording import interval, number, signed

SHOWN = ("accuracy", "macro_f1", "perplexity", "rougeL", "bleu", "length_ratio")
"""The first of them stands open; the others' figures are in report.json."""


@dataclass(frozen=True)
class Group:
    """One group's figures as text; groups that are too small have no intervals."""

    by: str
    name: str
    items: int
    base: str
    tuned: str
    within: str
    others: str
    delta: str
    change: str
    forest: Forest | None
    flags: list[str]


@dataclass(frozen=True)
class Table:
    """A metric's groups."""

    metric: Metric
    groups: list[Group]
    ranked: int
    small: list[str]


def tables(report: dict[str, Any]) -> list[Table]:
    """A table for each metric of SHOWN that was measured by subgroup."""
    found = (report.get("subgroups") or {}).get("metrics") or {}
    return [_table(METRICS[name], found[name]) for name in SHOWN if found.get(name)]


def _table(metric: Metric, rows: list[dict[str, Any]]) -> Table:
    large = [row for row in rows if "flags" in row]
    small = [
        f"{row['by']}: {row['group']} ({row['items']}; {number(row['tuned'], metric.digits)})"
        for row in rows
        if "flags" not in row
    ]
    return Table(metric, [_group(metric, row) for row in large], len(large), small)


def _group(metric: Metric, row: dict[str, Any]) -> Group:
    digits = metric.digits
    return Group(
        by=row["by"],
        name=row["group"],
        items=row["items"],
        base=number(row.get("base"), digits),
        tuned=number(row["tuned"], digits),
        within=" to ".join(number(end, digits) for end in row["tuned_ci95"]),
        others=number(row["others"], digits),
        delta=signed(row["delta"], digits) if "delta" in row else "–",
        change=interval(row["ci95"], digits) if "ci95" in row else "–",
        forest=forest(metric, row["delta"], *row["ci95"]) if "ci95" in row else None,
        flags=row["flags"],
    )
