"""Mix the rows of several sources: how often each source's rows occur in an epoch, and in which order."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from meditune.config.training_options import MixSpec
from meditune.errors import DataError


@dataclass(frozen=True)
class SourceMix:
    """The rows of each source, the number of them in an epoch, and the order of the first epoch.

    With `data.balance.weights`, groups of another kind take the place of sources.
    """

    rows: dict[str, list[int]]
    """Source -> indices of its rows"""
    visits: dict[str, int]
    """Source -> rows in an epoch"""
    ranks: tuple[int, ...] | None = None
    """Rank of every row: in the first epoch, rows of lower rank come first, and rows of equal rank in shuffled order"""
    order: str = ""
    """The curriculum in words"""
    limited: frozenset[str] = frozenset()
    """Sources that may not occur more often than their visits, nor than their part of a partial epoch"""
    by: str = "source"

    @property
    def size(self) -> int:
        """Number of rows in an epoch."""
        return sum(self.visits.values())

    def epochs(self, seed: int, count: float = float("inf")) -> Iterator[list[int]]:
        """Yield the rows of one epoch after another, `count` epochs; a partial epoch has that part of every source.

        A source continues where its last epoch ended, so no row occurs a second time before all rows have occurred
        once.
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
        """Return the visits in words, for the pre-flight."""
        return ", ".join(
            f"{count:,} of {name} ({len(self.rows[name]):,} distinct)" for name, count in self.visits.items()
        )

    def repeats(self) -> dict[str, float]:
        """Return how often a row of each source occurs in an epoch, on average."""
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
    """Return the mix of rows with these `sources` over `epochs`; None where each row occurs once, in any order.

    With a temperature T, a source of n rows gets a share proportional to n ** (1 / T) (Arivazhagan et al. 2019,
    arXiv:1907.05019). `tokens` are the rows' lengths, and `supervised` the numbers of supervised tokens; without them,
    as before the tokenizer is loaded, all rows count as equally long. With `often`, which says how often the rows of
    each of the `groups` occur relative to the others, rows are mixed `by` those groups instead. Raises DataError where
    a named source has no rows.
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
                f"train.mix.{option}: {', '.join(sorted(missing))} has no training rows. Remove that source "
                f"from the {option}, or remove the option."
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
        raise DataError("train.mix.max_epochs leaves no rows in an epoch. Raise it, or lower train.epochs.")
    return SourceMix(rows, visits, ranks, order, frozenset(limits), by if often else "source")


def endless_order(count: int, seed: str) -> Iterator[int]:
    """Yield 0 to `count` - 1 endlessly, each time in a new order that follows from the seed."""
    for number in itertools.count():
        order = list(range(count))
        random.Random(f"{seed}/{number}").shuffle(order)
        yield from order


def _curriculum(
    sources: Sequence[str], spec: MixSpec, tokens: Sequence[int] | None
) -> tuple[tuple[int, ...] | None, str]:
    """Return each row's rank in the first epoch, and the order in words; empty without a curriculum."""
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
    """Return each source's largest number of rows per epoch that repeats none more than `most` times in all epochs.

    Empty where no row can occur more often, because every row occurs once in an epoch or `repeats` is false.
    """
    if most is None or (most >= epochs and not repeats):
        return {}
    return {name: int(most * len(indices) / epochs) for name, indices in rows.items()}


def _weights(
    rows: Mapping[str, Sequence[int]], spec: MixSpec, length: Mapping[str, float], often: Mapping[str, float] | None
) -> dict[str, float]:
    """Return each source's share of an epoch's rows, relative to the others."""
    if often:
        return {name: len(indices) * often.get(name, 1.0) for name, indices in rows.items()}
    power = 1 / (spec.temperature or 1)
    shares = spec.weights or {name: (len(indices) * length[name]) ** power for name, indices in rows.items()}
    return {name: shares[name] / length[name] for name in rows}


def _apportioned(weights: Mapping[str, float], total: int, limits: Mapping[str, int]) -> dict[str, int]:
    """Return integers in proportion to the weights that sum to `total` (largest remainders), none above its limit.

    What a limit cuts off is distributed over the others in proportion to their weights. Where all are at their limits,
    the sum is smaller.
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
