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


def cite(answer: str, passages: Sequence[Packed]) -> Cited:
    """Judge every sentence by each passage alone, and more strictly than whole answers are judged by their context.

    A passage that was found may be about something else than was asked, and a sentence about another drug or disease in
    the same words is the error that matters. So a number, name, negation or direction that isn't the passage's rules
    it out, and so do too many unknown words. Its title counts as known, the question doesn't: else a passage about
    another disease would bear out whatever is said of the asked one. Sentences that repeat an earlier one, and a last
    one that the model didn't end, are left out.
    """
    said, remarks = _sentences(answer)
    each_knows = [words.Sources([passage.text], passage.title) for passage in passages]
    numbers: dict[int, int] = {}
    found: list[Sentence] = []
    for text in said:
        sentence = words.Sentence(text)
        judged = [support(sentence, known) for known in each_knows]
        ranked = sorted(
            (place for place, (_, borne_out) in enumerate(judged) if borne_out), key=lambda n: -judged[n][0]
        )
        for place in ranked[:MOST_CITED]:
            numbers.setdefault(place, len(numbers) + 1)
        top = max((score for score, _ in judged), default=0.0)
        found.append(Sentence(text, tuple(numbers[place] for place in ranked[:MOST_CITED]), top))
    sources = tuple(Source(number, passages[place]) for place, number in numbers.items())
    return Cited(tuple(found), sources, tuple(remarks))


def support(sentence: words.Sentence, passage: words.Sources) -> tuple[float, bool]:
    """The detector's probability that a passage bears a sentence out, and whether it may be cited for it."""
    seen = evidence(sentence, passage)
    score = 1 / (1 + exp(-sentence_logit(seen)))
    return score, score >= SUPPORT and seen.features["known"] >= SHARE and not seen.spans


def _sentences(answer: str) -> tuple[list[str], list[str]]:
    """Those that are judged, and remarks on what was left out."""
    said = [text for _, text in placed(answer)]
    remarks: list[str] = []
    if len(said) > 1 and said[-1][-1].isalnum():
        said.pop()
        remarks.append("The model's last sentence broke off and is left out.")
    while said and said[-1].endswith(":"):
        said.pop()  # it announces what the model never wrote, often in the question's own words
    said = [text for text in said if not text.endswith("?")]  # a question claims nothing that could be borne out
    once = list(dict.fromkeys(said))
    if len(once) < len(said):
        remarks.append("Sentences that the model repeated are shown once.")
    return once, remarks
