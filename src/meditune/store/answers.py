"""Answers that were given, and what people said of them.

Question and answer are kept only where the caller hands them over; whatever text comes in is masked before it is
written (`meditune.phi`).
"""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from meditune.phi.masking import mask
from meditune.store.base import Base

log = logging.getLogger(__name__)
Rating = Literal["up", "down"]


@dataclass(frozen=True)
class Answer:
    """One answer, as far as it is kept."""

    id: str
    who: str
    """The key's id, or empty"""
    route: str
    model: str
    """Name and version"""
    index_content: str = ""
    """The hash of the index's content; empty without an index"""
    outcome: str = "answered"
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Figures without text: decision, confidence, tokens, times"""
    question: str | None = None
    answer: str | None = None
    time: float = 0.0
    """Seconds since 1970; 0: now"""


@dataclass(frozen=True)
class Feedback:
    """What someone said of an answer."""

    answer: str
    who: str
    rating: Rating
    reasons: Sequence[str] = ()
    comment: str = ""
    correction: str = ""
    time: float = 0.0


class Answers:
    """The answers in a store, with their feedback."""

    def __init__(self, base: Base) -> None:
        self.base = base

    def keep(self, given: Answer) -> None:
        """Write an answer down; it is on the disk when this returns."""
        question, answer = (None if text is None else _masked(text) for text in (given.question, given.answer))
        row = (given.id, given.time or time.time(), given.who, given.route, given.model, given.index_content)
        with self.base.changing() as base:
            base.execute(
                "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*row, given.outcome, json.dumps(dict(given.facts)), question, answer),
            )

    def get(self, id: str) -> Answer | None:
        """An answer by its id."""
        with self.base.opened() as base:
            row = base.execute("SELECT * FROM answers WHERE id = ?", (id,)).fetchone()
        return _answer(row) if row else None

    def say(self, said: Feedback) -> bool:
        """Keep someone's word on an answer in the place of an earlier one; on the disk when this returns.

        False where there is no such answer.
        """
        reasons = json.dumps([_masked(each) for each in said.reasons])
        texts = (_masked(said.comment), _masked(said.correction))
        with self.base.changing() as base:
            if base.execute("SELECT 1 FROM answers WHERE id = ?", (said.answer,)).fetchone() is None:
                return False
            base.execute(
                "INSERT OR REPLACE INTO feedback VALUES (?, ?, ?, ?, ?, ?, ?)",
                (said.answer, said.who, said.time or time.time(), said.rating, reasons, *texts),
            )
        return True

    def delete(self, id: str) -> bool:
        """Take an answer and all that was said of it out of the file; whether there was one."""
        with self.base.changing() as base:
            gone = base.execute("DELETE FROM answers WHERE id = ?", (id,)).rowcount
        self._forget()
        return bool(gone)

    def prune(self, days: float) -> int:
        """Take out what is older than so many days, with its feedback; returns how many answers."""
        with self.base.changing() as base:
            gone = base.execute("DELETE FROM answers WHERE time < ?", (time.time() - days * 86_400,)).rowcount
        # Also where nothing is old: something may have stayed when it was deleted.
        self._forget()
        return int(gone)

    def exported(self) -> Iterator[dict[str, Any]]:
        """Every answer with its feedback, oldest first."""
        with self.base.opened() as base:
            said: dict[str, list[dict[str, Any]]] = {}
            for row in base.execute("SELECT * FROM feedback ORDER BY time"):
                said.setdefault(row["answer"], []).append(
                    {name: row[name] for name in ("who", "time", "rating", "comment", "correction")}
                    | {"reasons": json.loads(row["reasons"])}
                )
            for row in base.execute("SELECT * FROM answers ORDER BY time"):
                yield asdict(_answer(row)) | {"feedback": said.get(row["id"], [])}

    def in_order(self, after: int = 0) -> Iterator[tuple[int, Answer, tuple[str, ...]]]:
        """Place, answer and ratings of each answer whose place is later, in the order in which they were kept.

        The order is that of writing, whatever the clock said. The latest answer's place is given again once that answer
        is deleted.
        """
        with self.base.opened() as base:
            said: dict[str, list[str]] = {}
            for row in base.execute("SELECT answer, rating FROM feedback"):
                said.setdefault(row["answer"], []).append(row["rating"])
            for row in base.execute("SELECT rowid AS place, * FROM answers WHERE rowid > ? ORDER BY rowid", (after,)):
                yield row["place"], _answer(row), tuple(said.get(row["id"], ()))

    def last_place(self) -> int:
        """The latest answer's place; 0 where there are none."""
        with self.base.opened() as base:
            (found,) = base.execute("SELECT max(rowid) FROM answers").fetchone()
        return found or 0

    def _forget(self) -> None:
        """Let nothing of a deleted row stay in the write-ahead log, or say that it does: a reader's view needs it."""
        with self.base.opened() as base:
            # This waits for readers as long as any statement does.
            (busy, _, _) = base.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            log.warning(
                "What was deleted is still in %s-wal, as another program reads the store. The next deletion or pruning "
                "clears it: end that program and run meditune answers prune --days N.",
                self.base.path,
            )


def _masked(text: str) -> str:
    return mask(text) if text else text


def _answer(row: sqlite3.Row) -> Answer:
    return Answer(
        row["id"],
        row["who"],
        row["route"],
        row["model"],
        row["index_content"],
        row["outcome"],
        json.loads(row["facts"]),
        row["question"],
        row["answer"],
        row["time"],
    )
