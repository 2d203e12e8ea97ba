"""Citations: which passages support each sentence of an answer.

The detector of meditune.evidence compares words; a judge (engines/evidence_judge.py) also reads their meaning. If there
is a judge, it checks an answer's sentences until the time for judging is used up; the detector checks the rest.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp
from typing import Protocol

from meditune.errors import ModelError
from meditune.evidence import lexical_detector
from meditune.evidence.lexical_detector import Evidence, SpanKind, evidence, placed, sentence_logit
from meditune.evidence.support_model import ClaimVerdict
from meditune.observability import LOGGER
from meditune.retrieve.context_packing import PackedPassage

MAX_CITATIONS = 2  # Maximum number of passages cited for a sentence, the best ones
SUPPORT = 0.437  # Minimum probability by the detector for a passage to support a sentence
SHARE = 0.8  # Minimum weighted share of the sentence's words that the passage must have, too
JUDGED_SUPPORT = 0.65
"""Minimum probability by a judge for a passage to support a sentence. The judge's own threshold is lower, because it
limits false alarms on true conclusions; at that threshold, more than half of the sentences shown were unsupported
(docs/experiments/faithfulness.md)."""
MAX_JUDGED_PASSAGES = 3  # Maximum number of passages that a judge reads for a sentence
JUDGE_SECONDS = 20.0  # Maximum time for judging the sentences of one answer
MISSING: frozenset[SpanKind] = frozenset(("name", "number", "unit"))
"""Kinds of spans that rule out a passage whatever a judge says, because it lacks a name or number of the sentence"""


class Judge(Protocol):
    """A judge that decides whether passages support statements."""

    name: str

    def supports(self, statements: Sequence[str], passages: Sequence[str]) -> list[ClaimVerdict]:
        """Return a verdict for each statement, in order."""
        ...


@dataclass(frozen=True)
class SupportEvidence:
    """The support for a sentence: which passages back it, and how strongly."""

    places: tuple[int, ...]  # Indices (0-based) of the passages that support the sentence, the most certain first
    words: tuple[str, ...]  # For each of these passages, the sentence in it that is closest
    score: float  # The highest probability that a passage supports the sentence


class Citer:
    """The passages of an answer, prepared for checking sentences one by one.

    Every sentence is compared with each passage alone, more strictly than whole answers with their context. A passage
    may be about something other than the question; the critical error is a sentence in the same words about another
    drug or disease. So a name or number that the passage doesn't have rules the passage out. Without a judge, a
    different negation or direction and too many unknown words rule it out, too. The words of the passage's title count
    as known, but those of the question don't: otherwise, a passage about another disease would support a sentence about
    the disease in the question.
    """

    def __init__(
        self,
        passages: Sequence[PackedPassage],
        judge: Judge | None = None,
        seconds: float = JUDGE_SECONDS,
        threshold: float = JUDGED_SUPPORT,
    ) -> None:
        """Prepare the passages. `judge` checks the sentences, for up to `seconds` in total.

        A passage supports a sentence if the judge gives it a probability of at least `threshold`.
        """
        self._passages, self._threshold = passages, threshold
        self._known = [lexical_detector.Sources([passage.text], passage.title) for passage in passages]
        self._judge, self._left = judge, seconds
        self.unjudged = 0
        """The number of sentences that the detector checked although there is a judge"""

    def judge(self, text: str) -> SupportEvidence:
        """Return which passages support a sentence."""
        sentence = lexical_detector.Sentence(text)
        judged = [_compared(sentence, known) for known in self._known]
        if self._judge:
            judged = self._read(self._judge, text, judged)
        ranked = sorted((n for n, each in enumerate(judged) if each.bears), key=lambda n: -judged[n].score)[
            :MAX_CITATIONS
        ]
        top = max((each.score for each in judged), default=0.0)
        return SupportEvidence(tuple(ranked), tuple(judged[n].evidence.closest_source for n in ranked), top)

    def _read(self, judge: Judge, text: str, judged: Sequence[_Compared]) -> list[_Compared]:
        """Return the judge's findings, or the detector's if no time is left or the judge fails.

        The judge reads the passages that share the most words with the sentence; no other passage can be cited. It
        doesn't read passages without the sentence's names and numbers.
        """
        if self._left <= 0:
            self.unjudged += 1
            return list(judged)
        started = time.monotonic()
        found = [replace(each, score=0.0, bears=False) for each in judged]
        complete = [n for n, each in enumerate(judged) if not any(span.kind in MISSING for span in each.evidence.spans)]
        try:
            for n in sorted(complete, key=lambda n: -judged[n].evidence.features["known"])[:MAX_JUDGED_PASSAGES]:
                (verdict,) = judge.supports([text], [self._passages[n].shown])
                found[n] = replace(judged[n], score=verdict.supported, bears=verdict.supported >= self._threshold)
        except ModelError as error:
            LOGGER.warning("the judge can't check a sentence", extra={"why": str(error)})
            self.unjudged += 1
            return list(judged)
        self._left -= time.monotonic() - started
        return found


def support(sentence: lexical_detector.Sentence, passage: lexical_detector.Sources) -> tuple[float, bool]:
    """Return the probability that a passage supports a sentence, and whether the passage may be cited for it."""
    found = _compared(sentence, passage)
    return found.score, found.bears


@dataclass(frozen=True)
class _Compared:
    score: float
    bears: bool
    evidence: Evidence


def _compared(sentence: lexical_detector.Sentence, passage: lexical_detector.Sources) -> _Compared:
    seen = evidence(sentence, passage)
    score = 1 / (1 + exp(-sentence_logit(seen)))
    return _Compared(score, score >= SUPPORT and seen.features["known"] >= SHARE and not seen.spans, seen)


def stated_sentences(answer: str) -> list[str]:
    """Return the sentences of an answer that state something, without repetitions or an unfinished last one."""
    found = [text for _, text in placed(answer)]
    if len(found) > 1 and found[-1][-1].isalnum():
        found.pop()
    found = [text for text in found if not text.endswith("?")]  # a question makes no claim
    while found and found[-1].endswith(":"):
        found.pop()  # it introduces text that the model never wrote
    return list(dict.fromkeys(found))
