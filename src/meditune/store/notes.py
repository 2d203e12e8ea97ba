"""What programs that share a store let each other know: which servers run, what was last updated, what drifted."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
