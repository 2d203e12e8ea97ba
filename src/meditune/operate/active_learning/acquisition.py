"""Acquisition functions of active learning: signals that score a candidate, and strategies that choose among them.

The signals form families: uncertainty (the margin: Scheffer et al. 2001), disagreement (vote entropy: Dagan and
Engelson 1995; divergence from the mean: McCallum and Nigam 1998), feedback, and novelty. Diversity is no signal of a
single candidate: `picks` measures the distance to the candidates chosen before. Decisions come from models asked now or
from stored predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import log
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from meditune.data.example import DECISIONS, Example
from meditune.errors import DataError
from meditune.files import numbered_jsonl
from meditune.operate.active_learning.candidates import Candidate, Chances, NothingToAskError

BATCH_TOKENS = 4096


def with_opinion(candidates: Sequence[Candidate], name: str, probabilities: Mapping[str, Chances]) -> list[Candidate]:
    """Return the candidates with the decisions of another model, by the example's id."""
    return [
        replace(each, probabilities={**each.probabilities, name: probabilities[each.id]})
        if each.id in probabilities
        else each
        for each in candidates
    ]


def with_samples(candidates: Sequence[Candidate], samples: Mapping[str, Sequence[str]]) -> list[Candidate]:
    """Return the candidates with a model's sampled answers, by the example's id."""
    return [
        replace(each, samples=(*each.samples, *samples[each.id])) if each.id in samples else each for each in candidates
    ]


def stored(candidates: Sequence[Candidate], path: Path) -> list[Candidate]:
    """Return the candidates with the predictions in a file: rows of id and logits, or of id and sampled answers.

    Raises DataError if the file holds neither, or no prediction for any candidate.
    """
    chances: dict[str, Chances] = {}
    samples: dict[str, Sequence[str]] = {}
    for number, row in numbered_jsonl(path):
        if not isinstance(row.get("id"), str):
            raise DataError(f"{path}, line {number}: no id.")
        if isinstance(row.get("logits"), dict):
            chances[row["id"]] = _probabilities(row["logits"], f"{path}, line {number}")
        elif isinstance(row.get("predictions"), list):
            samples[row["id"]] = [str(each) for each in row["predictions"]]
        else:
            raise DataError(
                f"{path}, line {number}: neither logits nor sampled predictions. Give a file from a run's "
                "predictions/, such as tuned-decision.jsonl or tuned-samples.jsonl."
            )
    ids = {each.id for each in candidates}
    if not ids & (chances.keys() | samples.keys()):
        raise DataError(f"{path}: none of its ids matches a candidate. Are these predictions for other rows?")
    return with_samples(with_opinion(candidates, path.stem, chances), samples)


def asked_decisions(
    candidates: Sequence[Candidate], model: str, samples: int = 0, seed: int = 17
) -> tuple[list[Candidate], list[str]]:
    """Return the candidates with a model's decisions and its sampled answers, and the ids of questions that are too
    long.

    Each question is asked with its own context; candidates that are too long for the model's prompt stay unchanged.
    Raises ModelError if the model is unavailable.
    """
    from meditune.config.data_options import PromptFormat
    from meditune.config.recipe import EvaluateSpec
    from meditune.evaluate.likelihood import score
    from meditune.evaluate.metrics.confidence import probabilities
    from meditune.evaluate.weights_backend import sample_answers
    from meditune.models.load import load
    from meditune.models.shared_prefix_batch import Row, join
    from meditune.prompts import QuestionTooLongError

    loaded = load(model)
    encoder = loaded.encoder(loaded.form or PromptFormat())
    rows: list[Row] = []
    fit: list[Example] = []
    too_long: list[str] = []
    for each in candidates:
        # The decision only marks the position to score; which one it is makes no difference.
        example = each.example.model_copy(update={"decision": DECISIONS[0]})
        try:
            rows.append(join([encoder.supervised(example, "decision")]))
            fit.append(example)
        except QuestionTooLongError:
            too_long.append(each.id)
    found = score(loaded, rows, BATCH_TOKENS, f"Decisions of {model}", encoder.label_ids()).decisions
    known = with_opinion(candidates, model, {id: probabilities(logits) for id, logits in found.items()})
    if samples:
        sampled = sample_answers(
            loaded, encoder, fit, samples, EvaluateSpec().max_new_tokens, seed, f"Answers of {model}"
        )
        known = with_samples(known, {row["id"]: row["predictions"] for row in sampled})
    return known, too_long


