"""What a server allows; each limit declared once."""

from __future__ import annotations

from dataclasses import dataclass, field

from meditune.assistant.message_clauses import LAST_CHARACTERS, MOST_CHARACTERS
from meditune.errors import DataError


@dataclass(frozen=True)
class Settings:
    """Limits and switches of a server. Sizes are bytes, times seconds."""

    body_bytes: int = 1 << 20
    header_bytes: int = 32 << 10
    header_s: float = 15.0
    """A connection that hasn't sent a whole request head by then is closed."""
    body_s: float = 30.0
    """The whole body must have come by then."""
    send_s: float = 30.0
    """A client that takes nothing for so long is given up."""
    answer_s: float = 120.0
    """The longest that an answer may take, without waiting"""
    restarts: int = 6
    """How often in a row a dead engine is opened again before the process ends"""
    idle_s: float = 20.0
    """A connection without a request is closed then."""
    connections: int = 512
    at_once: int = 16
    """Requests that the engine is given at once"""
    waiting: int = 64
    """Requests that may wait for that; more are refused with 429"""
    wait_s: float = 30.0
    """The longest that one may wait"""
    message_characters: int = MOST_CHARACTERS + LAST_CHARACTERS
    """The longest message of a person; triage reads no more, so it can't be more"""
    context_characters: int = 100_000
    """System messages of one chat together"""
    history_characters: int = 100_000
    """Earlier turns of one conversation together"""
    triage_threads: int = 2
    """Messages that are judged at once; one of these threads is kept free of long ones"""
    triage_waiting: int = 256
    """Messages that may wait for that; more are refused with 429"""
    triage_wait_s: float = 10.0
    """The longest that one may wait"""
    new_tokens: int = 256
    """Where a request says nothing"""
    most_new_tokens: int = 1024
    per_minute: int = 0
    """Requests of one caller; 0: no limit"""
    feedback_per_minute: int = 60
    """Feedback of one caller; its requests' rate holds, too, its quota of tokens doesn't. 0: no limit"""
    daily_tokens: int = 0
    """Tokens of one caller; 0: no quota"""
    origins: tuple[str, ...] = ()
    """Other sites whose pages may call this server (CORS)"""
    hosts: tuple[str, ...] = ()
    """Names that requests must use; none: any"""
    keys_needed: bool = False
    strangers: bool = False
    """Whether people beyond this machine need no key either; they may ask, and not look at how the server is run"""
    bare_chat: bool = False
    """Whether chats get the model's words alone, without triage and limits"""
    log_text: bool = False
    """Whether questions stand in the log, masked"""
    keep_text: bool = False
    """Whether questions and answers are kept, masked"""
    keep_days: float = 30.0
    """Answers and feedback are deleted after so many days; 0: never"""
    prices: tuple[float, float] = (0.0, 0.0)
    """Of a million tokens read, and written, for the metrics"""
    hourly: float = 0.0
    """What the machine costs an hour"""
    follow_s: float = 10.0
    """So often a registry is looked at for another version"""
    grace_s: float | None = None
    """How long running answers may take to finish at the end; None: as long as any answer may take"""
    headers: dict[str, str] = field(
        default_factory=lambda: {
            "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cache-control": "no-store",
            "cross-origin-opener-policy": "same-origin",
            "cross-origin-resource-policy": "same-origin",
            "permissions-policy": "camera=(), geolocation=(), microphone=()",
        }
    )
    """Sent with every response"""

    def __post_init__(self) -> None:
        most = MOST_CHARACTERS + LAST_CHARACTERS
        if not 1 <= self.message_characters <= most:
            raise DataError(
                f"message_characters is {self.message_characters:,}: it must be between 1 and {most:,}, since triage "
                "reads no more of a message."
            )

    @property
    def ending_s(self) -> float:
        """Seconds that running answers are waited for at the end."""
        return self.answer_s + 5 if self.grace_s is None else self.grace_s

    @property
    def stalled_s(self) -> float:
        """Seconds after which an engine that has work and delivers nothing is stuck."""
        return max(300.0, 3 * self.answer_s)
