"""The detector: which sentences of an answer its sources bear out, how surely, and what in them stands against it.

No model reads here. It is seen which words, numbers, names, negations and directions the sources share with a sentence,
not what is meant; so a claim that is told in quite other words scores low, and a false one in the source's words is
seen only where a number, a negation or a direction gives it away.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import exp, log
from statistics import fmean

from meditune.faithfulness import calibration
from meditune.faithfulness.evidence import Evidence, Span, evidence
from meditune.faithfulness.sources import Sentence, Sources
from meditune.text import sentences

BROKEN_OFF = 30
"""Words from which on an answer that ends without a full stop is taken to be broken off"""
MOST = 12.0
"""Log-odds of a sentence, either way, beyond which nothing is learnt from it"""


@dataclass(frozen=True)
class Judged:
    """One sentence of an answer."""

    start: int
    end: int
    score: float
    """The calibrated probability that the sources bear it out."""
    spans: tuple[Span, ...]
    """Positions in the answer"""

    @property
    def supported(self) -> bool:
        """Whether the score is above the one that a tenth or fewer of true sentences fall below."""
        return self.score >= calibration.SENTENCE


@dataclass(frozen=True)
class Judgement:
    """A whole answer."""

    score: float | None
    """The calibrated probability that the sources bear out all of it; None without a sentence to judge."""
    sentences: tuple[Judged, ...]

    @property
    def faithful(self) -> bool:
        """Whether the score is above the one that a tenth or fewer of true answers fall below; True without one."""
        return self.score is None or self.score >= calibration.ANSWER

    @property
    def spans(self) -> tuple[Span, ...]:
        """Of all sentences."""
        return tuple(span for each in self.sentences for span in each.spans)


def detect(answer: str, sources: Sources) -> Judgement:
    """Judge an answer. The scores' base rate is that of the set they were fitted on, half of it unfaithful."""
    judged = tuple(_judged(text, start, sources) for start, text in placed(_ended(answer)))
    if not judged:
        return Judgement(None, ())
    return Judgement(_sigmoid(answer_logit([_logit(each.score) for each in judged])), judged)


def placed(answer: str) -> Iterator[tuple[int, str]]:
    """The sentences of an answer that have a word or number, and where they start; a line's end ends one, too."""
    start = 0
    for line in answer.splitlines():
        for text in sentences(line):
            start = answer.index(text, start)
            if any(char.isalnum() for char in text):
                yield start, text
            start += len(text)


def _ended(answer: str) -> str:
    """The answer without its last word, where it is so long that it was probably broken off within that word."""
    whole = answer.rstrip()
    if whole and whole[-1].isalnum() and whole.count(" ") >= BROKEN_OFF:
        return whole.rpartition(" ")[0]
    return answer


def sentence_logit(found: Evidence) -> float:
    """The log-odds that the sources bear a sentence out, from -MOST to MOST."""
    form = calibration.FOLLOWING if found.follows else calibration.PARAPHRASING
    logit = sum(value * found.features.get(name, 1.0) for name, value in form.items())
    return max(-MOST, min(MOST, logit))


def answer_features(logits: list[float]) -> dict[str, float]:
    """What an answer's log-odds are made of, from those of its sentences."""
    return {
        "lowest": min(logits),
        "mean": fmean(logits),
        "sentences": log(len(logits)),
        "soft_lowest": log(fmean(exp(-each) for each in logits)),
    }


def answer_logit(logits: list[float]) -> float:
    """The log-odds that the sources bear out all of an answer."""
    form, features = calibration.WHOLE, answer_features(logits)
    return sum(value * features.get(name, 1.0) for name, value in form.items())


def _judged(text: str, start: int, sources: Sources) -> Judged:
    found = evidence(Sentence(text), sources)
    score = _sigmoid(sentence_logit(found))
    spans = found.spans
    if not spans and score < calibration.SENTENCE:
        likest = found.likest if found.features["best"] > 0.2 else ""
        spans = [Span(0, len(text), "unsupported", _why(found), likest)]
    moved = (replace(span, start=start + span.start, end=start + span.end) for span in spans)
    return Judged(start, start + len(text), score, tuple(sorted(moved, key=lambda span: span.start)))


def _why(found: Evidence) -> str:
    share = f"{100 * found.features['known']:.0f} %"
    if found.features["known"] < 0.6:
        return f"Few of its words are in the sources ({share}, by weight)."
    return f"Its words are in the sources ({share}, by weight), but no sentence of theirs says this with them."


def _sigmoid(value: float) -> float:
    return 1 / (1 + exp(-value)) if value >= 0 else exp(value) / (1 + exp(value))


def _logit(share: float) -> float:
    return log(share / (1 - share))
