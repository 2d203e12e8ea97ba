"""How a service does, out of its store: answers, times, outcomes, feedback, versions, servers, drift, updates.

Figures and names only, but for the masked questions that bear out an alert.

What programs that share a store let each other know: which servers run, what was last updated, what drifted.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from meditune.store.answers import SHADOW
from meditune.store.database import Database


@dataclass(frozen=True)
class Note:
    """The latest word on one thing."""

    name: str
    """KIND/WHICH: server/..., drift/..., update/..."""
    time: float
    """Seconds since 1970"""
    facts: dict[str, Any]


class Notes:
    """The notes in a store."""

    def __init__(self, base: Database) -> None:
        self.base = base

    def put(self, name: str, facts: Mapping[str, Any]) -> None:
        """Write a note in the place of an earlier one of that name."""
        with self.base.opened() as base:
            base.execute(
                "INSERT INTO notes VALUES (?, ?, ?) "
                "ON CONFLICT (name) DO UPDATE SET time = excluded.time, facts = excluded.facts",
                (name, time.time(), json.dumps(dict(facts))),
            )

    def all(self, kind: str) -> list[Note]:
        """The notes of a kind, the latest first."""
        with self.base.opened() as base:
            rows = base.execute(
                "SELECT * FROM notes WHERE name LIKE ? ORDER BY time DESC, name", (f"{kind}/%",)
            ).fetchall()
        return [Note(row["name"], row["time"], json.loads(row["facts"])) for row in rows]

    def remove(self, name: str) -> None:
        """Take a note out, if it is there."""
        with self.base.opened() as base:
            base.execute("DELETE FROM notes WHERE name = ?", (name,))


MOST = 20_000
"""The latest answers that are looked at"""
BINS = 24
LOST_S = 120.0
"""A server that wasn't heard of for so long has ended without a word"""
_HOUR_S = 3600.0


@dataclass(frozen=True)
class _Seen:
    """An answer's figures."""

    time: float
    version: tuple[str, str]
    outcome: str
    facts: Mapping[str, Any]

    def timing(self, name: str) -> float | None:
        """Seconds of a part of it, or None."""
        return number((self.facts.get("timings") or {}).get(name))

    def tokens(self, kind: str) -> float:
        """Tokens of prompt or completion."""
        told = self.facts.get("tokens")
        return number(told.get(kind) if isinstance(told, dict) else self.facts.get(f"{kind}_tokens")) or 0


def overview(base: Database, hours: float = 24.0, now: float | None = None) -> dict[str, Any]:
    """`hours`, `answers`, `feedback`, `versions`, `over_time`, `servers`, `drift`, `updates`. Ready for JSON.

    Of the last so many hours; a clock that jumped shifts what these are and does no harm.
    """
    now = time.time() if now is None else now
    since = now - hours * _HOUR_S
    seen, said = _answers(base, since), _feedback(base, since)
    notes = Notes(base)
    return {
        "hours": hours,
        "time": now,
        "answers": _counted(seen),
        "feedback": _said(said, len(seen)),
        "versions": _versions(seen),
        "over_time": _over_time(seen, said, since, now),
        "servers": [_server(note, now) for note in notes.all("server")],
        "drift": [_told(note) for note in notes.all("drift")],
        "updates": [_told(note) for note in notes.all("update")],
    }


def quantile(values: Sequence[float], share: float) -> float | None:
    """The value below which so large a share lies (nearest rank); None of nothing."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else None


def number(value: Any) -> float | None:
    """A finite number, or None for whatever else it is."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None


def _answers(base: Database, since: float) -> list[_Seen]:
    with base.opened() as connection:
        rows = connection.execute(
            "SELECT time, model, index_content, outcome, facts FROM answers "
            "WHERE time >= ? AND route <> ? ORDER BY time DESC LIMIT ?",
            (since, SHADOW, MOST),
        ).fetchall()
    return [
        _Seen(row["time"], (row["model"], row["index_content"]), row["outcome"], json.loads(row["facts"]))
        for row in rows
    ]


def _feedback(base: Database, since: float) -> list[tuple[float, str, bool, bool]]:
    """When, rating, whether with a correction, whether an expert's."""
    with base.opened() as connection:
        rows = connection.execute(
            "SELECT time, rating, correction, decision, expert FROM feedback WHERE time >= ? "
            "ORDER BY time DESC LIMIT ?",
            (since, MOST),
        ).fetchall()
    return [(row[0], row[1], bool(row[2] or row[3]), bool(row[4])) for row in rows]


def _counted(seen: Sequence[_Seen]) -> dict[str, Any]:
    totals, first = _known(seen, "total"), _known(seen, "first_token")
    sentences = sum(number(each.facts.get("sentences")) or 0 for each in seen)
    supported = sum(number(each.facts.get("supported")) or 0 for each in seen)
    likeness = [value for each in seen if (value := number(each.facts.get("retrieval"))) is not None]
    outcomes = Counter(each.outcome for each in seen)
    return {
        "count": len(seen),
        "complete": len(seen) < MOST,
        "outcomes": {name: outcomes[name] for name in ("answered", "abstained", "escalated", "declined")},
        "seconds": {"p50": quantile(totals, 0.5), "p95": quantile(totals, 0.95)},
        "first_token": {"p50": quantile(first, 0.5), "p95": quantile(first, 0.95)},
        "tokens": {kind: sum(each.tokens(kind) for each in seen) for kind in ("prompt", "completion")},
        "sentences": sentences,
        "unsupported": sentences - supported,
        "retrieval": {"p10": quantile(likeness, 0.1), "p50": quantile(likeness, 0.5)},
    }


def _said(said: Sequence[tuple[float, str, bool, bool]], answers: int) -> dict[str, Any]:
    ratings = Counter(rating for _, rating, _, _ in said)
    return {
        "up": ratings["up"],
        "down": ratings["down"],
        "corrections": sum(corrected for _, _, corrected, _ in said),
        "experts": sum(expert for *_, expert in said),
        "rated": len(said) / answers if answers else None,
    }


def _versions(seen: Sequence[_Seen]) -> list[dict[str, Any]]:
    """Which models and indexes answered, the latest first."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for each in seen:
        row = found.setdefault(
            each.version, {"model": each.version[0], "index": each.version[1], "answers": 0, "last": each.time}
        )
        row["answers"] += 1
        row["first"] = each.time
    return list(found.values())


def _over_time(
    seen: Sequence[_Seen], said: Sequence[tuple[float, str, bool, bool]], since: float, now: float
) -> list[dict[str, Any]]:
    """The span in equal parts, oldest first."""
    width = (now - since) / BINS
    parts: list[list[_Seen]] = [[] for _ in range(BINS)]
    for each in seen:
        if (place := int((each.time - since) // width)) < BINS:
            parts[place].append(each)
    ratings = Counter((int((when - since) // width), rating) for when, rating, _, _ in said)
    return [
        {
            "from": since + place * width,
            **{name: figures[name] for name in ("count", "outcomes", "sentences", "unsupported")},
            "p95": figures["seconds"]["p95"],
            "up": ratings[place, "up"],
            "down": ratings[place, "down"],
        }
        for place, figures in enumerate(map(_counted, parts))
    ]


def _known(seen: Iterable[_Seen], name: str) -> list[float]:
    return [value for each in seen if (value := each.timing(name)) is not None]


def _server(note: Note, now: float) -> dict[str, Any]:
    return _told(note) | {"alive": abs(now - note.time) < LOST_S}


def _told(note: Note) -> dict[str, Any]:
    return {"name": note.name.partition("/")[2], "time": note.time} | note.facts
