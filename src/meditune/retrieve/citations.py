"""Citations: which passages support each sentence of an answer.

The lexical detector in meditune.evidence compares words. A judge, which is a language model
(engines/evidence_judge.py), also compares meaning. If there is a judge, it checks an answer's sentences until its time
is used up, and the detector checks the rest.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp
from typing import Literal, Protocol

from meditune.errors import ModelError
from meditune.evidence import lexical_detector
from meditune.evidence.lexical_detector import Evidence, SpanKind, evidence, placed, sentence_logit
from meditune.evidence.support_model import ClaimVerdict
from meditune.observability import LOGGER, error_location
from meditune.retrieve.context_packing import PackedPassage

MAX_CITATIONS = 2  # Maximum number of passages cited for a sentence; the best ones are chosen
SUPPORT = 0.437  # Minimum probability from the detector for a passage to support a sentence
SHARE = 0.8  # Minimum weighted fraction of the sentence's words that the passage must contain
MAX_JUDGED_PASSAGES = 3  # Maximum number of passages that a judge reads for a sentence
JUDGE_SECONDS = 20.0  # Maximum time for judging the sentences of one answer, except for the last passage
CheckedBy = Literal["judge", "detector"]
Unjudged = Literal["time", "failure"]
"""Why the judge didn't check a sentence: its time was used up, or it failed"""
UNFINISHED = ",;/([<>=–—-"
"""Characters at the end of a sentence that was cut off"""
MISSING: frozenset[SpanKind] = frozenset(("name", "number", "unit"))
"""Kinds of unsupported spans that rule out a passage, whatever a judge decides: the passage lacks a name, number or
unit of the sentence"""


class Judge(Protocol):
    """A judge that decides whether passages support statements."""

    name: str
    citing_threshold: float
    """Minimum probability of support with which a sentence may cite a passage"""

    def supports(
        self, statements: Sequence[str], passages: Sequence[str], wait_s: float, question: str
    ) -> list[ClaimVerdict]:
        """Return a verdict for each statement, in order. The statements answer the `question` (empty if unknown).

        Raises TimeoutError if the judge is busy for more than `wait_s` seconds, and ModelError if it fails.
        """
        ...


@dataclass(frozen=True)
class SupportEvidence:
    """The support for a sentence: which passages back it, and how strongly."""

    places: tuple[int, ...]  # Indices (0-based) of the passages that support the sentence, the most certain first
    words: tuple[str, ...]  # For each of these passages, its sentence that is closest to the checked one
    score: float  # The highest probability that a passage supports the sentence
    checked_by: CheckedBy = "detector"


class Citer:
    """The passages of an answer, prepared for checking sentences one by one.

    Every sentence is compared with each passage separately, and more strictly than a whole answer with its context. The
    critical error is to cite a passage that says the same about another drug or disease. Therefore, a passage is ruled
    out if it lacks a name or number from the sentence. Without a judge, it is also ruled out by a different negation or
    direction, or by too many unknown words. The words of the passage's title count as known. The words of the question
    don't, because a passage about another disease would otherwise support a sentence about the question's disease.
    """

    def __init__(
        self,
        passages: Sequence[PackedPassage],
        judge: Judge | None = None,
        seconds: float = JUDGE_SECONDS,
        threshold: float | None = None,
        question: str = "",
    ) -> None:
        """Prepare the passages. `judge` checks the sentences, which answer `question`, for up to `seconds` in total.

        With a judge, a passage supports a sentence if the probability of support is at least `threshold` (None: the
        judge's `citing_threshold`).
        """
        self._passages = passages
        self._threshold = threshold if threshold is not None else judge.citing_threshold if judge else SUPPORT
        self._known = [lexical_detector.Sources([passage.text], passage.title) for passage in passages]
        self._judge, self._left, self._question = judge, seconds, question
        self.unjudged: Counter[Unjudged] = Counter()
        """Numbers of sentences that the detector checked in place of the judge, by reason"""

    def judge(self, text: str) -> SupportEvidence:
        """Return which passages support a sentence."""
        sentence = lexical_detector.Sentence(text)
        judged = [_compared(sentence, known) for known in self._known]
        checked_by: CheckedBy = "detector"
        if self._judge:
            judged, reason = self._read(self._judge, text, judged)
            if reason:
                self.unjudged[reason] += 1
            else:
                checked_by = "judge"
        ranked = sorted((n for n, each in enumerate(judged) if each.bears), key=lambda n: -judged[n].score)[
            :MAX_CITATIONS
        ]
        top = max((each.score for each in judged), default=0.0)
        words = tuple(judged[n].evidence.closest_source for n in ranked)
        return SupportEvidence(tuple(ranked), words, top, checked_by)

    def _read(self, judge: Judge, text: str, judged: Sequence[_Compared]) -> tuple[list[_Compared], Unjudged | None]:
        """Return the judge's findings, and why the detector decides instead; None if the judge decides.

        The judge reads only the passages that share the most words with the sentence and contain all of its names and
        numbers. Other passages can't be cited. If no time is left or the judge fails before it has found support, the
        detector's findings count for the passages that the judge hasn't read.
        """
        latest = time.monotonic() + self._left
        reason: Unjudged | None = None
        found = [replace(each, score=0.0, bears=False) for each in judged]
        complete = [n for n, each in enumerate(judged) if not any(span.kind in MISSING for span in each.evidence.spans)]
        unread = sorted(complete, key=lambda n: -judged[n].evidence.features["known"])[:MAX_JUDGED_PASSAGES]
        try:
            while unread:
                n, left = unread[0], latest - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                (verdict,) = judge.supports([text], [self._passages[n].shown], left, self._question)
                found[n] = replace(judged[n], score=verdict.supported, bears=verdict.supported >= self._threshold)
                unread.pop(0)
        except TimeoutError:
            reason = "time"
        except ModelError as error:
            LOGGER.warning("the judge can't check a sentence", extra=error_location(error))
            reason = "failure"
        self._left = latest - time.monotonic()
        if not reason or any(each.bears for each in found):
            return found, None
        for n in unread:
            found[n] = judged[n]
        return found, reason


def support(sentence: lexical_detector.Sentence, passage: lexical_detector.Sources) -> tuple[float, bool]:
    """Return the probability that a passage supports a sentence, and whether the sentence may cite the passage."""
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
    """Return an answer's sentences that state something, without repetitions or an unfinished last sentence."""
    found = [text for _, text in placed(answer)]
    if len(found) > 1 and (found[-1][-1].isalnum() or found[-1][-1] in UNFINISHED):
        found.pop()
    found = [text for text in found if not text.endswith("?")]  # a question makes no claim
    while found and found[-1].endswith(":"):
        found.pop()  # the colon introduces text that the model never wrote
    first: dict[str, str] = {}
    for text in found:
        first.setdefault(words_of(text), text)
    return list(first.values())


def words_of(sentence: str) -> str:
    """Return a sentence in lower case, without quotation marks, full stops and exclamation marks at its ends.

    The result is the same for a sentence and its repetition.
    """
    return " ".join(sentence.casefold().split()).strip(".!\"'“”‘’ ")
