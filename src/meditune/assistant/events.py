"""The events that an assistant emits while it answers. All can be converted to JSON, and an answer also to text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

from markupsafe import escape

from meditune.evidence.support_model import LEXICAL_DETECTOR
from meditune.prompts import LIMITS
from meditune.text import counted, excerpt, wrapped

Level = Literal["urgent", "refusal", "limit", "remark"]
Outcome = Literal["answered", "abstained", "escalated", "declined"]


class _Documented:
    """Makes the docstrings of the fields appear in the reference of the HTTP API."""

    __pydantic_config__: ClassVar = {"use_attribute_docstrings": True}


class _Event(_Documented):
    kind: ClassVar[str]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, ready for JSON."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]


@dataclass(frozen=True)
class Source(_Documented):
    """A retrieved passage, with the number that citations of the passage use."""

    number: int
    id: str
    title: str
    """The title of the document."""
    section: str
    """The heading above the passage; empty if there is none."""
    url: str
    """The public address; empty for the operator's own documents, which have only a title."""
    date: str
    licence: str
    source: str
    """The source's name in the index, such as medquad."""
    text: str
    meaning: float | None
    """The cosine similarity of question and passage; null if the passage wasn't compared by vectors."""
    restricted: bool = False
    """True if the text (for example, text of MIMIC-III) must not be sent to an API."""


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
class Citation(_Documented):
    """A source that supports a sentence."""

    number: int
    quote: str
    """The supporting sentence in the source."""


@dataclass(frozen=True)
class Sentence(_Event):
    """A complete sentence that the model generated."""

    kind = "sentence"
    text: str
    citations: Sequence[Citation]
    supported: bool
    shown: bool
    why: str = ""
    """The reason why the sentence isn't shown; empty if it is shown."""
    score: float = 0.0
    """The probability that a source supports the sentence, by what checked it."""
    checked_by: Literal["", "judge", "detector"] = ""
    """judge, or detector (the lexical detector), which also checks what the judge has no time for; empty without an
    index."""


@dataclass(frozen=True)
class Notice(_Event):
    """A note next to the answer, or instead of it."""

    kind = "notice"
    level: Level
    text: str
    title: str = ""


@dataclass(frozen=True)
class Decision(_Documented):
    """A decision (yes, no or maybe) on a yes/no question."""

    answer: str | None
    """yes, no or maybe; null if the model isn't sure enough."""
    probabilities: dict[str, float]
    calibrated: bool
    """True if the probabilities were calibrated in the model's run."""


@dataclass(frozen=True)
class Answer(_Event):
    """The last event: the complete answer."""

    kind = "answer"
    question: str
    text: str
    """The text to show. It consists of the texts of all `text` events, unless the answer was withdrawn."""
    outcome: Outcome
    """answered: the text is the answer; abstained: the sources don't support an answer; escalated: the text tells the
    reader to get urgent help; declined: the assistant doesn't answer such questions."""
    refused: str
    """The reason why there is no answer; empty if there is one."""
    style: str
    """The intended readers of the answer: plain (lay readers) or expert (professionals)."""
    sentences: Sequence[Sentence] = ()
    sources: Sequence[Source] = ()
    notices: Sequence[Notice] = ()
    decision: Decision | None = None
    confidence: float | None = None
    """The decision's probability; if there is no decision, the share of the model's sentences that sources support."""
    reading_grade: float | None = None
    """The Flesch-Kincaid grade (a school grade) of the text."""
    limits: str = ""
    """A note on the limits of all answers. Show this text to the reader."""
    safety: dict[str, str] = field(default_factory=dict)
    """The result of safety triage: `action` and `kind`."""
    versions: dict[str, str] = field(default_factory=dict)
    """The versions of Meditune, the model and the index, and what checked the sentences: `judge` names the judge or the
    lexical detector."""
    tokens: dict[str, int] = field(default_factory=dict)
    """The numbers of prompt tokens and of generated tokens."""
    timings: dict[str, float] = field(default_factory=dict)
    """For each stage, the seconds from the start of the request until the stage was reached."""

    def __str__(self) -> str:
        return "\n".join(answer_lines(self))

    def _repr_html_(self) -> str:
        """Return the answer for a notebook, with links to its sources."""
        text = str(escape(str(self)))
        linked = re.sub(r"(?<=^    )(.*)(https?://\S+)", r'\1<a href="\2">\2</a>', text, flags=re.MULTILINE)
        return f'<div style="white-space: pre-wrap; max-width: 60em">{linked}</div>'


Event = Sources | Text | Sentence | Notice | Answer


def answer_lines(answer: Answer) -> Iterator[str]:
    """Yield the answer as lines: sentences with citations, the cited sources, what checked them, remarks, limits.

    If the answer is withheld, all passages found are shown instead.
    """
    displayed = [each for each in answer.sentences if each.shown] if answer.outcome == "answered" else []
    leads = [each.text for each in answer.notices if each.level == "limit"]
    yield from wrapped("\n\n".join((*leads, " ".join(map(_with_citations, displayed)))) if displayed else answer.text)
    withheld = Counter(each.why for each in answer.sentences if not each.shown) if displayed else Counter()
    for why, count in withheld.items():
        yield from ("", f"Left out: {counted(count, 'sentence')}{' that' if count == 1 else ', each of which'} {why}.")
    if answer.decision:
        shares = ", ".join(f"{label} {share:.0%}" for label, share in answer.decision.probabilities.items())
        yield from ("", f"As a yes/no question: {answer.decision.answer or 'not certain enough'} ({shares})")
    cited = {citation.number for sentence in displayed for citation in sentence.citations}
    sources = [each for each in answer.sources if each.number in cited or answer.outcome == "abstained"]
    if sources:
        yield from ("", "Sources" if cited else "The sources found:")
    for each in sources:
        yield f"[{each.number}] {each.title}" + (f" [{each.section}]" if each.section else "")
        facts = (each.source, each.url, each.date, each.licence, "restricted" if each.restricted else "")
        yield f"    {' · '.join(fact for fact in facts if fact)}"
        if not cited:
            yield from excerpt(each.text, "    ", 8)
    yield ""
    judge = answer.versions.get("judge")
    if judge and answer.sentences and answer.sources:
        yield f"Sentences checked by: {judge}" + (" (compares words)" if judge == LEXICAL_DETECTOR else "")
    for notice in answer.notices:
        if notice.level == "remark":
            yield from wrapped(f"Note: {notice.text}")
    yield from wrapped(LIMITS)


def _with_citations(sentence: Sentence) -> str:
    """Return a sentence with its citations before the final punctuation ("It helps [1][2].")."""
    mark = "".join(f"[{each.number}]" for each in sentence.citations)
    body = sentence.text.rstrip(".!?")
    return f"{body} {mark}{sentence.text[len(body) :]}" if mark else sentence.text
