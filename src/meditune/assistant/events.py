"""The events that an assistant emits while it answers; each can be converted to JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

Level = Literal["urgent", "refusal", "limit", "remark"]
Outcome = Literal["answered", "abstained", "escalated", "declined"]


class _Event:
    kind: ClassVar[str]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, ready for JSON."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]


@dataclass(frozen=True)
class Source:
    """A passage with the number that citations use."""

    number: int
    id: str
    title: str
    section: str
    url: str
    """The public address; empty for the operator's own documents, which have only a title"""
    date: str
    licence: str
    source: str
    text: str
    meaning: float | None
    """The cosine similarity of question and passage; None if vector search didn't return the passage"""
    restricted: bool = False


@dataclass(frozen=True)
class Sources(_Event):
    """The passages found, before the model generates anything."""

    kind = "sources"
    sources: Sequence[Source]


@dataclass(frozen=True)
class Text(_Event):
    """The next part of the answer to show: whole sentences that passed the checks."""

    kind = "text"
    text: str


@dataclass(frozen=True)
class Citation:
    """A source that supports a sentence."""

    number: int
    quote: str
    """The supporting sentence in the source"""


@dataclass(frozen=True)
class Sentence(_Event):
    """A complete sentence that the model generated."""

    kind = "sentence"
    text: str
    citations: Sequence[Citation]
    supported: bool
    shown: bool
    why: str = ""
    """Why the sentence isn't shown; empty if it is"""
    score: float = 0.0
    """The detector's probability that a source supports the sentence"""


@dataclass(frozen=True)
class Notice(_Event):
    """A note next to the answer, or instead of it."""

    kind = "notice"
    level: Level
    text: str
    title: str = ""


@dataclass(frozen=True)
class Decision:
    """A decision (yes, no or maybe) on a yes/no question."""

    answer: str | None
    """None if the model isn't sure enough"""
    probabilities: dict[str, float]
    calibrated: bool
    """True if the probabilities were calibrated on the development split"""


@dataclass(frozen=True)
class Answer(_Event):
    """The last event: the complete answer."""

    kind = "answer"
    question: str
    text: str
    """The text to show: all `text` events joined, unless the answer was withdrawn"""
    outcome: Outcome
    refused: str
    """The reason why there is no answer; empty if there is one"""
    style: str
    sentences: Sequence[Sentence] = ()
    sources: Sequence[Source] = ()
    notices: Sequence[Notice] = ()
    decision: Decision | None = None
    confidence: float | None = None
    """The decision's probability; without a decision, the share of the model's sentences that sources support"""
    reading_grade: float | None = None
    limits: str = ""
    safety: dict[str, str] = field(default_factory=dict)
    """The result of triage: `action` and `kind`"""
    versions: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds"""


Event = Sources | Text | Sentence | Notice | Answer