def _probabilities(logits: Mapping[str, Any], location: str) -> dict[str, float]:
    from meditune.evaluate.metrics.confidence import probabilities

    if not all(isinstance(logits.get(each), int | float) for each in DECISIONS):
        raise DataError(f"{location}: logits must hold a number for each of {', '.join(DECISIONS)}.")
    return probabilities({each: float(logits[each]) for each in DECISIONS})


Vectors = NDArray[np.float32]
"""(n, size), each of length 1"""
Array = NDArray[np.float64]
NEAREST_NEIGHBOURS = 5


def nearest(vectors: Vectors, known: Vectors, skip_itself: bool = False) -> tuple[Array, Array]:
    """Return (n,) 1 minus the mean cosine to the NEAREST_NEIGHBOURS known vectors, and (n,) the cosine to the nearest.

    With `skip_itself`, the vectors are the known ones, and none counts as its own neighbour.
    """
    count = min(NEAREST_NEIGHBOURS, len(known) - skip_itself)
    if count < 1:
        return np.ones(len(vectors)), np.zeros(len(vectors))
    from sklearn.neighbors import NearestNeighbors

    found = NearestNeighbors(n_neighbors=count, metric="cosine", algorithm="brute").fit(known)
    distances = found.kneighbors(None if skip_itself else vectors)[0].astype(np.float64)
    return distances.mean(axis=1), 1 - distances[:, 0]


def novelty(vectors: Vectors, known: Vectors) -> tuple[Array, Array]:
    """Return (n,) the share of known vectors that are nearer to the others than each vector is, and (n,) its best
    cosine.
    """
    own = np.sort(nearest(known, known, skip_itself=True)[0])
    far, close = nearest(vectors, known)
    return np.searchsorted(own, far) / len(own), close


Family = Literal["uncertainty", "disagreement", "feedback", "novelty"]
FAMILIES: tuple[Family, ...] = get_args(Family)
MIN_REASON_SCORE = 0.5
"""Minimum score for a signal to be listed as a reason"""
ABSTAINED = 0.7
DISLIKE_WEIGHT = 0.8
Embed = Callable[[Sequence[str]], Vectors]


@dataclass(frozen=True)
class SignalScore:
    """The score that a signal gives one candidate, with the reason."""

    score: float
    """0 to 1"""
    why: str


def unsure(candidate: Candidate) -> SignalScore | None:
    """Score how close the two most likely decisions are: 1 minus their difference."""
    if not candidate.probabilities:
        return None
    name, chances = next(iter(candidate.probabilities.items()))
    likeliest = sorted(chances, key=lambda each: -chances[each])
    probabilities = ", ".join(f"{each} {chances[each]:.0%}" for each in likeliest[:3])
    margin = chances[likeliest[0]] - chances[likeliest[1]]
    return SignalScore(1 - margin, f"the model is unsure of the decision ({name}: {probabilities})")


def unsupported(candidate: Candidate) -> SignalScore | None:
    """Score the share of sentences that no passage supports."""
    if not candidate.sentences or candidate.supported is None:
        return None
    bad = candidate.sentences - candidate.supported
    of = "its only sentence" if candidate.sentences == 1 else f"{bad} of its {candidate.sentences} sentences"
    return SignalScore(bad / candidate.sentences, f"no passage supports {of}")


def abstained(candidate: Candidate) -> SignalScore | None:
    """Score whether the model abstained."""
    return SignalScore(ABSTAINED, "the model abstained") if candidate.outcome == "abstained" else None


