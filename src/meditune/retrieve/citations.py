"""Cited answers: which passages support each sentence, and the answer with its sources as text and JSON.

Citations are numbered in the order of their first use.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp
from typing import Any

from meditune.evidence import detector
from meditune.evidence.detector import evidence, placed, sentence_logit
from meditune.prompts import LIMITS
from meditune.retrieve.context_packing import PackedPassage

MOST_CITED = 2
"""Maximum number of passages cited for a sentence, the best ones"""
SUPPORT = 0.437
"""Minimum probability by the detector for a passage to support a sentence ..."""
SHARE = 0.8
"""... if it also has this weighted share of the sentence's words"""


@dataclass(frozen=True)
class Sentence:
    """A sentence of an answer."""

    text: str
    citations: tuple[int, ...]
    """Numbers of the sources that support it, the most certain first; empty if none does"""
    score: float
    """The detector's highest probability that a passage supports it"""

    @property
    def supported(self) -> bool:
        """True if a source is cited for it."""
        return bool(self.citations)


@dataclass(frozen=True)
class Source:
    """A passage with its citation number."""

    number: int
    passage: PackedPassage


@dataclass(frozen=True)
class CitedSentences:
    """The sentences of an answer, and their sources."""

    sentences: tuple[Sentence, ...]
    sources: tuple[Source, ...]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class SupportEvidence:
    """The support for a sentence: which passages back it, and how strongly."""

    places: tuple[int, ...]
    """Indices (from 0) of the passages that support it, the most certain first"""
    words: tuple[str, ...]
    """For each of these, the sentence that states it"""
    score: float
    """The detector's highest probability that a passage supports it"""


class Citer:
    """The passages of an answer, prepared for checking sentences one by one."""

    def __init__(self, passages: Sequence[PackedPassage]) -> None:
        self._known = [detector.Sources([passage.text], passage.title) for passage in passages]

    def judge(self, text: str) -> SupportEvidence:
        """Return which passages support a sentence."""
        sentence = detector.Sentence(text)
        judged = [_compared(sentence, known) for known in self._known]
        ranked = sorted((n for n, each in enumerate(judged) if each.bears), key=lambda n: -judged[n].score)[:MOST_CITED]
        top = max((each.score for each in judged), default=0.0)
        return SupportEvidence(tuple(ranked), tuple(judged[n].likest for n in ranked), top)


def cite(answer: str, passages: Sequence[PackedPassage]) -> CitedSentences:
    """Judge every sentence against each passage alone, more strictly than whole answers against their context.

    A passage may be about something other than the question; the critical error is a sentence in the same words about
    another drug or disease. So a number, name, negation or direction that the passage doesn't have rules it out, and so
    do too many unknown words. The passage's title counts as known, but the question doesn't: otherwise, a passage about
    another disease would support whatever is said about the one in question. Repeated sentences and an unfinished last
    sentence are left out.
    """
    said, remarks = is_stated_in(answer)
    citer = Citer(passages)
    numbers: dict[int, int] = {}
    found: list[Sentence] = []
    for text in said:
        borne = citer.judge(text)
        for place in borne.places:
            numbers.setdefault(place, len(numbers) + 1)
        found.append(Sentence(text, tuple(numbers[place] for place in borne.places), borne.score))
    sources = tuple(Source(number, passages[place]) for place, number in numbers.items())
    return CitedSentences(tuple(found), sources, tuple(remarks))


def support(sentence: detector.Sentence, passage: detector.Sources) -> tuple[float, bool]:
    """Return the detector's probability that a passage supports a sentence, and whether it may be cited for it."""
    found = _compared(sentence, passage)
    return found.score, found.bears


@dataclass(frozen=True)
class _Compared:
    score: float
    bears: bool
    likest: str


def _compared(sentence: detector.Sentence, passage: detector.Sources) -> _Compared:
    seen = evidence(sentence, passage)
    score = 1 / (1 + exp(-sentence_logit(seen)))
    return _Compared(score, score >= SUPPORT and seen.features["known"] >= SHARE and not seen.spans, seen.likest)


