"""Which rows are checked: a random sample, the same number of each kind, or the most suspicious ones first."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from meditune.data.example import Example
from meditune.errors import DataError
from meditune.review.annotate.suspicion import Suspicion

Sample = Literal["random", "suspicious"]
SAMPLES: tuple[Sample, ...] = get_args(Sample)
Strata = Literal["none", "source", "decision", "question_type"]
STRATA: tuple[Strata, ...] = get_args(Strata)


def check_choice(sample: str, strata: str) -> None:
    """Raise DataError for a name that isn't known."""
    for name, option, known in ((sample, "--sample", SAMPLES), (strata, "--strata", STRATA)):
        if name not in known:
            raise DataError(f"There is no {option} {name}. Choose from {', '.join(known)}.")


def chosen(
    rows: Sequence[Example], count: int, strata: str, seed: int, suspected: Mapping[str, Suspicion] | None
) -> list[Example]:
    """`count` rows, or all where there are fewer: the most suspicious first where that is known, else at random.

    With strata each kind gives the same number of rows, as far as it has so many.
    """
    order = list(rows)
    random.Random(f"{seed}/annotate").shuffle(order)
    if suspected is not None:
        order.sort(key=lambda row: -suspected[row.id].score)
    kinds: dict[str, list[Example]] = defaultdict(list)
    for row in order:
        kinds[stratum(row, strata)].append(row)
    room = _quotas({kind: len(members) for kind, members in kinds.items()}, count)
    taken = {row.id for kind, members in kinds.items() for row in members[: room[kind]]}
    return [row for row in order if row.id in taken]


def stratum(row: Example, strata: str) -> str:
    """The kind that a row is of; "" where there are no strata."""
    if strata == "none":
        return ""
    if strata == "question_type":
        found = row.meta.get("question_type")
        return ", ".join(map(str, found)) if isinstance(found, list) else str(found or "none")
    return str(getattr(row, strata) or "none")


def _quotas(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """How many of each kind, as equal as their sizes allow, together `count` or all."""
    quotas = dict.fromkeys(sizes, 0)
    left = min(count, sum(sizes.values()))
    while left:
        open_ = [kind for kind in sorted(sizes) if quotas[kind] < sizes[kind]]
        for kind in open_[:left]:
            more = min(max(1, left // len(open_)), sizes[kind] - quotas[kind])
            quotas[kind] += more
        left = min(count, sum(sizes.values())) - sum(quotas.values())
    return quotas