def disagreeing(candidate: Candidate) -> SignalScore | None:
    """Score how much models disagree: the entropy of their votes, or the divergence of their probabilities from the
    mean.
    """
    if len(candidate.probabilities) < 2:
        return None
    labels = list(next(iter(candidate.probabilities.values())))
    chances = np.array([[each[label] for label in labels] for each in candidate.probabilities.values()])
    votes = np.bincount(chances.argmax(axis=1), minlength=len(labels)) / len(chances)
    most = log(min(len(chances), len(labels)))
    apart = _entropy(chances.mean(axis=0)) - float(np.mean([_entropy(row) for row in chances]))
    decisions = ", ".join(
        f"{name} {max(each, key=lambda label: each[label])}" for name, each in candidate.probabilities.items()
    )
    return SignalScore(min(1.0, max(_entropy(votes), apart) / most), f"decisions differ ({decisions})")


def scattered(candidate: Candidate, embed: Embed) -> SignalScore | None:
    """Score how much sampled answers differ: 1 minus their mean cosine."""
    if len(candidate.samples) < 2:
        return None
    vectors = embed(candidate.samples)
    pairs = np.triu_indices(len(vectors), 1)
    alike = float((vectors @ vectors.T)[pairs].mean())
    return SignalScore(
        float(np.clip(1 - alike, 0, 1)), f"{len(vectors)} sampled answers differ (mean cosine {alike:.2f})"
    )


def disliked(candidate: Candidate) -> SignalScore | None:
    """Score the share of users who rated the answer down."""
    down = [each for each in candidate.words if each.rating == "down"]
    if not down:
        return None
    reasons = sorted({reason for each in down for reason in each.reasons})
    of = "a user" if len(candidate.words) == 1 else f"{len(down)} of {len(candidate.words)} users"
    return SignalScore(
        DISLIKE_WEIGHT * len(down) / len(candidate.words),
        f"{of} rated it down" + (f" ({', '.join(reasons)})" if reasons else ""),
    )


def corrected(candidate: Candidate) -> SignalScore | None:
    """Score whether a user wrote a correction."""
    return SignalScore(1.0, "a user wrote a correction") if any(each.correction for each in candidate.words) else None


def novel(rank: float, cosine: float) -> SignalScore:
    """Score novelty: `rank` is the share of known questions that are nearer to other known ones, `cosine` the best
    match.
    """
    return SignalScore(
        rank,
        f"farther from the known questions than {rank:.0%} of them are from each other (nearest: cosine {cosine:.2f})",
    )


SIGNALS: Mapping[Family, Mapping[str, Callable[[Candidate], SignalScore | None]]] = {
    "uncertainty": {"unsure": unsure, "unsupported": unsupported, "abstained": abstained},
    "disagreement": {"disagreeing": disagreeing},
    "feedback": {"disliked": disliked, "corrected": corrected},
    "novelty": {},
}
"""Signals that need nothing but the candidate"""


def _entropy(probabilities: np.ndarray) -> float:
    known = probabilities[probabilities > 0]
    return float(-(known * np.log(known)).sum())


