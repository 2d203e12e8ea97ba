"""How much each caller used, by day; it outlives a restart, as quotas must."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from meditune.store.database import Database


class Usage:
    """Requests and tokens in a store."""

    def __init__(self, base: Database) -> None:
        self.base = base

    def add(self, who: str, tokens: int) -> None:
        """Count one request with its tokens for today (UTC)."""
        with self.base.opened() as base:
            base.execute(
                "INSERT INTO usage VALUES (?, ?, 1, ?) ON CONFLICT (who, day) DO UPDATE "
                "SET requests = usage.requests + 1, tokens = usage.tokens + excluded.tokens",
                (who, _today(), tokens),
            )

    def today(self, who: str) -> int:
        """Tokens that a caller used today."""
        with self.base.opened() as base:
            row = base.execute("SELECT tokens FROM usage WHERE who = ? AND day = ?", (who, _today())).fetchone()
        return row[0] if row else 0

    def prune(self, days: float) -> None:
        """Take out what was used longer ago than so many days, with the addresses that it stands by; never today's."""
        with self.base.opened() as base:
            gone = base.execute("DELETE FROM usage WHERE day < ?", (_today(-timedelta(days=days)),)).rowcount
        if gone:
            self.base.forget()


def _today(later: timedelta = timedelta()) -> str:
    return (datetime.now(UTC) + later).date().isoformat()
