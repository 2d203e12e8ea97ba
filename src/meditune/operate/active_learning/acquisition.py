"""Why an answer is worth an expert's time: what each signal sees in a candidate, as a score and in words.

The signals are in families: uncertainty (the margin: Scheffer et al. 2001), disagreement (vote entropy: Dagan
and Engelson 1995; divergence from the mean: McCallum and Nigam 1998), feedback, novelty. Diversity is no signal of one
candidate: it is how far it is from those that are chosen before it (`picks`).

Decisions of models on candidates: asked now, or stored by an evaluation.

Distances between questions by their vectors: how new one is, and which ones cover all others.

Which candidates are sent: from what the signals saw, and from how unlike those before it each one is.
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


def with_opinion(candidates: Sequence[Candidate], name: str, chances: Mapping[str, Chances]) -> list[Candidate]:
    """The candidates with one more model's decisions, by the example's id."""
    return [
        replace(each, opinions={**each.opinions, name: chances[each.id]}) if each.id in chances else each
        for each in candidates
    ]


def with_samples(candidates: Sequence[Candidate], samples: Mapping[str, Sequence[str]]) -> list[Candidate]:
    """The candidates with a model's sampled answers, by the example's id."""
    return [
        replace(each, samples=(*each.samples, *samples[each.id])) if each.id in samples else each for each in candidates
    ]


def stored(candidates: Sequence[Candidate], path: Path) -> list[Candidate]:
    """The candidates with what a file of predictions says of them: rows of id and logits, or id and sampled answers.

    Raises DataError where the file is neither, or speaks of none of the candidates.
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
                f"{path}, line {number}: neither logits nor sampled predictions. Give a file of a run's predictions/, "
                "such as tuned-decision.jsonl or tuned-samples.jsonl."
            )
    there = {each.id for each in candidates}
    if not there & (chances.keys() | samples.keys()):
        raise DataError(f"{path}: none of its ids is a candidate's. Are these predictions of other rows?")
    return with_samples(with_opinion(candidates, path.stem, chances), samples)


def asked_decisions(
    candidates: Sequence[Candidate], model: str, samples: int = 0, seed: int = 17
) -> tuple[list[Candidate], list[str]]:
    """The candidates with a model's decisions, and with so many answers that it writes by chance.

    Each is asked with its own context. Those whose question is too long for the model's prompt stay as they are; their
    ids are given back. Raises ModelError where the model can't be had.
    """
    from meditune.config.data_options import PromptFormat
    from meditune.config.recipe import EvaluateSpec
    from meditune.evaluate.evaluator import sample_answers as written
    from meditune.evaluate.likelihood import score
    from meditune.evaluate.metrics.confidence import probabilities
    from meditune.models.load import load
    from meditune.models.shared_prefix_batch import Row, join
    from meditune.prompts import QuestionTooLongError

    loaded = load(model)
    encoder = loaded.encoder(loaded.form or PromptFormat())
    rows: list[Row] = []
    fit: list[Example] = []
    too_long: list[str] = []
    for each in candidates:
        # The word is only there to be a place to score at; which one makes no difference.
        example = each.example.model_copy(update={"decision": DECISIONS[0]})
        try:
            rows.append(join([encoder.supervised(example, "decision")]))
            fit.append(example)
        except QuestionTooLongError:
            too_long.append(each.id)
    found = score(loaded, rows, BATCH_TOKENS, f"Decisions of {model}", encoder.label_ids()).decisions
    known = with_opinion(candidates, model, {id: probabilities(logits) for id, logits in found.items()})
    if samples:
        told = written(loaded, encoder, fit, samples, EvaluateSpec().max_new_tokens, seed, f"Answers of {model}")
        known = with_samples(known, {row["id"]: row["predictions"] for row in told})
    return known, too_long


def _probabilities(logits: Mapping[str, Any], where: str) -> dict[str, float]:
    from meditune.evaluate.metrics.confidence import probabilities

    if not all(isinstance(logits.get(each), int | float) for each in DECISIONS):
        raise DataError(f"{where}: logits must hold a number for each of {', '.join(DECISIONS)}.")
    return probabilities({each: float(logits[each]) for each in DECISIONS})


Vectors = NDArray[np.float32]
"""(n, size), each of length 1"""
Array = NDArray[np.float64]
NEAREST = 5
PIECE = 4096


def nearest(vectors: Vectors, known: Vectors, skip_itself: bool = False) -> tuple[Array, Array]:
    """(n,) one less the mean cosine to the NEAREST known ones, and (n,) the cosine to the nearest.

    With `skip_itself` the vectors are the known ones, and none is its own neighbour.
    """
    count = min(NEAREST, len(known) - skip_itself)
    far, close = np.ones(len(vectors)), np.zeros(len(vectors))
    if count < 1:
        return far, close
    for start in range(0, len(vectors), PIECE):
        cosines = vectors[start : start + PIECE] @ known.T
        if skip_itself:
            rows = np.arange(len(cosines))
            cosines[rows, start + rows] = -np.inf
        top = np.partition(cosines, cosines.shape[1] - count, axis=1)[:, -count:]
        far[start : start + PIECE] = 1 - top.mean(axis=1)
        close[start : start + PIECE] = top.max(axis=1)
    return far, close


