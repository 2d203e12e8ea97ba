"""What the results of every task hold: agreement, disputes, time spent, and who hasn't finished."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations
from statistics import median
from typing import Any

import numpy as np

from meditune.review.agreement import Agreement, Weights, cohen, counted, fleiss, krippendorff
from meditune.review.axes import Axis
from meditune.review.disputes import Dispute, disputed
from meditune.review.rated import Key, Rated
from meditune.review.ratingset import Item
from meditune.review.store import Rating

SEED = 17


def agreement(axis: Axis, said: Sequence[Rating], rated: Rated[Key]) -> dict[str, Any]:
    """alpha, fleiss (of the items that the commonest number of raters rated) and cohen for each pair of raters."""
    raters = [id for id in rated.raters if any(rating.rater == id for rating in said)]
    items = list(dict.fromkeys(rating.item for rating in said))
    table = np.full((len(items), len(raters)), np.nan)
    rows, columns = {id: n for n, id in enumerate(items)}, {id: n for n, id in enumerate(raters)}
    for rating in said:
        if rating.option is not None:
            table[rows[rating.item], columns[rating.rater]] = rating.option
    options, groups = len(axis.options), [rated.key[item].group for item in items]
    counts = counted(table, options)
    per_item = counts.sum(axis=1)
    several = Counter(per_item[per_item >= 2].tolist())
    number = max(several, key=lambda n: (several[n], n)) if several else 0
    chosen = [n for n in range(len(items)) if number and per_item[n] == number]
    weights: Weights = "linear" if axis.level == "ordinal" else "none"
    pairs = []
    for a, b in combinations(range(len(raters)), 2):
        kappa = cohen(table[:, [a, b]], options, weights, groups, SEED)
        if kappa.units:
            codes = [rated.raters[raters[each]].code for each in (a, b)]
            pairs.append({"raters": codes, "weights": weights} | _said(kappa))
    fleiss_kappa = fleiss(counts[chosen], [groups[n] for n in chosen], SEED)
    return {
        "alpha": {"level": axis.level} | _said(krippendorff(table, options, axis.level, groups, SEED)),
        "fleiss": ({"raters": int(number)} | _said(fleiss_kappa)) if chosen else None,
        "cohen": pairs,
    }


def _said(found: Agreement) -> dict[str, Any]:
    return {"value": found.value, "ci95": list(found.ci95) if found.ci95 else None, "items": found.units}


def seconds(ratings: Iterable[Rating]) -> float | None:
    """The median time that a rater took for an answer; ratings that came from a file without times don't count."""
    spent: dict[tuple[str, str], float] = defaultdict(float)
    for rating in ratings:
        spent[rating.rater, rating.item] += rating.seconds
    times = [seconds for seconds in spent.values() if seconds]
    return round(median(times), 1) if times else None


def in_dispute(rated: Rated[Key]) -> list[Dispute]:
    """What raters disagree on, the most disputed first."""
    return disputed(rated.set.axes, rated.first, rated.notes if rated.set.task.edits else ())


def disputes(rated: Rated[Key]) -> list[dict[str, Any]]:
    """The same in words."""
    rows = []
    for each in in_dispute(rated):
        item: Item = rated.set.items[each.item]
        said = {
            axis.title: {axis.label(option): count for option, count in sorted(each.said[axis.name].items())}
            for axis in rated.set.axes
            if axis.name in each.said
        }
        row = {"item": item.id, "distance": each.distance, "question": item.question, "answer": item.answer}
        rows.append(row | {"said": said})
    return rows


def unfinished(rated: Rated[Key]) -> list[str]:
    """Who began and hasn't given every rating that was asked for."""
    remarks = []
    for id in dict.fromkeys(rating.rater for rating in rated.first):
        rater = rated.raters[id]
        asked = {(item, axis) for item in rated.set.work(rater.place or 0) for axis in rated.set.asked(item)}
        done = len({(rating.item, rating.axis) for rating in rated.first if rating.rater == id} & asked)
        if done < len(asked):
            remarks.append(f"{rater.code} gave {done} of {len(asked)} ratings.")
    return remarks
