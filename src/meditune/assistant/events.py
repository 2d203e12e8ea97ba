"""What an assistant tells on its way to an answer; each event is ready for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

Level = Literal["urgent", "refusal", "limit", "remark"]
Outcome = Literal["answered", "abstained", "escalated", "declined"]


class _Event:
    kind: ClassVar[str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]


@dataclass(frozen=True)
class Source:
    """A passage, under the number by which it is cited."""

    number: int
    id: str
    title: str
    section: str
    url: str
    """Where anybody can read it; empty for own documents, which have a title"""
    date: str
    licence: str
    source: str
    text: str
    meaning: float | None
    """The cosine of question and passage; None where it wasn't among the nearest"""
    restricted: bool = False


@dataclass(frozen=True)
class Sources(_Event):
    """What was found, before anything is written."""

    kind = "sources"
    sources: Sequence[Source]


@dataclass(frozen=True)
class Text(_Event):
    """What may be shown next of the answer: whole sentences that were judged already."""

    kind = "text"
    text: str


@dataclass(frozen=True)
class Citation:
    """A source for a sentence."""

    number: int
    quote: str
    """The sentence in the source that says it"""


@dataclass(frozen=True)
class Sentence(_Event):
    """A finished sentence of the model's."""

    kind = "sentence"
    text: str
    citations: Sequence[Citation]
    supported: bool
    shown: bool
    why: str = ""
    """Why it isn't shown"""
    score: float = 0.0
    """The detector's probability that a source bears it out"""


@dataclass(frozen=True)
class Notice(_Event):
    """Something that is said beside the answer, or in its place."""

    kind = "notice"
    level: Level
    text: str
    title: str = ""


@dataclass(frozen=True)
class Decision:
    """Yes, no or maybe to a question that asks for it."""

    answer: str | None
    """None where the model isn't sure enough"""
    probabilities: dict[str, float]
    calibrated: bool
    """Whether the probabilities were corrected by dev items"""


@dataclass(frozen=True)
class Answer(_Event):
    """The last event: all of it."""

    kind = "answer"
    question: str
    text: str
    """What is shown: the sum of the `text` events, unless the answer was taken back"""
    outcome: Outcome
    refused: str
    """Why there is no answer, in words; empty where there is one"""
    style: str
    sentences: Sequence[Sentence] = ()
    sources: Sequence[Source] = ()
    notices: Sequence[Notice] = ()
    decision: Decision | None = None
    confidence: float | None = None
    """Of the decision its probability, else the share of the model's sentences that sources bear out"""
    reading_grade: float | None = None
    limits: str = ""
    safety: dict[str, str] = field(default_factory=dict)
    """What the message was found to be before any model saw it: `action` and `kind`"""
    versions: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds"""


Event = Sources | Text | Sentence | Notice | Answer
