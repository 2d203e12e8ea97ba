"""An overview of a service from its store: answers, latencies, outcomes, feedback, versions, servers, drift, updates.

It contains only numbers and names, apart from the masked questions that support an alert. Programs that share a store
exchange notes through it: which servers run, what was last updated, what drifted.
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
    """The latest status that a program stored under one name."""

    name: str
    """KIND/NAME: server/..., drift/..., update/..."""
    time: float
    """Seconds since 1970"""
    facts: dict[str, Any]


class Notes:
    """The notes in a store."""

    def __init__(self, base: Database) -> None:
        self.base = base

    def put(self, name: str, facts: Mapping[str, Any]) -> None:
        """Store a note; it replaces an earlier note of that name."""
        with self.base.opened() as base:
            base.execute(
                "INSERT INTO notes VALUES (?, ?, ?) "
                "ON CONFLICT (name) DO UPDATE SET time = excluded.time, facts = excluded.facts",
                (name, time.time(), json.dumps(dict(facts))),
            )

    def all(self, kind: str) -> list[Note]:
        """Return the notes of a kind, latest first."""
        with self.base.opened() as base:
            rows = base.execute(
                "SELECT * FROM notes WHERE name LIKE ? ORDER BY time DESC, name", (f"{kind}/%",)
            ).fetchall()
        return [Note(row["name"], row["time"], json.loads(row["facts"])) for row in rows]

    def remove(self, name: str) -> None:
        """Delete a note if it exists."""
        with self.base.opened() as base:
            base.execute("DELETE FROM notes WHERE name = ?", (name,))


MAX_ANSWERS = 20_000
"""The largest number of answers that are evaluated, the latest ones"""
BINS = 24
HEARTBEAT_TIMEOUT_S = 120.0
"""Without a note for this many seconds, a server counts as ended"""
_HOUR_S = 3600.0


@dataclass(frozen=True)
class _Seen:
    """The metrics of one answer."""

    time: float
    version: tuple[str, str]
    outcome: str
    facts: Mapping[str, Any]

    def timing(self, name: str) -> float | None:
        """Return the seconds of one stage of the answer, or None."""
        return number((self.facts.get("timings") or {}).get(name))

    def tokens(self, kind: str) -> float:
        """Return the number of tokens of the prompt or the completion."""
        tokens = self.facts.get("tokens")
        return number(tokens.get(kind) if isinstance(tokens, dict) else self.facts.get(f"{kind}_tokens")) or 0


def overview(base: Database, hours: float = 24.0, now: float | None = None) -> dict[str, Any]:
    """Return the overview of the last `hours` hours, ready for JSON.

    Its keys are `hours`, `time`, `answers`, `feedback`, `versions`, `over_time`, `servers`, `drift` and `updates`. A
    clock that jumps shifts the time span and does no other harm.
    """
    now = time.time() if now is None else now
    since = now - hours * _HOUR_S
    seen, feedback = _answers(base, since), _feedback(base, since)
    notes = Notes(base)
    return {
        "hours": hours,
        "time": now,
        "answers": _counted(seen),
        "feedback": _feedback_counts(feedback, len(seen)),
        "versions": _versions(seen),
        "over_time": _over_time(seen, feedback, since, now),
        "servers": [_server(note, now) for note in notes.all("server")],
        "drift": [_note_facts(note) for note in notes.all("drift")],
        "updates": [_note_facts(note) for note in notes.all("update")],
    }


def quantile(values: Sequence[float], share: float) -> float | None:
    """Return the quantile of the values for this share (nearest rank); None without values."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else None


