"""API keys, stored as hashes, and each caller's daily usage.

A key is `mt-ID-SECRET` and is shown only once. The secret has 256 random bits, so one SHA-256 is enough: a slow hash
would only protect secrets that can be guessed. Usage is stored so that quotas survive a restart.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Literal, get_args

from meditune.errors import DataError
from meditune.store.database import Database, Row

Scope = Literal["generate", "embed", "feedback", "raw", "expert", "metrics", "admin"]
"""`raw` allows requests to the model without triage: /v1/completions, and chats written by programs."""
SCOPES: tuple[Scope, ...] = get_args(Scope)
USUAL: tuple[Scope, ...] = ("generate", "embed", "feedback")
_NOBODY = hashlib.sha256(b"nobody").hexdigest()


@dataclass(frozen=True)
class Key:
    """The stored facts about a key, without its secret."""

    id: str
    name: str
    scopes: frozenset[str]
    per_minute: int | None
    """Requests per minute; None means the server's own limit"""
    daily_tokens: int | None
    """Tokens per UTC day, in prompts and answers together; None means the server's own quota"""
    created: float
    expires: float | None
    revoked: float | None

    @property
    def state(self) -> str:
        """One of usable, expired and revoked."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= time.time() else "usable"


class Keys:
    """The keys in a store."""

    def __init__(self, base: Database) -> None:
        self.base = base

    def create(
        self,
        name: str,
        scopes: Sequence[str] = USUAL,
        per_minute: int | None = None,
        daily_tokens: int | None = None,
        days: float | None = None,
    ) -> tuple[Key, str]:
        """Create a key; return it and its plain text, which isn't stored. Raises DataError for an unknown scope."""
        unknown = [scope for scope in scopes if scope not in SCOPES]
        if unknown or not scopes:
            problem = f"Unknown scopes: {', '.join(unknown)}." if unknown else "A key needs at least one scope."
            raise DataError(f"{problem} Choose from: {', '.join(SCOPES)}.")
        id, secret, now = secrets.token_hex(4), secrets.token_urlsafe(32), time.time()
        expires = now + days * 86_400 if days else None
        row = (id, name, _hash(secret), " ".join(scopes), per_minute, daily_tokens, now, expires)
        self.base.change("INSERT INTO keys VALUES (?, ?, ?, NULL, NULL, ?, ?, ?, ?, ?, NULL)", *row)
        return self.get(id), f"mt-{id}-{secret}"

    def rotate(self, id: str, grace_hours: float = 24.0) -> str:
        """Create a new secret for a key; return the key's new plain text. The old secret stays valid for `grace_hours`.

        Raises DataError if the key is unknown, revoked or expired.
        """
        state = self.get(id).state
        if state != "usable":
            problem = "was revoked" if state == "revoked" else "has expired"
            raise DataError(f"{id} {problem}. Create a new key: meditune keys create NAME")
        secret = secrets.token_urlsafe(32)
        statement = "UPDATE keys SET old_hash = hash, old_until = ?, hash = ? WHERE id = ?"
        self.base.change(statement, time.time() + grace_hours * 3600, _hash(secret), id)
        return f"mt-{id}-{secret}"

    def revoke(self, id: str) -> None:
        """Revoke a key with immediate effect. Raises DataError if the id is unknown."""
        self.get(id)
        self.base.change("UPDATE keys SET revoked = coalesce(revoked, ?) WHERE id = ?", time.time(), id)

    def get(self, id: str) -> Key:
        """Return a key by its id. Raises DataError if the id is unknown."""
        rows = self.base.rows("SELECT * FROM keys WHERE id = ?", id)
        if not rows:
            raise DataError(f"There is no key {id!r} in {self.base.place}. List the keys with `meditune keys list`.")
        return _key(rows[0])

    def all(self) -> list[Key]:
        """Return all keys that were ever created, oldest first."""
        return [_key(row) for row in self.base.rows("SELECT * FROM keys ORDER BY created")]

    def any(self) -> bool:
        """Return whether a key was ever created. Once there is one, every request needs a key."""
        return bool(self.base.rows("SELECT 1 FROM keys LIMIT 1"))

    def authenticate(self, plain_key: str) -> Key | None:
        """Return the usable key with this plain text; None if there is none.

        Hashes are compared in constant time, even if the id is unknown.
        """
        prefix, _, rest = plain_key.partition("-")
        id, _, secret = rest.partition("-")
        rows = self.base.rows("SELECT * FROM keys WHERE id = ?", id if prefix == "mt" else "")
        row = rows[0] if rows else None
        hashed = _hash(secret)
        new = hmac.compare_digest(hashed, row["hash"] if row else _NOBODY)
        old = hmac.compare_digest(hashed, row["old_hash"] if row and row["old_hash"] else _NOBODY)
        in_grace = bool(row and row["old_until"] and row["old_until"] > time.time())
        if row is None or not (new or (old and in_grace)):
            return None
        key = _key(row)
        return key if key.state == "usable" else None


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _key(row: Row) -> Key:
    values = {each.name: row[each.name] for each in fields(Key)}
    return Key(**values | {"scopes": frozenset(row["scopes"].split())})


class Usage:
    """The numbers of requests and tokens in a store, by caller and day."""

    def __init__(self, base: Database) -> None:
        self.base = base

    def add(self, caller: str, tokens: int) -> None:
        """Count one request with its tokens for today (UTC)."""
        statement = (
            "INSERT INTO usage VALUES (?, ?, 1, ?) ON CONFLICT (who, day) DO UPDATE "
            "SET requests = usage.requests + 1, tokens = usage.tokens + excluded.tokens"
        )
        self.base.change(statement, caller, _today(), tokens)

    def today(self, caller: str) -> int:
        """Return the number of tokens that a caller used today (UTC)."""
        rows = self.base.rows("SELECT tokens FROM usage WHERE who = ? AND day = ?", caller, _today())
        return rows[0]["tokens"] if rows else 0

    def prune(self, days: float) -> None:
        """Delete usage older than this many days, including callers' addresses; today's usage always stays."""
        if self.base.change("DELETE FROM usage WHERE day < ?", _today(-timedelta(days=days))):
            self.base.forget()


def _today(later: timedelta = timedelta()) -> str:
    return (datetime.now(UTC) + later).date().isoformat()
