"""One question on its way to its answer: what was told of it so far, and the answer made of that."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from meditune.engines.engine import Piece
from meditune.limits import LIMITS_LINE
from meditune.recipe import Style
from meditune.retrieve.cited import CitedAnswer
from meditune.retrieve.packing import Packed
from meditune.retrieve.styles import grade
from meditune.serve.events import Answer, Decision, Event, Notice, Outcome, Sentence, Source, Text
from meditune.serve.safety.triage import Triage


@dataclass
class Asking:
    """What is known of one question."""

    question: str
    style: Style
    begun: float = field(default_factory=time.monotonic)
    safety: dict[str, str] = field(default_factory=dict)
    sources: tuple[Source, ...] = ()
    notices: list[Notice] = field(default_factory=list)
    sentences: list[Sentence] = field(default_factory=list)
    decision: Decision | None = None
    outcome: Outcome = "answered"
    refused: str = ""
    tokens: dict[str, int] = field(default_factory=lambda: {"prompt": 0, "completion": 0})
    timings: dict[str, float] = field(default_factory=dict)
    _lead: str = ""
    _shown: list[str] = field(default_factory=list)

    def at_once(self, found: Triage) -> Iterator[Event]:
        """The answer to what no model is asked."""
        urgent = found.action == "urgent"
        self.outcome = "escalated" if urgent else "declined"
        self.refused = "" if urgent else found.text
        yield self.noted(Notice("urgent" if urgent else "refusal", found.text, found.title))
        yield self._text(found.text)

    def noted(self, notice: Notice) -> Notice:
        """Something is said beside the answer."""
        self.notices.append(notice)
        return notice

    def searched(self, begun: CitedAnswer | None) -> None:
        """What the index gave."""
        self._lap("search")
        if begun is None:
            return
        self.sources = tuple(_source(number, packed) for number, packed in enumerate(begun.packed, start=1))
        self.notices += [Notice("remark", text) for text in begun.remarks]

    def asked(self, prompt_tokens: int) -> None:
        """The model has begun."""
        self.tokens["prompt"] += prompt_tokens

    def count(self, piece: Piece) -> None:
        """What the model wrote next."""
        if piece.text:
            self._lap("first_token")
        self.tokens["completion"] += len(piece.tokens)
        if piece.cached:
            self.tokens["cached"] = self.tokens.get("cached", 0) + piece.cached

    def said(self, sentence: Sentence) -> Iterator[Event]:
        """A sentence, and its text where it may be shown."""
        self.sentences.append(sentence)
        yield sentence
        if sentence.shown:
            self._lap("first_sentence")
            yield self._text((" " if self._shown and not self._shown[-1].endswith("\n") else "") + sentence.text)

    def bounded(self, found: Triage) -> Iterator[Event]:
        """What stands before an answer within limits."""
        yield self.noted(Notice("limit", found.text, found.title))
        self._lead = f"{found.text}\n\n"
        yield self._text(self._lead)

    def refuse(self, why: str) -> Notice:
        """There is no answer; the sources, if any, stand in its place."""
        self.outcome, self.refused, self.decision = "abstained", why, None
        self._shown = [self._lead, why]
        return self.noted(Notice("refusal", why, "No answer from these sources" if self.sources else "No answer"))

    def answer(self, versions: Mapping[str, str]) -> Answer:
        """All of it."""
        text = "".join(self._shown)
        judged = [each for each in self.sentences if not each.text.endswith("?")]
        share = sum(each.supported for each in judged) / len(judged) if judged and self.sources else None
        sure = max(self.decision.probabilities.values()) if self.decision else share
        self.timings["total"] = round(time.monotonic() - self.begun, 4)
        return Answer(
            self.question,
            text,
            self.outcome,
            self.refused,
            self.style,
            tuple(self.sentences),
            self.sources,
            tuple(self.notices),
            self.decision,
            None if sure is None or self.refused else round(sure, 4),
            round(grade(text.removeprefix(self._lead)), 1) if self.outcome == "answered" else None,
            LIMITS_LINE,
            self.safety,
            dict(versions),
            self.tokens,
            self.timings,
        )

    def _text(self, text: str) -> Text:
        self._shown.append(text)
        return Text(text)

    def _lap(self, name: str) -> None:
        self.timings.setdefault(name, round(time.monotonic() - self.begun, 4))


def _source(number: int, packed: Packed) -> Source:
    passage = packed.hit.passage
    return Source(
        number,
        passage.id,
        packed.title or passage.document,
        passage.section,
        # The address of an own document is a path on this machine, which is nobody else's business.
        passage.url if passage.url.startswith(("https://", "http://")) else "",
        passage.date,
        passage.licence,
        passage.source,
        packed.text,
        packed.hit.meaning,
        passage.restricted,
    )
