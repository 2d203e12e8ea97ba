"""Why an answer is worth an expert's time: what each signal sees in a candidate, as a score and in words.

The signals are in families: uncertainty (the margin: Scheffer et al. 2001), disagreement (vote entropy: Dagan
and Engelson 1995; divergence from the mean: McCallum and Nigam 1998), feedback, novelty. Diversity is no signal of one
candidate: it is how far it is from those that are chosen before it (`choosing.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Literal, get_args

import numpy as np

from meditune.operate.learn.candidate import Candidate
from meditune.operate.learn.distances import Vectors

Family = Literal["uncertainty", "disagreement", "feedback", "novelty"]
FAMILIES: tuple[Family, ...] = get_args(Family)
TELLING = 0.5
"""A signal is told as a reason from this score on"""
ABSTAINED = 0.7
DOWN = 0.8
Embed = Callable[[Sequence[str]], Vectors]


@dataclass(frozen=True)
class Seen:
    """What a signal sees in one candidate."""

    score: float
    """0 to 1"""
    why: str


def unsure(candidate: Candidate) -> Seen | None:
    """How near the two likeliest decisions are to each other: one less their difference."""
    if not candidate.opinions:
        return None
    name, chances = next(iter(candidate.opinions.items()))
    likeliest = sorted(chances, key=lambda each: -chances[each])
    told = ", ".join(f"{each} {chances[each]:.0%}" for each in likeliest[:3])
    margin = chances[likeliest[0]] - chances[likeliest[1]]
    return Seen(1 - margin, f"its decision is unsure ({name}: {told})")


def unsupported(candidate: Candidate) -> Seen | None:
    """The share of sentences that no passage bears out."""
    if not candidate.sentences or candidate.supported is None:
        return None
    bad = candidate.sentences - candidate.supported
    of = "its only sentence" if candidate.sentences == 1 else f"{bad} of its {candidate.sentences} sentences"
    return Seen(bad / candidate.sentences, f"no passage bears out {of}")


def abstained(candidate: Candidate) -> Seen | None:
    """Whether the model had nothing to say."""
    return Seen(ABSTAINED, "the model abstained") if candidate.outcome == "abstained" else None


def disagreeing(candidate: Candidate) -> Seen | None:
    """Decisions of several models: the entropy of their votes, or how far their probabilities are from the mean."""
    if len(candidate.opinions) < 2:
        return None
    labels = list(next(iter(candidate.opinions.values())))
    chances = np.array([[each[label] for label in labels] for each in candidate.opinions.values()])
    votes = np.bincount(chances.argmax(axis=1), minlength=len(labels)) / len(chances)
    most = log(min(len(chances), len(labels)))
    apart = _entropy(chances.mean(axis=0)) - float(np.mean([_entropy(row) for row in chances]))
    said = ", ".join(f"{name} {max(each, key=lambda label: each[label])}" for name, each in candidate.opinions.items())
    return Seen(min(1.0, max(_entropy(votes), apart) / most), f"decisions differ ({said})")


def scattered(candidate: Candidate, embed: Embed) -> Seen | None:
    """How little sampled answers have to do with each other: one less their mean cosine."""
    if len(candidate.samples) < 2:
        return None
    vectors = embed(candidate.samples)
    pairs = np.triu_indices(len(vectors), 1)
    alike = float((vectors @ vectors.T)[pairs].mean())
    return Seen(float(np.clip(1 - alike, 0, 1)), f"{len(vectors)} sampled answers differ (mean cosine {alike:.2f})")


def disliked(candidate: Candidate) -> Seen | None:
    """The share of users who rated it down."""
    down = [each for each in candidate.words if each.rating == "down"]
    if not down:
        return None
    reasons = sorted({reason for each in down for reason in each.reasons})
    of = "a user" if len(candidate.words) == 1 else f"{len(down)} of {len(candidate.words)} users"
    return Seen(
        DOWN * len(down) / len(candidate.words),
        f"{of} rated it down" + (f" ({', '.join(reasons)})" if reasons else ""),
    )


def corrected(candidate: Candidate) -> Seen | None:
    """Whether a user wrote what should have been said."""
    return Seen(1.0, "a user wrote a correction") if any(each.correction for each in candidate.words) else None


def novel(rank: float, cosine: float) -> Seen:
    """`rank` is the share of known questions that are nearer to the other known ones; `cosine` to the nearest one."""
    return Seen(rank, f"farther from what is known than {rank:.0%} of it (nearest: cosine {cosine:.2f})")


SIGNALS: Mapping[Family, Mapping[str, Callable[[Candidate], Seen | None]]] = {
    "uncertainty": {"unsure": unsure, "unsupported": unsupported, "abstained": abstained},
    "disagreement": {"disagreeing": disagreeing},
    "feedback": {"disliked": disliked, "corrected": corrected},
    "novelty": {},
}
"""Those that need nothing but the candidate"""


def _entropy(chances: np.ndarray) -> float:
    known = chances[chances > 0]
    return float(-(known * np.log(known)).sum())
