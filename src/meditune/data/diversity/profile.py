"""The coverage of examples, dimension by dimension: what diversity.json and quality.json hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from meditune.data.diversity.dimensions import BY_NAME, DIMENSIONS, Dimension, grade
from meditune.data.diversity.numbers import distance, shannon, simpson
from meditune.data.diversity.remarks import remarks
from meditune.data.example import Example
from meditune.data.splits import Splits
from meditune.shares import wilson

SHOWN = 12
"""Groups listed of each dimension; the others are counted together."""


class Counted(NamedTuple):
    """One dimension of a set of examples."""

    groups: Counter[str]
    known: int
    """Examples that are in a group, or, where being in none says something too, all"""


Counts = dict[str, Counted]


def diversity(splits: Splits) -> dict[str, Any]:
    """`splits` (a profile of each), `sources` (what a reader meets in each, of train), `differences` and `remarks`.

    `differences` are the total variation distances of train and test, for each dimension in which they should be alike.
    """
    counts = {name: counted_groups(examples) for name, examples in splits.named().items()}
    profiles = {name: profile(examples, counts[name]) for name, examples in splits.named().items()}
    apart = differences(counts["train"], counts["test"])
    return {
        "splits": profiles,
        "sources": _by_source(splits.train),
        "differences": apart,
        "remarks": remarks(profiles["train"], apart),
    }


def counted_groups(examples: Sequence[Example]) -> Counts:
    """How many examples each group of each dimension has."""
    found = {}
    for dimension in DIMENSIONS:
        groups = [dimension.groups(example) for example in examples]
        known = len(examples) if dimension.name == "people" else sum(map(bool, groups))
        found[dimension.name] = Counted(Counter(group for each in groups for group in each), known)
    return found


def profile(examples: Sequence[Example], counts: Counts) -> dict[str, Any]:
    """`examples`, and `dimensions`: those that are known of any example, as `_dimension` gives them."""
    found = {
        dimension.name: _dimension(dimension, *counts[dimension.name])
        for dimension in DIMENSIONS
        if counts[dimension.name].groups
    }
    return {"examples": len(examples), "dimensions": found}


def differences(first: Counts, second: Counts) -> dict[str, float]:
    """The distance of two sets in each dimension that both know and in which they should be alike."""
    return {
        name: round(distance(mine.groups, second[name].groups), 4)
        for name, mine in first.items()
        if BY_NAME[name].compared and mine.groups and second[name].groups
    }


def _dimension(dimension: Dimension, counts: Counter[str], known: int) -> dict[str, Any]:
    """`known` examples, `distinct` groups, `shannon` and `simpson`, and the `groups`, the largest or in their order.

    A group has its `count`, its `share` of the known examples in percent, and Wilson's interval of it, `ci95`: the
    examples taken as a sample of those that the source might have given. `others` counts groups that aren't listed.
    """
    ranked = [name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    names = list(dimension.order) or ranked[:SHOWN]
    return {
        "known": known,
        "distinct": len(counts),
        "shannon": round(shannon(counts), 2),
        "simpson": round(simpson(counts), 2),
        "groups": [_group(name, counts[name], known) for name in names],
        "others": sum(counts[name] for name in ranked if name not in names),
    }


def _group(name: str, count: int, known: int) -> dict[str, Any]:
    ends = [round(end, 2) for end in wilson(count, known)]
    return {"group": name, "count": count, "share": round(100 * count / known, 2), "ci95": ends}


def _by_source(examples: Sequence[Example]) -> dict[str, dict[str, Any]]:
    """For each source, and each part of one, rows and medians: words of question and answer, reading grade."""
    members: dict[str, list[Example]] = {}
    for example in examples:
        members.setdefault(example.source, []).append(example)
        for part in BY_NAME["collection"].groups(example):
            members.setdefault(f"{example.source}/{part}", []).append(example)
    return {name: _medians(members[name]) for name in sorted(members)}


def _medians(examples: Sequence[Example]) -> dict[str, Any]:
    answers = [example.answer for example in examples if example.answer]
    grades = [value for value in map(grade, answers) if value is not None]
    measured: Mapping[str, Sequence[float]] = {
        "question_words": [len(example.question.split()) for example in examples],
        "answer_words": [len(answer.split()) for answer in answers],
        "reading_grade": grades,
    }
    quantiles = {"p10": 10, "median": 50, "p90": 90}
    return {"examples": len(examples)} | {
        name: {key: round(float(np.percentile(values, at)), 1) for key, at in quantiles.items()}
        for name, values in measured.items()
        if values
    }
