"""Which passages bear out each sentence of an answer: citations, numbered in the order of their first use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp

from meditune.faithfulness import sources as words
from meditune.faithfulness.detect import placed, sentence_logit
from meditune.faithfulness.evidence import evidence
from meditune.retrieve.packing import Packed

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
    passage: Packed


@dataclass(frozen=True)
class Cited:
    """An answer in sentences, and what they rest on."""

    sentences: tuple[Sentence, ...]
    sources: tuple[Source, ...]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Borne:
    """How the passages stand to one sentence."""

    places: tuple[int, ...]
    """Of the passages that bear it out, the surest first; from 0"""
    words: tuple[str, ...]
    """Of each of these the sentence that says it"""
    score: float
    """The detector's highest probability that one of the passages bears it out"""


class Citer:
    """The passages of one answer, ready to be compared with its sentences one by one."""

    def __init__(self, passages: Sequence[Packed]) -> None:
        self._known = [words.Sources([passage.text], passage.title) for passage in passages]

    def judge(self, text: str) -> Borne:
        """Which passages bear a sentence out."""
        sentence = words.Sentence(text)
        judged = [_compared(sentence, known) for known in self._known]
        ranked = sorted((n for n, each in enumerate(judged) if each.bears), key=lambda n: -judged[n].score)[:MOST_CITED]
        top = max((each.score for each in judged), default=0.0)
        return Borne(tuple(ranked), tuple(judged[n].likest for n in ranked), top)


def cite(answer: str, passages: Sequence[Packed]) -> Cited:
    """Judge every sentence by each passage alone, and more strictly than whole answers are judged by their context.

    A passage that was found may be about something else than was asked, and a sentence about another drug or disease in
    the same words is the error that matters. So a number, name, negation or direction that isn't the passage's rules
    it out, and so do too many unknown words. Its title counts as known, the question doesn't: else a passage about
    another disease would bear out whatever is said of the asked one. Sentences that repeat an earlier one, and a last
    one that the model didn't end, are left out.
    """
    said, remarks = said_in(answer)
    citer = Citer(passages)
    numbers: dict[int, int] = {}
    found: list[Sentence] = []
    for text in said:
        borne = citer.judge(text)
        for place in borne.places:
            numbers.setdefault(place, len(numbers) + 1)
        found.append(Sentence(text, tuple(numbers[place] for place in borne.places), borne.score))
    sources = tuple(Source(number, passages[place]) for place, number in numbers.items())
    return Cited(tuple(found), sources, tuple(remarks))


def support(sentence: words.Sentence, passage: words.Sources) -> tuple[float, bool]:
    """The detector's probability that a passage bears a sentence out, and whether it may be cited for it."""
    found = _compared(sentence, passage)
    return found.score, found.bears


@dataclass(frozen=True)
class _Compared:
    score: float
    bears: bool
    likest: str


def _compared(sentence: words.Sentence, passage: words.Sources) -> _Compared:
    seen = evidence(sentence, passage)
    score = 1 / (1 + exp(-sentence_logit(seen)))
    return _Compared(score, score >= SUPPORT and seen.features["known"] >= SHARE and not seen.spans, seen.likest)


def said_in(answer: str) -> tuple[list[str], list[str]]:
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
