"""An overview of a service from its store: answers, latencies, outcomes, feedback, versions, servers, drift, updates.

The overview contains only numbers and names, except for the masked questions that support an alert. Programs that share
a store exchange notes through it about running servers, the latest updates, and drift.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
        statement = (
            "INSERT INTO notes VALUES (?, ?, ?) "
            "ON CONFLICT (name) DO UPDATE SET time = excluded.time, facts = excluded.facts"
        )
        self.base.change(statement, name, time.time(), json.dumps(dict(facts)))

    def all(self, kind: str) -> list[Note]:
        """Return the notes of a kind, latest first."""
        rows = self.base.rows("SELECT * FROM notes WHERE name LIKE ? ORDER BY time DESC, name", f"{kind}/%")
        return [Note(row["name"], row["time"], json.loads(row["facts"])) for row in rows]

    def remove(self, name: str) -> None:
        """Delete a note if it exists."""
        self.base.change("DELETE FROM notes WHERE name = ?", name)

    def forget_deleted(self) -> None:
        """Remove the questions of deleted answers from the evidence for drift alerts."""
        with self.base.changing() as base:
            self.base.serialize_writers(base)

            def exists(id: str) -> bool:
                return base.execute("SELECT 1 FROM answers WHERE id = ?", (id,)).fetchone() is not None

            rows = base.execute(
                "SELECT name, facts FROM notes WHERE name LIKE ? ORDER BY name", ("drift/%",)
            ).fetchall()
            for row in rows:
                facts = json.loads(row["facts"])
                if sum(forget_deleted(alert["evidence"], exists) for alert in facts.get("alerts", ())):
                    base.execute("UPDATE notes SET facts = ? WHERE name = ?", (json.dumps(facts), row["name"]))


def forget_deleted(evidence: dict[str, Any], exists: Callable[[str], bool]) -> bool:
    """Remove the examples that no longer exist, and groups without examples; return whether any was removed."""
    found, groups = False, evidence.get("groups", [])
    for part in (evidence, *groups):
        examples = part.get("examples", [])
        left = [each for each in examples if exists(each["id"])]
        if len(left) < len(examples):
            part["examples"], found = left, True
    if not all(group["examples"] for group in groups):
        evidence["groups"], found = [group for group in groups if group["examples"]], True
    return found


MAX_ANSWERS = 20_000
"""Maximum number of answers in an overview; if there are more, the latest are used."""
BINS = 24
TIMINGS = ("total", "first_token")
HEARTBEAT_TIMEOUT_S = 120.0
"""A server counts as stopped if its latest note is older than this many seconds."""


def overview(base: Database, hours: float = 24.0) -> dict[str, Any]:
    """Return the overview of the last `hours` hours, ready for JSON.

    Its keys are `hours`, `time`, `answers`, `feedback`, `versions`, `over_time`, `servers`, `drift` and `updates`. If
    the clock jumps, the time span shifts; there is no other harm.
    """
    now = time.time()
    since = now - hours * 3600.0
    answers = _latest(base, "id, time, model, index_content, outcome, facts FROM answers", since)
    feedback = _latest(base, "answer, time, rating, correction, decision, expert FROM feedback", since)
    notes = Notes(base)
    ratings = Counter(row["rating"] for row in feedback)
    rated = {row["answer"] for row in feedback} & {row["id"] for row in answers}
    return {
        "hours": hours,
        "time": now,
        "answers": _counted(answers),
        "feedback": {
            "up": ratings["up"],
            "down": ratings["down"],
            "corrections": sum(bool(row["correction"] or row["decision"]) for row in feedback),
            "experts": sum(bool(row["expert"]) for row in feedback),
            "rated": len(rated) / len(answers) if answers else None,
        },
        "versions": _versions(answers),
        "over_time": _over_time(answers, feedback, since, now),
        "servers": [
            _note_facts(note) | {"alive": abs(now - note.time) < HEARTBEAT_TIMEOUT_S} for note in notes.all("server")
        ],
        "drift": [_note_facts(note) for note in notes.all("drift")],
        "updates": [_note_facts(note) for note in notes.all("update")],
    }


def quantile(values: Sequence[float], share: float) -> float | None:
    """Return the quantile `share` (0 to 1) of the values by nearest rank; None without values."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else None


def number(value: Any) -> float | None:
    """Return the value as a float if it is a finite number, else None."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None


def _latest(base: Database, columns: str, since: float) -> list[dict[str, Any]]:
    """Return the rows of a query since a time, latest first, at most MAX_ANSWERS. The JSON of `facts` is parsed."""
    rows = base.rows(f"SELECT {columns} WHERE time >= ? ORDER BY time DESC LIMIT ?", since, MAX_ANSWERS)
    found = [dict(row) for row in rows]
    return [row | {"facts": json.loads(row["facts"])} if "facts" in row else row for row in found]


def _counted(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    facts = [row["facts"] for row in answers]
    totals, first = ([t[name] for each in facts if name in (t := each.get("timings") or {})] for name in TIMINGS)
    sentences, supported = (sum(each.get(name) or 0 for each in facts) for name in ("sentences", "supported"))
    similarities = [each["retrieval"] for each in facts if each.get("retrieval") is not None]
    outcomes = Counter(row["outcome"] for row in answers)
    return {
        "count": len(answers),
        "complete": len(answers) < MAX_ANSWERS,
        "outcomes": {name: outcomes[name] for name in ("answered", "abstained", "escalated", "declined")},
        "seconds": {"p50": quantile(totals, 0.5), "p95": quantile(totals, 0.95)},
        "first_token": {"p50": quantile(first, 0.5), "p95": quantile(first, 0.95)},
        "tokens": {kind: sum(_tokens(each, kind) for each in facts) for kind in ("prompt", "completion")},
        "sentences": sentences,
        "unsupported": sentences - supported,
        "retrieval": {"p10": quantile(similarities, 0.1), "p50": quantile(similarities, 0.5)},
    }


def _tokens(facts: Mapping[str, Any], kind: str) -> int:
    """Return the number of tokens of an answer's prompt or completion; questions and chats store them differently."""
    tokens: dict[str, int] = facts.get("tokens") or {}
    return tokens.get(kind) or facts.get(f"{kind}_tokens") or 0


def _versions(answers: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the pairs of model and index that gave answers, latest first."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for each in answers:
        model, index = each["model"], each["index_content"]
        row = found.setdefault((model, index), {"model": model, "index": index, "answers": 0, "last": each["time"]})
        row["answers"] += 1
        row["first"] = each["time"]
    return list(found.values())


def _over_time(
    answers: Sequence[dict[str, Any]], feedback: Sequence[dict[str, Any]], since: float, now: float
) -> list[dict[str, Any]]:
    """Return metrics for each of BINS equal parts of the time span, oldest first."""
    width = (now - since) / BINS
    parts: list[list[dict[str, Any]]] = [[] for _ in range(BINS)]
    for each in answers:
        if (place := int((each["time"] - since) // width)) < BINS:
            parts[place].append(each)
    ratings = Counter((int((row["time"] - since) // width), row["rating"]) for row in feedback)
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


def _note_facts(note: Note) -> dict[str, Any]:
    return {"name": note.name.partition("/")[2], "time": note.time} | note.facts