Strategy = Literal["mix", "random", "uncertainty", "disagreement", "diversity", "feedback", "novelty"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
DEFAULT: Strategy = "mix"
WEIGHTS: Mapping[Family, float] = {"uncertainty": 0.5, "disagreement": 0.5, "feedback": 0.9, "novelty": 0.5}
"""Maximum weight of each family in the mix; user feedback counts more than what a model predicts about itself"""
VECTOR_STRATEGIES: frozenset[Strategy] = frozenset(("mix", "diversity", "novelty"))
"""Strategies that need question vectors"""
_NEEDS: Mapping[Family, str] = {
    "uncertainty": "no candidate has decisions, unsupported sentences or abstentions. Let a model decide: "
    "--model MODEL",
    "disagreement": "no candidate has two decisions or sampled answers. Let two models decide (--model MODEL, twice), "
    "or give --predictions or --samples",
    "feedback": "no answer has been rated down or corrected yet",
    "novelty": "no question is farther from the known data (--training-data FILE) than known questions are from "
    "each other",
}


@dataclass(frozen=True)
class Pick:
    """A candidate that was chosen."""

    place: int
    """Index among the candidates"""
    score: float
    """0 to 1, from its signals alone"""
    gap: float | None
    """1 minus the best cosine with those chosen before it, 1 for the first; None if the strategy ignores it"""


def check_strategy(name: str) -> Strategy:
    """Return the strategy of that name. Raises DataError if it is unknown."""
    found = next((each for each in STRATEGIES if each == name), None)
    if found is None:
        raise DataError(f"Unknown --strategy {name}. Choose from {', '.join(STRATEGIES)}.")
    return found


def picks(
    strategy: Strategy,
    scores: Mapping[Family, Array],
    vectors: Vectors | None,
    known: Vectors | None,
    budget: int,
    rng: np.random.Generator,
) -> list[Pick]:
    """Return at most `budget` picks, most urgent first; fewer if fewer candidates match the strategy.

    `scores` are (n,) for each family, `vectors` are (n, size); `known` are vectors of questions whose answers are in
    the training data. Raises DataError if no candidate matches the strategy.
    """
    count = len(next(iter(scores.values())))
    order = rng.permutation(count)
    if strategy == "random":
        return [Pick(int(place), 0.0, None) for place in order[:budget]]
    if strategy in FAMILIES:
        return _highest(strategy, scores[strategy], order, budget)
    if vectors is None:
        raise ValueError(f"{strategy} needs vectors")
    if strategy == "diversity":
        gaps = np.ones(count) if known is None else 1 - nearest(vectors, known)[1]
        return _spread(np.ones(count), vectors, gaps, order, budget)
    # Novelty covers what is known; here, questions must only differ from each other.
    return _spread(combine_ranks(scores), vectors, np.ones(count), order, budget)


def combine_ranks(scores: Mapping[Family, Array]) -> Array:
    """Return (n,) values from 0 to 1 that combine the families' ranks like independent probabilities."""
    none = np.ones(len(next(iter(scores.values()))))
    for family, values in scores.items():
        none *= 1 - WEIGHTS[family] * ranks(values)
    return 1 - none


def ranks(values: Array) -> Array:
    """Return (n,) the share of lower values, so that families with different scales count alike; 0 stays 0."""
    if len(values) < 2:
        return np.minimum(values, 1.0)
    found: Array = np.searchsorted(np.sort(values), values) / (len(values) - 1)
    return found


def _highest(family: Family, scores: Array, order: NDArray[np.int64], budget: int) -> list[Pick]:
    """Return the candidates with the highest scores; ties are broken at random."""
    if not (scores > 0).any():
        raise NothingToAskError(
            f"--strategy {family}: {_NEEDS[family]}. Or use --strategy {DEFAULT}, which uses all available signals."
        )
    placed = sorted((int(place) for place in order if scores[place] > 0), key=lambda place: -scores[place])
    return [Pick(place, float(scores[place]), None) for place in placed[:budget]]


def _spread(urgency: Array, vectors: Vectors, distance: Array, order: NDArray[np.int64], budget: int) -> list[Pick]:
    """Return a greedy k-center selection (Sener and Savarese 2018, arXiv:1708.00489), weighted by urgency.

    `distance` (n,) is the distance of each candidate to what was known before.
    """
    chosen: list[Pick] = []
    left = np.ones(len(urgency), dtype=bool)
    while len(chosen) < min(budget, len(urgency)):
        worth = np.where(left, urgency * distance, -1.0)[order]
        place = int(order[worth.argmax()])
        chosen.append(Pick(place, float(urgency[place]), float(distance[place])))
        left[place] = False
        distance = np.minimum(distance, 1 - vectors @ vectors[place])
    return chosen
