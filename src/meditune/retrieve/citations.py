"""Which passages bear out each sentence of an answer: citations, numbered in the order of their first use.

An answer with its sources, as it is handed on: to the terminal, as JSON, to a server.
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
"""Passages cited for one sentence: the best"""
SUPPORT = 0.437
"""The detector's probability from which on a passage bears a sentence out ..."""
SHARE = 0.8
"""... if it also has this share of the sentence's words, weighted by how much they say"""


@dataclass(frozen=True)
class Sentence:
    """A sentence of an answer."""

    text: str
    citations: tuple[int, ...]
    """Numbers of the sources that bear it out, the surest first; empty where none does."""
    score: float
    """The detector's highest probability that one of the passages bears it out"""

    @property
    def supported(self) -> bool:
        """Whether a source is cited for it."""
        return bool(self.citations)


@dataclass(frozen=True)
class Source:
    """A passage under the number by which it is cited."""

    number: int
    passage: PackedPassage


@dataclass(frozen=True)
class CitedSentences:
    """An answer in sentences, and what they rest on."""

    sentences: tuple[Sentence, ...]
    sources: tuple[Source, ...]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class SupportEvidence:
    """How the passages stand to one sentence."""

    places: tuple[int, ...]
    """Of the passages that bear it out, the surest first; from 0"""
    words: tuple[str, ...]
    """Of each of these the sentence that says it"""
    score: float
    """The detector's highest probability that one of the passages bears it out"""


class Citer:
    """The passages of one answer, ready to be compared with its sentences one by one."""

    def __init__(self, passages: Sequence[PackedPassage]) -> None:
        self._known = [detector.Sources([passage.text], passage.title) for passage in passages]

    def judge(self, text: str) -> SupportEvidence:
        """Which passages bear a sentence out."""
        sentence = detector.Sentence(text)
        judged = [_compared(sentence, known) for known in self._known]
        ranked = sorted((n for n, each in enumerate(judged) if each.bears), key=lambda n: -judged[n].score)[:MOST_CITED]
        top = max((each.score for each in judged), default=0.0)
        return SupportEvidence(tuple(ranked), tuple(judged[n].likest for n in ranked), top)


def cite(answer: str, passages: Sequence[PackedPassage]) -> CitedSentences:
    """Judge every sentence by each passage alone, and more strictly than whole answers are judged by their context.

    A passage that was found may be about something else than was asked, and a sentence about another drug or disease in
    the same words is the error that matters. So a number, name, negation or direction that isn't the passage's rules
    it out, and so do too many unknown words. Its title counts as known, the question doesn't: else a passage about
    another disease would bear out whatever is said of the asked one. Sentences that repeat an earlier one, and a last
    one that the model didn't end, are left out.
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
    """The detector's probability that a passage bears a sentence out, and whether it may be cited for it."""
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
    """The sentences of an answer that are judged, and remarks on what was left out."""
    said = [text for _, text in placed(answer)]
    remarks: list[str] = []
    if len(said) > 1 and said[-1][-1].isalnum():
        said.pop()
        remarks.append("The model's last sentence broke off and is left out.")
    said = [text for text in said if not text.endswith("?")]  # a question claims nothing that could be borne out
    while said and said[-1].endswith(":"):
        said.pop()  # it announces what the model never wrote, often in the question's own words
    once = list(dict.fromkeys(said))
    if len(once) < len(said):
        remarks.append("Sentences that the model repeated are shown once.")
    return once, remarks


WIDTH = 100
UNSUPPORTED = "[no source]"
"""Stands after a sentence that no passage bears out"""
LINES = 8
"""Of a passage that is handed back in place of an answer"""


@dataclass(frozen=True)
class CitedAnswer:
    """What a model says to a question from what was found, or why it is kept back."""

    question: str
    sentences: tuple[Sentence, ...]
    """What the model wrote; also where it is kept back"""
    sources: tuple[Source, ...]
    """Those that are cited; where the answer is kept back, all that were found"""
    packed: tuple[PackedPassage, ...]
    """The passages that the model read, the best first"""
    refusal: str = ""
    """Why the answer is kept back; empty where it isn't"""
    remarks: tuple[str, ...] = ()

    @property
    def unsupported(self) -> tuple[Sentence, ...]:
        """Sentences that no passage bears out."""
        return tuple(sentence for sentence in self.sentences if not sentence.supported)


def as_dict(answer: CitedAnswer) -> dict[str, Any]:
    """For JSON. An answer that is kept back isn't in it."""
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
    """For people: the answer with its citations, the sources, remarks, limits."""
    if answer.refusal:
        yield from _wrapped(answer.refusal)
        if answer.sources:
            yield from ("", "The sources found say:")
    else:
        yield from _wrapped(" ".join(map(marked, answer.sentences)))
        if answer.unsupported:
            yield from ("", f"{UNSUPPORTED}: none of the passages found bears this sentence out. Don't rely on it.")
    if answer.sources:
        yield from ("",) if answer.refusal else ("", "Sources")
    for source in answer.sources:
        yield from _shown(source, quoted=bool(answer.refusal))
    yield ""
    for remark in answer.remarks:
        yield from _wrapped(f"Note: {remark}")
    yield from _wrapped(LIMITS)


def marked(sentence: Sentence) -> str:
    """A sentence with what it rests on: "It helps [1][2]." """
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
