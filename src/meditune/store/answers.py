"""The answers in a store, with their feedback.

Question and answer are stored only if the caller passes them; all text is masked before it is written
(`meditune.phi`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from meditune.phi.detector import mask
from meditune.store.database import Database, Row
from meditune.store.overview import Notes

Rating = Literal["up", "down"]
PAGE = 1000
"""Number of answers that are read from the database at a time"""
MAX_PLACE = 2**63 - 1
"""Largest number that an answer's place can have"""


@dataclass(frozen=True)
class Answer:
    """The stored parts of one answer."""

    id: str
    who: str
    """The id of the caller's key; empty without a key"""
    route: str
    model: str
    """The model's name and version"""
    index_content: str = ""
    """The hash of the index's content; empty without an index"""
    outcome: str = "answered"
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Values without free text: decision, confidence, tokens, times"""
    question: str | None = None
    answer: str | None = None
    time: float = 0.0
    """Seconds since 1970; 0 means now"""


@dataclass(frozen=True)
class Feedback:
    """One caller's feedback on an answer. A field that is None wasn't given."""

    answer: str
    who: str
    rating: Rating
    reasons: Sequence[str] | None = None
    comment: str | None = None
    correction: str | None = None
    decision: str | None = None
    """yes, no or maybe, if the caller corrects the decision"""
    expert: bool = False
    """True if the feedback comes from an expert's key; expert feedback overrides other feedback."""
    time: float = 0.0


class Answers:
    """The answers in a store, with their feedback."""

    def __init__(self, base: Database) -> None:
        self.base = base

    def keep(self, record: Answer) -> None:
        """Store an answer; it is on the disk when this returns."""
        question, answer = (None if text is None else _masked(text) for text in (record.question, record.answer))
        row = (record.id, record.time or time.time(), record.who, record.route, record.model, record.index_content)
        with self.base.changing() as base:
            self.base.serialize_writers(base)
            base.execute(
                "INSERT INTO answers (id, time, who, route, model, index_content, outcome, facts, question, answer) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*row, record.outcome, json.dumps(dict(record.facts)), question, answer),
            )

    def get(self, id: str) -> Answer | None:
        """Return the answer with this id, or None if there is none."""
        rows = self.base.rows("SELECT * FROM answers WHERE id = ?", id)
        return _answer(rows[0]) if rows else None

    def add_feedback(self, feedback: Feedback) -> bool:
        """Store feedback, which replaces the same caller's earlier feedback; it is on the disk when this returns.

        If the earlier feedback has the same rating, fields that aren't given keep their earlier values. Returns False
        if there is no such answer.
        """
        reasons = json.dumps([_masked(each) for each in feedback.reasons or ()])
        row = (feedback.answer, feedback.who, feedback.time or time.time(), feedback.rating, reasons)
        comment, correction = _masked(feedback.comment or ""), _masked(feedback.correction or "")
        kept = [name for name in ("reasons", "comment", "correction", "decision") if getattr(feedback, name) is None]
        updates = ", ".join(
            f"{name} = CASE WHEN feedback.rating = excluded.rating THEN feedback.{name} ELSE excluded.{name} END"
            if name in kept
            else f"{name} = excluded.{name}"
            for name in ("time", "rating", "reasons", "comment", "correction", "decision", "expert")
        )
        with self.base.changing() as base:
            if base.execute("SELECT 1 FROM answers WHERE id = ?", (feedback.answer,)).fetchone() is None:
                return False
            base.execute(
                "INSERT INTO feedback (answer, who, time, rating, reasons, comment, correction, decision, expert) "
                f"VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (answer, who) DO UPDATE SET {updates}",
                (*row, comment, correction, feedback.decision or "", int(feedback.expert)),
            )
        return True

    def delete(self, id: str) -> bool:
        """Delete an answer with its feedback; return whether it existed."""
        return bool(self._delete("DELETE FROM answers WHERE id = ?", id))

    def delete_all_of(self, caller: str) -> int:
        """Delete all answers to a caller and all feedback from that caller; return the number of deleted answers."""
        self.base.change("DELETE FROM feedback WHERE who = ?", caller)
        return self._delete("DELETE FROM answers WHERE who = ?", caller)

    def prune(self, days: float) -> int:
        """Delete answers older than this many days, with their feedback; return the number of deleted answers.

        If the clock was wrong for a while, times contradict the order of storage, and the order counts. An answer that
        seems old stays as long as an answer that was stored before it. An answer with a time in the future is deleted
        when an answer that was stored after it is old.
        """
        now = time.time()
        oldest = now - days * 86_400
        first_recent = "SELECT min(place) FROM answers WHERE time BETWEEN ? AND ?"
        last_old = f"SELECT max(place) FROM answers WHERE time < ? AND place < coalesce(({first_recent}), {MAX_PLACE})"
        # Cleaning up runs even if no answer is old: an earlier deletion may have left data behind.
        return self._delete(f"DELETE FROM answers WHERE place <= ({last_old})", oldest, oldest, now)

    def latest(self) -> float:
        """Return the time of the latest answer, in seconds since 1970; 0 without answers."""
        return float(self.base.rows("SELECT max(time) AS latest FROM answers")[0]["latest"] or 0)

    def exported(self) -> Iterator[dict[str, Any]]:
        """Yield every answer with its feedback, oldest first."""
        named = ("who", "time", "rating", "comment", "correction", "decision")
        for _, answer, rows in self._pages(0):
            feedback = [
                {name: row[name] for name in named}
                | {"expert": bool(row["expert"]), "reasons": json.loads(row["reasons"])}
                for row in rows
            ]
            yield asdict(answer) | {"feedback": feedback}

    def in_order(self, after: int = 0) -> Iterator[tuple[int, Answer, tuple[str, ...]]]:
        """Yield the place, the answer and the ratings of each answer after the place `after`, in order of places.

        A place is the number of an answer in the order of storage. It doesn't depend on the clock and is never reused.
        """
        for place, answer, feedback in self._pages(after):
            yield place, answer, tuple(row["rating"] for row in feedback)

    def last_place(self) -> int:
        """Return the place of the latest answer; 0 without answers."""
        return int(self.base.rows("SELECT max(place) AS latest FROM answers")[0]["latest"] or 0)

    def _delete(self, statement: str, *values: str | float) -> int:
        gone = self.base.change(statement, *values)
        Notes(self.base).forget_deleted()
        self.base.forget()
        return gone

    def _pages(self, after: int) -> Iterator[tuple[int, Answer, list[Row]]]:
        """Yield (place, answer, feedback); no connection is held while the caller processes the answers."""
        while rows := self.base.rows("SELECT * FROM answers WHERE place > ? ORDER BY place LIMIT ?", after, PAGE):
            first, after = after, rows[-1]["place"]
            feedback: dict[str, list[Row]] = {}
            statement = (
                "SELECT feedback.* FROM feedback JOIN answers ON answers.id = feedback.answer "
                "WHERE answers.place > ? AND answers.place <= ? ORDER BY feedback.time"
            )
            for row in self.base.rows(statement, first, after):
                feedback.setdefault(row["answer"], []).append(row)
            for row in rows:
                yield row["place"], _answer(row), feedback.get(row["id"], [])


def _masked(text: str) -> str:
    return mask(text) if text else text


def _answer(row: Row) -> Answer:
    values = {each.name: row[each.name] for each in fields(Answer)}
    return Answer(**values | {"facts": json.loads(row["facts"])})
