"""What is noted of one request on its way: its id, headers to send with it, facts for the log."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any

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

    def __post_init__(self) -> None:
        self.id = self.given or secrets.token_hex(12)