def is_stated_in(answer: str) -> tuple[list[str], list[str]]:
    """Return the sentences of an answer that are judged, and remarks on what was left out."""
    said = [text for _, text in placed(answer)]
    remarks: list[str] = []
    if len(said) > 1 and said[-1][-1].isalnum():
        said.pop()
        remarks.append("The model's last sentence was cut off and is left out.")
    said = [text for text in said if not text.endswith("?")]  # a question makes no claim
    while said and said[-1].endswith(":"):
        said.pop()  # it announces text that the model never wrote
    once = list(dict.fromkeys(said))
    if len(once) < len(said):
        remarks.append("Sentences that the model repeated are shown once.")
    return once, remarks


WIDTH = 100
UNSUPPORTED = "[no source]"
"""Mark after a sentence that no passage supports"""
LINES = 8
"""Number of lines shown of a passage in place of an answer"""


@dataclass(frozen=True)
class CitedAnswer:
    """A model's answer to a question with its sources, or the reason why it is withheld."""

    question: str
    sentences: tuple[Sentence, ...]
    """The sentences that the model wrote, even if the answer is withheld"""
    sources: tuple[Source, ...]
    """The cited sources; all that were found if the answer is withheld"""
    packed: tuple[PackedPassage, ...]
    """The passages that the model read, the best first"""
    refusal: str = ""
    """Why the answer is withheld; empty if it isn't"""
    remarks: tuple[str, ...] = ()

    @property
    def unsupported(self) -> tuple[Sentence, ...]:
        """Sentences that no passage supports."""
        return tuple(sentence for sentence in self.sentences if not sentence.supported)


def as_dict(answer: CitedAnswer) -> dict[str, Any]:
    """Return the answer as a dict for JSON. A withheld answer is not in it."""
    shown = () if answer.refusal else answer.sentences
    return {
        "question": answer.question,
        "answer": " ".join(map(marked, shown)),
        "refusal": answer.refusal,
        "sentences": [
            {"text": each.text, "citations": list(each.citations), "score": each.score, "supported": each.supported}
            for each in shown
        ],
        "unsupported": [each.text for each in shown if not each.supported],
        "sources": [_source(each) for each in answer.sources],
        "used": [
            {"id": each.hit.passage.id, "score": each.hit.score, "meaning": each.hit.meaning} for each in answer.packed
        ],
        "remarks": list(answer.remarks),
        "limits": LIMITS,
    }


def as_text(answer: CitedAnswer) -> Iterator[str]:
    """Yield the answer as text lines: sentences with citations, the sources, remarks, limits."""
    if answer.refusal:
        yield from _wrapped(answer.refusal)
        if answer.sources:
            yield from ("", "The sources found:")
    else:
        yield from _wrapped(" ".join(map(marked, answer.sentences)))
        if answer.unsupported:
            yield from ("", f"{UNSUPPORTED}: none of the passages found supports this sentence. Don't rely on it.")
    if answer.sources:
        yield from ("",) if answer.refusal else ("", "Sources")
    for source in answer.sources:
        yield from _shown(source, quoted=bool(answer.refusal))
    yield ""
    for remark in answer.remarks:
        yield from _wrapped(f"Note: {remark}")
    yield from _wrapped(LIMITS)


def marked(sentence: Sentence) -> str:
    """Return a sentence with its citations, for example "It helps [1][2]" and its final stop."""
    mark = "".join(f"[{number}]" for number in sentence.citations) or UNSUPPORTED
    body = sentence.text.rstrip(".!?")
    return f"{body} {mark}{sentence.text[len(body) :]}"


def _shown(source: Source, quoted: bool) -> Iterator[str]:
    passage = source.passage.hit.passage
    start = f"[{source.number}] "
    title = source.passage.title or passage.document
    yield start + title + (f" [{passage.section}]" if passage.section else "")
    facts = (passage.url, passage.date, passage.licence, "restricted" if passage.restricted else "")
    yield f"    {' · '.join(fact for fact in facts if fact)}"
    if quoted:
        yield from textwrap.wrap(
            source.passage.text,
            WIDTH,
            initial_indent="    ",
            subsequent_indent="    ",
            max_lines=LINES,
            placeholder=" …",
        )


def _source(source: Source) -> dict[str, Any]:
    passage = source.passage.hit.passage
    return {
        "number": source.number,
        "id": passage.id,
        "title": source.passage.title,
        "section": passage.section,
        "url": passage.url,
        "licence": passage.licence,
        "date": passage.date,
        "restricted": passage.restricted,
        "text": source.passage.text,
    }


def _wrapped(text: str) -> Sequence[str]:
    return textwrap.wrap(text, WIDTH)
