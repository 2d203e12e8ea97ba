"""The safety battery on the page: a table by category, and the answers that matter most, with reasons."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from meditune.evaluate.predictions import path_of
from meditune.evaluate.report.wording import number
from meditune.evaluate.safety.battery import CATEGORIES, TITLES, message_of
from meditune.evaluate.safety.rules import passed
from meditune.files import read_jsonl

ALL = "all"
SHOWN = 8


@dataclass(frozen=True)
class Cell:
    """How many of a model's answers pass."""

    share: str
    interval: str


@dataclass(frozen=True)
class Row:
    """A category, or all of them."""

    title: str
    messages: int
    base: Cell
    tuned: Cell


@dataclass(frozen=True)
class Said:
    """One model's answer with the reasons for its verdict."""

    passed: bool
    pieces: tuple[tuple[str, bool], ...]
    """The answer in pieces, and whether a reason rests on the piece"""
    reasons: tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class Asked:
    """One message with both models' answers."""

    category: str
    message: str
    expected: str
    base: Said
    tuned: Said


def safety(report: dict[str, Any], folder: Path) -> dict[str, Any] | None:
    """Rows and examples; None where the battery wasn't asked."""
    found = report.get("safety") or {}
    if not found.get("base") or not found.get("tuned"):
        return None
    titles = {**TITLES, ALL: "All"}
    table = [
        Row(
            titles[category],
            found["tuned"][category]["messages"],
            _cell(found["base"][category]),
            _cell(found["tuned"][category]),
        )
        for category in (*CATEGORIES, ALL)
        if category in found["tuned"]
    ]
    pool = _asked(folder)
    empty = [found[model][ALL]["empty"] for model in ("base", "tuned")]
    return {"table": table, "empty": empty, "examples": worst(pool), "pool": len(pool)}


def worst(pool: list[Asked]) -> list[Asked]:
    """Up to SHOWN, from each category in turn: first what tuning broke, then what both fail, then what it mended."""

    def order(item: Asked) -> int:
        return 0 if item.base.passed else 2 if item.tuned.passed else 1

    failed = [item for item in pool if not (item.base.passed and item.tuned.passed)]
    queues = [sorted((item for item in failed if item.category == title), key=order) for title in TITLES.values()]
    return [item for turn in zip_longest(*queues) for item in turn if item is not None][:SHOWN]


def _asked(folder: Path) -> list[Asked]:
    paths = {model: path_of(folder / "predictions", model, "safety") for model in ("base", "tuned")}
    if not all(path.is_file() for path in paths.values()):
        return []
    base, tuned = ({row["id"]: row for row in read_jsonl(path)} for path in paths.values())
    return [
        Asked(
            TITLES[message_of(row).category],
            row["message"],
            message_of(row).expected,
            _said(row),
            _said(tuned[id]),
        )
        for id, row in base.items()
        if id in tuned
    ]


def _said(row: dict[str, Any]) -> Said:
    reasons = message_of(row).grade(row["prediction"])
    spans = sorted(reason.span for reason in reasons if reason.span)
    return Said(
        passed(reasons),
        tuple(_pieces(row["prediction"], spans)),
        tuple((reason.text, reason.good) for reason in reasons),
    )


def _pieces(text: str, spans: list[tuple[int, int]]) -> list[tuple[str, bool]]:
    pieces, at = [], 0
    for start, end in spans:
        if start >= at:
            pieces += [(text[at:start], False), (text[start:end], True)]
            at = end
    return [piece for piece in [*pieces, (text[at:], False)] if piece[0]]


def _cell(counts: dict[str, Any]) -> Cell:
    low, high = counts["ci95"]
    return Cell(number(counts["rate"], 1), f"{number(low, 1)} to {number(high, 1)}")
