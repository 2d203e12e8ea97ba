"""How often the rows of each source come in an epoch, and in which order, where a recipe says so."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from meditune.config.training_options import MixSpec
from meditune.errors import DataError


@dataclass(frozen=True)
class SourceMix:
    """The rows of each source, how many of them an epoch takes, and what comes first in the first one.

    With `data.balance.weights` another kind of group stands where this speaks of sources.
    """

    rows: dict[str, list[int]]
    """Source -> indices of its rows"""
    visits: dict[str, int]
    """Source -> rows in an epoch"""
    ranks: tuple[int, ...] | None = None
    """Of every row: in the first epoch, those of lower rank come first, and rows of the same rank as shuffled"""
    order: str = ""
    """The curriculum in words"""
    limited: frozenset[str] = frozenset()
    """Sources that mustn't come more often than their visits, of a part of an epoch neither"""
    by: str = "source"

    @property
    def size(self) -> int:
        """Rows in an epoch."""
        return sum(self.visits.values())

    def epochs(self, seed: int, count: float = float("inf")) -> Iterator[list[int]]:
        """The rows of one epoch after another, `count` of them; a part of an epoch has its part of every source.

        A source goes on where its last epoch ended, so that none of its rows comes a second time before all came once.
        """
        streams = {name: endless_order(len(indices), f"{seed}/mix/{name}") for name, indices in self.rows.items()}
        for number in itertools.count():
            left = count - number
            if left <= 0:
                return
            visits = self.visits if left >= 1 else self._part(left)
            yield [
                self.rows[name][index]
                for name, taken in visits.items()
                for index in itertools.islice(streams[name], taken)
            ]

    def _part(self, share: float) -> dict[str, int]:
        limits = {name: int(share * self.visits[name]) for name in self.limited}
        visits = _apportioned(self.visits, max(1, round(share * self.size)), limits)
        return visits if any(visits.values()) else {max(visits, key=lambda name: self.visits[name]): 1}

    def said(self) -> str:
        """The visits in words, for the pre-flight."""
        return ", ".join(
            f"{count:,} of {name} ({len(self.rows[name]):,} different ones)" for name, count in self.visits.items()
        )

    def repeats(self) -> dict[str, float]:
        """How often a row of each source comes in an epoch, on average."""
        return {name: count / len(self.rows[name]) for name, count in self.visits.items()}


def mix_of(
    sources: Sequence[str],
    spec: MixSpec,
    epochs: float = 1.0,
    tokens: Sequence[int] | None = None,
    supervised: Sequence[int] | None = None,
    often: Mapping[str, float] | None = None,
    groups: Sequence[str] | None = None,
    by: str = "source",
) -> SourceMix | None:
    """The mix of rows with these sources, trained on for so many epochs; None where each row comes once, in any order.

    With a temperature T, a source of n rows gets a share that is proportional to n ** (1 / T) (Arivazhagan et al.
    2019, arXiv:1907.05019). `tokens` are the rows' lengths, and `supervised` those trained on; without them, as before
    there is a tokenizer, all rows count as equally long. With `often`, how often the rows of each of some `groups` come
    relative to the others, rows are mixed `by` those groups instead. Raises DataError where a source that is named has
    no rows.
    """
    ranks, order = _curriculum(sources, spec, tokens)
    keys = groups if often and groups else sources
    rows: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        rows.setdefault(key, []).append(index)
    named = bool(spec.quota or often or spec.weights or spec.temperature) and (len(rows) > 1 or bool(spec.quota))
    limits = _limits(rows, spec.max_epochs, epochs, named)
    if not (named or limits or order):
        return None
    for option in ("weights", "quota"):
        missing = getattr(spec, option).keys() - rows.keys()
        if missing and not often:
            raise DataError(
                f"train.mix.{option}: {', '.join(sorted(missing))} has no training rows. Leave that source out, or "
                f"take the {option} away."
            )
    sizes = {"rows": None, "tokens": tokens, "supervised_tokens": supervised}[spec.unit]
    length = {
        name: sum(sizes[index] for index in indices) / len(indices) if sizes else 1.0 for name, indices in rows.items()
    }
    if spec.quota:
        visits = {
            name: max(1, round(spec.quota[name] / length[name])) if name in spec.quota else len(indices)
            for name, indices in rows.items()
        }
        visits = {name: min(count, limits.get(name, count)) for name, count in visits.items()}
    else:
        weights = _weights(rows, spec, length, often)
        visits = _apportioned(weights, len(sources), limits)
    if not sum(visits.values()):
        raise DataError("train.mix.max_epochs leaves no row in an epoch. Give more of it, or fewer train.epochs.")
    return SourceMix(rows, visits, ranks, order, frozenset(limits), by if often else "source")