def novelty(vectors: Vectors, known: Vectors) -> tuple[Array, Array]:
    """(n,) the share of the known ones that are nearer to the others than each vector is, and (n,) its best cosine."""
    own = np.sort(nearest(known, known, skip_itself=True)[0])
    far, close = nearest(vectors, known)
    return np.searchsorted(own, far) / len(own), close


def gaps(vectors: Vectors, known: Vectors | None) -> Array:
    """(n,) one less the cosine to the nearest known one; 1, as of questions without anything in common, without any."""
    found = np.ones(len(vectors))
    if known is None:
        return found
    for start in range(0, len(known), PIECE):
        found = np.minimum(found, 1 - (vectors @ known[start : start + PIECE].T).max(axis=1))
    return found


Family = Literal["uncertainty", "disagreement", "feedback", "novelty"]
FAMILIES: tuple[Family, ...] = get_args(Family)
TELLING = 0.5
"""A signal is told as a reason from this score on"""
ABSTAINED = 0.7
DOWN = 0.8
Embed = Callable[[Sequence[str]], Vectors]


@dataclass(frozen=True)
class SignalScore:
    """What a signal sees in one candidate."""

    score: float
    """0 to 1"""
    why: str


def unsure(candidate: Candidate) -> SignalScore | None:
    """How near the two likeliest decisions are to each other: one less their difference."""
    if not candidate.opinions:
        return None
    name, chances = next(iter(candidate.opinions.items()))
    likeliest = sorted(chances, key=lambda each: -chances[each])
    told = ", ".join(f"{each} {chances[each]:.0%}" for each in likeliest[:3])
    margin = chances[likeliest[0]] - chances[likeliest[1]]
    return SignalScore(1 - margin, f"its decision is unsure ({name}: {told})")


def unsupported(candidate: Candidate) -> SignalScore | None:
    """The share of sentences that no passage bears out."""
    if not candidate.sentences or candidate.supported is None:
        return None
    bad = candidate.sentences - candidate.supported
    of = "its only sentence" if candidate.sentences == 1 else f"{bad} of its {candidate.sentences} sentences"
    return SignalScore(bad / candidate.sentences, f"no passage bears out {of}")


def abstained(candidate: Candidate) -> SignalScore | None:
    """Whether the model had nothing to say."""
    return SignalScore(ABSTAINED, "the model abstained") if candidate.outcome == "abstained" else None


def disagreeing(candidate: Candidate) -> SignalScore | None:
    """Decisions of several models: the entropy of their votes, or how far their probabilities are from the mean."""
    if len(candidate.opinions) < 2:
        return None
    labels = list(next(iter(candidate.opinions.values())))
    chances = np.array([[each[label] for label in labels] for each in candidate.opinions.values()])
    votes = np.bincount(chances.argmax(axis=1), minlength=len(labels)) / len(chances)
    most = log(min(len(chances), len(labels)))
    apart = _entropy(chances.mean(axis=0)) - float(np.mean([_entropy(row) for row in chances]))
    said = ", ".join(f"{name} {max(each, key=lambda label: each[label])}" for name, each in candidate.opinions.items())
    return SignalScore(min(1.0, max(_entropy(votes), apart) / most), f"decisions differ ({said})")


def scattered(candidate: Candidate, embed: Embed) -> SignalScore | None:
    """How little sampled answers have to do with each other: one less their mean cosine."""
    if len(candidate.samples) < 2:
        return None
    vectors = embed(candidate.samples)
    pairs = np.triu_indices(len(vectors), 1)
    alike = float((vectors @ vectors.T)[pairs].mean())
    return SignalScore(
        float(np.clip(1 - alike, 0, 1)), f"{len(vectors)} sampled answers differ (mean cosine {alike:.2f})"
    )


def disliked(candidate: Candidate) -> SignalScore | None:
    """The share of users who rated it down."""
    down = [each for each in candidate.words if each.rating == "down"]
    if not down:
        return None
    reasons = sorted({reason for each in down for reason in each.reasons})
    of = "a user" if len(candidate.words) == 1 else f"{len(down)} of {len(candidate.words)} users"
    return SignalScore(
        DOWN * len(down) / len(candidate.words),
        f"{of} rated it down" + (f" ({', '.join(reasons)})" if reasons else ""),
    )


def corrected(candidate: Candidate) -> SignalScore | None:
    """Whether a user wrote what should have been said."""
    return SignalScore(1.0, "a user wrote a correction") if any(each.correction for each in candidate.words) else None


