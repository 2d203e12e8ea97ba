"""What is noted of one request on its way: its id, headers to send with it, facts for the log."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from meditune.errors import StoreError

SCOPE_KEY = "meditune.trace"
"""Where a request's trace lies in its ASGI scope"""


@dataclass
class Trace:
    """One request."""

    given: str | None = None
    """The id that the client named"""
    id: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    """Figures and names, never what was asked"""
    broken: int = 0
    """Status of an error that had to be told inside a stream"""
    store_failed: bool = False
    """Whether the store broke the request off, which no version of a model can help"""
    ended: list[Callable[[int], None]] = field(default_factory=list)
    """Called with the status when the request has ended"""

    def __post_init__(self) -> None:
        self.id = self.given or secrets.token_hex(12)

    def broke(self, error: Exception) -> None:
        """Note what broke the request off."""
        self.store_failed = self.store_failed or isinstance(error, StoreError)