def number(value: Any) -> float | None:
    """Return the value as a float if it is a finite number, else None."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None


def _answers(base: Database, since: float) -> list[_Seen]:
    with base.opened() as connection:
        rows = connection.execute(
            "SELECT time, model, index_content, outcome, facts FROM answers "
            "WHERE time >= ? AND route <> ? ORDER BY time DESC LIMIT ?",
            (since, SHADOW, MAX_ANSWERS),
        ).fetchall()
    return [
        _Seen(row["time"], (row["model"], row["index_content"]), row["outcome"], json.loads(row["facts"]))
        for row in rows
    ]


def _feedback(base: Database, since: float) -> list[tuple[float, str, bool, bool]]:
    """Return time, rating, whether there is a correction, and whether an expert gave it, of each feedback."""
    with base.opened() as connection:
        rows = connection.execute(
            "SELECT time, rating, correction, decision, expert FROM feedback WHERE time >= ? "
            "ORDER BY time DESC LIMIT ?",
            (since, MAX_ANSWERS),
        ).fetchall()
    return [(row[0], row[1], bool(row[2] or row[3]), bool(row[4])) for row in rows]


def _counted(seen: Sequence[_Seen]) -> dict[str, Any]:
    totals, first = _known(seen, "total"), _known(seen, "first_token")
    sentences = sum(number(each.facts.get("sentences")) or 0 for each in seen)
    supported = sum(number(each.facts.get("supported")) or 0 for each in seen)
    similarities = [value for each in seen if (value := number(each.facts.get("retrieval"))) is not None]
    outcomes = Counter(each.outcome for each in seen)
    return {
        "count": len(seen),
        "complete": len(seen) < MAX_ANSWERS,
        "outcomes": {name: outcomes[name] for name in ("answered", "abstained", "escalated", "declined")},
        "seconds": {"p50": quantile(totals, 0.5), "p95": quantile(totals, 0.95)},
        "first_token": {"p50": quantile(first, 0.5), "p95": quantile(first, 0.95)},
        "tokens": {kind: sum(each.tokens(kind) for each in seen) for kind in ("prompt", "completion")},
        "sentences": sentences,
        "unsupported": sentences - supported,
        "retrieval": {"p10": quantile(similarities, 0.1), "p50": quantile(similarities, 0.5)},
    }


def _feedback_counts(feedback: Sequence[tuple[float, str, bool, bool]], answers: int) -> dict[str, Any]:
    ratings = Counter(rating for _, rating, _, _ in feedback)
    return {
        "up": ratings["up"],
        "down": ratings["down"],
        "corrections": sum(corrected for _, _, corrected, _ in feedback),
        "experts": sum(expert for *_, expert in feedback),
        "rated": len(feedback) / answers if answers else None,
    }


def _versions(seen: Sequence[_Seen]) -> list[dict[str, Any]]:
    """Return the models and indexes that answered, latest first."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for each in seen:
        row = found.setdefault(
            each.version, {"model": each.version[0], "index": each.version[1], "answers": 0, "last": each.time}
        )
        row["answers"] += 1
        row["first"] = each.time
    return list(found.values())


def _over_time(
    seen: Sequence[_Seen], feedback: Sequence[tuple[float, str, bool, bool]], since: float, now: float
) -> list[dict[str, Any]]:
    """Return the metrics of BINS equal parts of the time span, oldest first."""
    width = (now - since) / BINS
    parts: list[list[_Seen]] = [[] for _ in range(BINS)]
    for each in seen:
        if (place := int((each.time - since) // width)) < BINS:
            parts[place].append(each)
    ratings = Counter((int((when - since) // width), rating) for when, rating, _, _ in feedback)
    return [
        {
            "from": since + place * width,
            **{name: metrics[name] for name in ("count", "outcomes", "sentences", "unsupported")},
            "p95": metrics["seconds"]["p95"],
            "up": ratings[place, "up"],
            "down": ratings[place, "down"],
        }
        for place, metrics in enumerate(map(_counted, parts))
    ]


def _known(seen: Iterable[_Seen], name: str) -> list[float]:
    return [value for each in seen if (value := each.timing(name)) is not None]


def _server(note: Note, now: float) -> dict[str, Any]:
    return _note_facts(note) | {"alive": abs(now - note.time) < HEARTBEAT_TIMEOUT_S}


def _note_facts(note: Note) -> dict[str, Any]:
    return {"name": note.name.partition("/")[2], "time": note.time} | note.facts
