"""Which candidates go to experts, the most urgent first, each with its reasons in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from meditune.operate.learn.candidate import Candidate
from meditune.operate.learn.choosing import DEFAULT, MEANING, Pick, Strategy, check_strategy, picks
from meditune.operate.learn.distances import Array, Vectors, novelty
from meditune.operate.learn.signals import FAMILIES, SIGNALS, TELLING, Embed, Family, Seen, novel, scattered

SEED = 17


@dataclass(frozen=True)
class Chosen:
    """A candidate that goes to experts."""

    candidate: Candidate
    score: float
    """0 to 1: how much its signals say for it"""
    reasons: Mapping[str, str]
    """Signal -> what it saw, the strongest first; never empty"""


def choose(
    candidates: Sequence[Candidate],
    budget: int,
    strategy: str = DEFAULT,
    *,
    known: Sequence[str] = (),
    embed: Embed | None = None,
    vectors: Vectors | None = None,
    known_vectors: Vectors | None = None,
    seed: int = SEED,
) -> list[Chosen]:
    """At most `budget` of the candidates, the most urgent first.

    `known` are questions whose answers are learnt already. `embed` makes vectors (n, size) of length 1 of texts; by
    default the sentence model, loaded only where the strategy needs it. Who has the vectors of questions already gives
    them. The seed settles what is equal. Raises DataError for an unknown strategy, and where no candidate has what it
    looks for; ModelError where the sentence model can't be had.
    """
    wanted = check_strategy(strategy)
    if not candidates:
        return []
    embed = embed or _sentence_model
    if wanted in MEANING:
        vectors = embed([each.example.question for each in candidates]) if vectors is None else vectors
        known_vectors = embed(known) if known_vectors is None and known else known_vectors
    seen = [_seen(each) for each in candidates]
    if wanted in ("mix", "disagreement"):
        _add(seen, "scattered", "disagreement", [scattered(each, embed) for each in candidates])
    if vectors is not None and known_vectors is not None and len(known_vectors):
        _add(seen, "novel", "novelty", list(map(novel, *novelty(vectors, known_vectors))))
    scores = {family: _scores(seen, family) for family in FAMILIES}
    found = picks(wanted, scores, vectors, known_vectors, budget, np.random.default_rng(seed))
    return [Chosen(candidates[pick.place], pick.score, _reasons(seen[pick.place], pick, wanted)) for pick in found]


_Signals = dict[str, tuple[Family, Seen]]


def _seen(candidate: Candidate) -> _Signals:
    """Name -> family and what it saw, of every signal that saw anything."""
    return {
        name: (family, found)
        for family, signals in SIGNALS.items()
        for name, signal in signals.items()
        if (found := signal(candidate)) is not None
    }


def _add(seen: Sequence[_Signals], name: str, family: Family, found: Iterable[Seen | None]) -> None:
    for signals, each in zip(seen, found, strict=True):
        if each is not None:
            signals[name] = family, each


def _scores(seen: Sequence[_Signals], family: Family) -> Array:
    """(n,) the strongest signal of a family; 0 where none saw anything."""
    return np.array([max((each.score for of, each in s.values() if of == family), default=0.0) for s in seen])


def _reasons(signals: _Signals, pick: Pick, strategy: Strategy) -> dict[str, str]:
    """The signals that say most, in words; for one that none speaks for, how it was chosen."""
    telling = sorted(
        ((each.score, name, each.why) for name, (_, each) in signals.items() if each.score >= TELLING), reverse=True
    )
    found = {name: why for _, name, why in telling}
    if strategy == "random":
        return {"random": "chosen at random"}
    if strategy in FAMILIES and not found:
        found = {name: each.why for name, (family, each) in signals.items() if family == strategy and each.score > 0}
    if not found and pick.gap is not None:
        found["unlike"] = (
            "unlike the others"
            if pick.gap >= 1
            else f"unlike the others (nearest before it: cosine {1 - pick.gap:.2f})"
        )
    return found


def _sentence_model(texts: Sequence[str]) -> Vectors:
    from meditune.retrieve.embedders import embedder

    return embedder().embed(texts)
