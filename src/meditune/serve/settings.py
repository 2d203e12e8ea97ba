"""The limits and switches of a server."""

from __future__ import annotations

from dataclasses import dataclass

from meditune.assistant.message_clauses import LAST_CHARACTERS, MAX_CHARACTERS
from meditune.errors import DataError


@dataclass(frozen=True)
class Settings:
    """The limits and switches of a server. Sizes are in bytes, times in seconds."""

    body_bytes: int = 1 << 20
    header_bytes: int = 32 << 10
    header_s: float = 15.0
    """The maximum time for a TLS handshake, and from a request head's first byte to its last; then the connection is
    closed"""
    body_s: float = 30.0
    """The maximum time until the body is complete"""
    send_s: float = 30.0
    """The maximum time until a client reads what was sent; then the server drops the client"""
    answer_s: float = 120.0
    """The maximum duration of an answer, not counting the wait in the queue"""
    restarts: int = 6
    """The maximum number of successive restarts of a dead engine; then the process ends"""
    idle_s: float = 120.0
    """The time after which a connection without a request is closed. A request that is sent while the server closes the
    connection is lost, so clients and proxies should close idle connections first. By default, curl does so after
    118 s, Go after 90 s, and nginx and AWS's load balancers after 60 s."""
    connections: int = 512
    concurrency: int = 16
    """Requests that the engine processes at the same time"""
    queue_size: int = 64
    """Requests that may wait for the engine; further requests are refused with 429"""
    wait_s: float = 30.0
    """The longest time that a request may wait for the engine"""
    message_characters: int = MAX_CHARACTERS + LAST_CHARACTERS
    """The maximum length of a user's message, at most the number of characters that triage reads"""
    context_characters: int = 100_000
    """The maximum total length of a chat's system messages"""
    history_characters: int = 100_000
    """The maximum total length of a conversation's earlier turns"""
    triage_threads: int = 2
    """Messages that triage judges at the same time; long messages never occupy the last of these threads"""
    triage_waiting: int = 256
    """Messages that may wait for triage; further messages are refused with 429"""
    triage_wait_s: float = 10.0
    """The longest time that a message may wait for triage"""
    new_tokens: int = 256
    """The maximum length of an answer if the request sets none"""
    max_new_tokens: int = 1024
    per_minute: int = 0
    """Requests per caller and minute; 0: no limit"""
    feedback_per_minute: int = 60
    """Pieces of feedback per caller and minute, but at most the caller's `per_minute`; 0: no limit"""
    daily_tokens: int = 0
    """Tokens per caller and day; 0: no quota"""
    origins: tuple[str, ...] = ()
    """Other sites whose pages may call this server (CORS)"""
    hosts: tuple[str, ...] = ()
    """Host names that requests may use; empty: any name"""
    keys_needed: bool = False
    anonymous_access: bool = False
    """Serve anonymous callers from other machines; they can ask questions, but can't see metrics and status"""
    bare_chat: bool = False
    """Return the model's output alone in chats, without triage or the note on limits"""
    log_text: bool = False
    """Log questions, with masked identifiers"""
    keep_text: bool = False
    """Store questions and answers, with masked identifiers"""
    keep_days: float = 30.0
    """Delete answers and feedback after this many days; 0: never"""
    prices: tuple[float, float] = (0.0, 0.0)
    """The price of a million prompt tokens, and of a million generated tokens, for the metrics"""
    hourly: float = 0.0
    """The machine's price per hour, for the metrics"""
    follow_s: float = 10.0
    """The interval between checks of the registry for another version"""
    grace_s: float | None = None
    """The time for running answers to finish at shutdown; None: the maximum duration of an answer plus 5 seconds"""

    def __post_init__(self) -> None:
        most = MAX_CHARACTERS + LAST_CHARACTERS
        if not 1 <= self.message_characters <= most:
            raise DataError(
                f"message_characters is {self.message_characters:,}, but must be between 1 and {most:,}, the "
                "number of characters of a message that triage reads."
            )

    @property
    def ending_s(self) -> float:
        """Return how many seconds the server waits for running answers at shutdown."""
        return self.answer_s + 5 if self.grace_s is None else self.grace_s

    @property
    def stalled_s(self) -> float:
        """Return the number of seconds without output after which an engine that has work counts as stuck."""
        return max(300.0, 3 * self.answer_s)