def novel(rank: float, cosine: float) -> SignalScore:
    """`rank` is the share of known questions that are nearer to the other known ones; `cosine` to the nearest one."""
    return SignalScore(rank, f"farther from what is known than {rank:.0%} of it (nearest: cosine {cosine:.2f})")


SIGNALS: Mapping[Family, Mapping[str, Callable[[Candidate], SignalScore | None]]] = {
    "uncertainty": {"unsure": unsure, "unsupported": unsupported, "abstained": abstained},
    "disagreement": {"disagreeing": disagreeing},
    "feedback": {"disliked": disliked, "corrected": corrected},
    "novelty": {},
}
"""Those that need nothing but the candidate"""


def _entropy(chances: np.ndarray) -> float:
    known = chances[chances > 0]
    return float(-(known * np.log(known)).sum())


Strategy = Literal["mix", "random", "uncertainty", "disagreement", "diversity", "feedback", "novelty"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
DEFAULT: Strategy = "mix"
WEIGHTS: Mapping[Family, float] = {"uncertainty": 0.5, "disagreement": 0.5, "feedback": 0.9, "novelty": 0.5}
"""How far each family can raise a candidate in the mix; what users say goes before what a model thinks of itself"""
MEANING: frozenset[Strategy] = frozenset(("mix", "diversity", "novelty"))
"""Those that need questions' vectors"""
_NEEDS: Mapping[Family, str] = {
    "uncertainty": "no candidate has decisions, unsupported sentences or abstentions. Let a model decide: --ask MODEL",
    "disagreement": "no candidate has two decisions or sampled answers. Let two models decide (--ask MODEL, twice), or "
    "give --predictions or --samples",
    "feedback": "nobody has rated an answer down or corrected one yet",
    "novelty": "no question is farther from what is known (--known FILE) than that is from itself",
}


@dataclass(frozen=True)
class Pick:
    """One that was chosen."""

    place: int
    """Among the candidates"""
    score: float
    """0 to 1: by its signals alone"""
    gap: float | None
    """One less the best cosine with those before it, 1 for the first; None where that didn't count"""


def check_strategy(name: str) -> Strategy:
    """The strategy of that name. Raises DataError for an unknown one."""
    found = next((each for each in STRATEGIES if each == name), None)
    if found is None:
        raise DataError(f"There is no --strategy {name}. Choose from {', '.join(STRATEGIES)}.")
    return found


def picks(
    strategy: Strategy,
    scores: Mapping[Family, Array],
    vectors: Vectors | None,
    known: Vectors | None,
    budget: int,
    rng: np.random.Generator,
) -> list[Pick]:
    """At most `budget` picks, the most urgent first; fewer where so few have what the strategy looks for.

    `scores` are (n,) of each family, `vectors` (n, size); `known` are those of questions whose answers are learnt
    already. Raises DataError where no candidate has what the strategy looks for.
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
        return _spread(np.ones(count), vectors, gaps(vectors, known), order, budget)
    # What is known counts as novelty; here questions need only be unlike each other.
    return _spread(combine_ranks(scores), vectors, np.ones(count), order, budget)


def combine_ranks(scores: Mapping[Family, Array]) -> Array:
    """(n,) from 0 to 1: each family's ranks as independent chances that a candidate is worth asking for."""
    none = np.ones(len(next(iter(scores.values()))))
    for family, values in scores.items():
        none *= 1 - WEIGHTS[family] * ranks(values)
    return 1 - none


def ranks(values: Array) -> Array:
    """(n,) the share of the others that are lower, so that families with other scales count alike; 0 stays 0."""
    if len(values) < 2:
        return np.minimum(values, 1.0)
    found: Array = np.searchsorted(np.sort(values), values) / (len(values) - 1)
    return found


def _highest(family: Family, scores: Array, order: NDArray[np.int64], budget: int) -> list[Pick]:
    """Those with the highest scores, equal ones by chance."""
    if not (scores > 0).any():
        raise NothingToAskError(
            f"--strategy {family}: {_NEEDS[family]}. Or take --strategy {DEFAULT}, which uses what is there."
        )
    placed = sorted((int(place) for place in order if scores[place] > 0), key=lambda place: -scores[place])
    return [Pick(place, float(scores[place]), None) for place in placed[:budget]]


def _spread(urgent: Array, vectors: Vectors, gap: Array, order: NDArray[np.int64], budget: int) -> list[Pick]:
    """Greedy k-center (Sener and Savarese 2018, arXiv:1708.00489), distances weighed by how urgent a candidate is.

    `gap` (n,) is how far each is from what was there before.
    """
    chosen: list[Pick] = []
    left = np.ones(len(urgent), dtype=bool)
    while len(chosen) < min(budget, len(urgent)):
        worth = np.where(left, urgent * gap, -1.0)[order]
        place = int(order[worth.argmax()])
        chosen.append(Pick(place, float(urgent[place]), float(gap[place])))
        left[place] = False
        gap = np.minimum(gap, 1 - vectors @ vectors[place])
    return chosen