def endless_order(count: int, seed: str) -> Iterator[int]:
    """0 to `count` - 1 over and over, in a new order each time that follows from the seed."""
    for number in itertools.count():
        order = list(range(count))
        random.Random(f"{seed}/{number}").shuffle(order)
        yield from order


def _curriculum(
    sources: Sequence[str], spec: MixSpec, tokens: Sequence[int] | None
) -> tuple[tuple[int, ...] | None, str]:
    """Each row's rank in the first epoch, and the order in words; nothing without a curriculum."""
    if spec.curriculum == "none":
        return None, ""
    if isinstance(spec.curriculum, list):
        place = {name: number for number, name in enumerate(spec.curriculum)}
        ranks = tuple(place.get(source, len(place)) for source in sources)
        others = " and the others" if set(sources) - place.keys() else ""
        return ranks, f"{', then '.join(spec.curriculum)}{others}"
    sign = 1 if spec.curriculum == "shortest_first" else -1
    return tuple(sign * length for length in tokens or [0] * len(sources)), spec.curriculum.replace("_", " ")


def _limits(rows: Mapping[str, Sequence[int]], most: float | None, epochs: float, repeats: bool) -> dict[str, int]:
    """The most rows of each source in an epoch with which none comes more than `most` times in all epochs.

    Empty where that can't happen, because every row comes once in an epoch or `repeats` is false.
    """
    if most is None or (most >= epochs and not repeats):
        return {}
    return {name: int(most * len(indices) / epochs) for name, indices in rows.items()}


def _weights(
    rows: Mapping[str, Sequence[int]], spec: MixSpec, length: Mapping[str, float], often: Mapping[str, float] | None
) -> dict[str, float]:
    """Each source's share of an epoch's rows, relative to the others'."""
    if often:
        return {name: len(indices) * often.get(name, 1.0) for name, indices in rows.items()}
    power = 1 / (spec.temperature or 1)
    shares = spec.weights or {name: (len(indices) * length[name]) ** power for name, indices in rows.items()}
    return {name: shares[name] / length[name] for name in rows}


def _apportioned(weights: Mapping[str, float], total: int, limits: Mapping[str, int]) -> dict[str, int]:
    """Whole numbers in proportion to the weights that sum to `total` (largest remainders), none above its limit.

    What a limit takes from one goes to those that have none, or aren't at theirs, in proportion to their weights;
    where all are at theirs, the sum is smaller.
    """
    fixed: dict[str, int] = {}
    while True:
        free = {name: weight for name, weight in weights.items() if weight and name not in fixed}
        left, whole = total - sum(fixed.values()), sum(free.values())
        exact = {name: left * weight / whole for name, weight in free.items()}
        full = {name: limits[name] for name in free if name in limits and exact[name] > limits[name]}
        if not full:
            break
        fixed |= full
    counts = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (counts[name] - exact[name], name))
    open_ones = [name for name in by_remainder if counts[name] + 1 <= limits.get(name, total)]
    for name in open_ones[: left - sum(counts.values())]:
        counts[name] += 1
    return {name: fixed.get(name, counts.get(name, 0)) for name in weights}
