"""Coverage and diversity of examples in several dimensions, for diversity.json and quality.json.

The module defines the dimensions and an example's groups in each, effective numbers of groups, distances of two
mixtures of groups, and the comparison of two prepared sets (after a filter, rebalancing or mixing).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import exp, log
from typing import Any, Literal, NamedTuple

import numpy as np

from meditune.data.diversity.imbalance import remarks
from meditune.data.example import PEOPLE, TRAITS, Example, people_mentioned, texts
from meditune.data.splits import Splits
from meditune.readability import TARGET, counted
from meditune.statistics import wilson

Groups = Callable[[Example], Sequence[str] | set[str]]
GRADES = ("below grade 6", "grade 6 to 8", "above 8, up to 12", "above 12, up to 16", "above grade 16")
"""The second band is readability.TARGET, including both ends"""
LENGTHS = ((25, "up to 24 words"), (75, "25 to 74 words"), (150, "75 to 149 words"), (300, "150 to 299 words"))
LONGEST = "300 words and more"
SEMANTIC_TYPES = {
    "T019": "congenital abnormality",
    "T020": "acquired abnormality",
    "T033": "finding",
    "T037": "injury or poisoning",
    "T046": "pathologic function",
    "T047": "disease or syndrome",
    "T048": "mental or behavioural dysfunction",
    "T049": "cell or molecular dysfunction",
    "T184": "sign or symptom",
    "T190": "anatomical abnormality",
    "T191": "neoplastic process",
}
"""Semantic types of disorders in UMLS (https://www.nlm.nih.gov/research/umls/META3_current_semantic_types.html)"""


@dataclass(frozen=True)
class Dimension:
    """A way to group examples."""

    name: str
    """The key in diversity.json"""
    title: str
    groups: Groups
    kind: Literal["one", "several", "ordered"] = "one"
    """several: an example may be in more than one group; ordered: `order` gives the order of the groups"""
    order: tuple[str, ...] = ()
    compared: bool = True
    """True if train and test should be similar in this dimension; foci and headings differ by design"""


def focus(example: Example) -> list[str]:
    """Return the topics that the source names for the example, in lowercase."""
    return [" ".join(text.casefold().split()) for text in texts(example.meta.get("focus")) if text.strip()]


@lru_cache(maxsize=65536)
def grade(answer: str) -> float | None:
    """Return the Flesch-Kincaid grade of an answer; None if it has no words."""
    counts = counted(answer)
    return counts.grade if counts.words else None


def _grade(example: Example) -> list[str]:
    value = grade(example.answer)
    if value is None:
        return []
    low, high = TARGET
    return [GRADES[(value >= low) + (value > high) + (value > 12) + (value > 16)]]


def _length(example: Example) -> list[str]:
    count = len(example.answer.split())
    return [next((name for end, name in LENGTHS if count < end), LONGEST)] if count else []


def _semantic(example: Example) -> list[str]:
    types = dict.fromkeys(texts(example.meta.get("semantic_type")))
    return [SEMANTIC_TYPES.get(each, each) for each in types]


YEARS = ("before 2000", "2000 to 2004", "2005 to 2009", "2010 to 2014", "2015 and later")
QUESTION_LENGTHS = ("up to 8 words", "9 to 15 words", "16 to 30 words", "more than 30 words")
DIMENSIONS = (
    Dimension("source", "Source", TRAITS["source"]),
    Dimension("collection", "Part of the source", lambda example: texts(example.meta.get("collection"))),
    Dimension("decision", "Decision", TRAITS["reference decision"]),
    Dimension("question_type", "Question type", TRAITS["question type"], "several"),
    Dimension("focus", "Focus", focus, "several", compared=False),
    Dimension("mesh", "MeSH heading", lambda example: set(texts(example.meta.get("mesh"))), "several", compared=False),
    Dimension("subject", "Subject, by MeSH headings", TRAITS["subject"], "several"),
    Dimension("semantic_type", "Semantic type (UMLS)", _semantic, "several"),
    Dimension("people", "People mentioned", people_mentioned, "several", PEOPLE),
    Dimension("year", "Year", TRAITS["year"], "ordered", YEARS),
    Dimension("reading_grade", "Reading grade of the answer", _grade, "ordered", GRADES),
    Dimension("answer_length", "Length of the answer", _length, "ordered", (*(name for _, name in LENGTHS), LONGEST)),
    Dimension("question_length", "Length of the question", TRAITS["question length"], "ordered", QUESTION_LENGTHS),
)
BY_NAME = {dimension.name: dimension for dimension in DIMENSIONS}


DRAWS = 20


def shannon(counts: Mapping[str, float]) -> float:
    """Return the effective number of groups: exp of Shannon's entropy, the Hill number of order 1.

    This number of equally large groups has the same entropy (Hill 1973, Ecology 54:427-432). Without groups it is 0.
    """
    total = sum(counts.values())
    shares = [count / total for count in counts.values() if count]
    return exp(-sum(share * log(share) for share in shares)) if shares else 0.0


def rarefied(counts: Mapping[str, int], share: float, seed: int) -> float:
    """Return the mean `shannon` of DRAWS seeded samples of this share of the counts, drawn without replacement.

    More rows show more groups, so two sets are only comparable at the same size.
    """
    values = np.array([count for count in counts.values() if count], dtype=np.int64)
    size = round(share * int(values.sum()))
    if not size or share >= 1:
        return shannon(counts)
    drawn = np.random.default_rng(seed).multivariate_hypergeometric(values, size, size=DRAWS, method="marginals")
    return float(np.mean([shannon(dict(enumerate(row.tolist()))) for row in drawn]))  # type: ignore[arg-type]


def distance(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """Return the total variation distance of two mixtures (0 to 1): the share that must change to match the other."""
    sums = sum(first.values()), sum(second.values())
    if not all(sums):
        return float(any(sums))
    names = first.keys() | second.keys()
    return sum(abs(first.get(name, 0) / sums[0] - second.get(name, 0) / sums[1]) for name in names) / 2


MAX_GROUPS = 12
"""Number of groups listed for each dimension; the others are counted together"""


class Counted(NamedTuple):
    """The counts of a set of examples in a dimension."""

    groups: Counter[str]
    known: int
    """Number of examples in a group; all examples if being in no group is informative"""


Counts = dict[str, Counted]


def diversity(splits: Splits) -> dict[str, Any]:
    """Return `splits` (a profile of each), `sources` (medians of the training rows), `differences` and `remarks`.

    `differences` are the total variation distances of train and test in each dimension in which they should be similar.
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
    """Return the number of examples per group in each dimension."""
    found = {}
    for dimension in DIMENSIONS:
        groups = [dimension.groups(example) for example in examples]
        known = len(examples) if dimension.name == "people" else sum(map(bool, groups))
        found[dimension.name] = Counted(Counter(group for each in groups for group in each), known)
    return found


def profile(examples: Sequence[Example], counts: Counts) -> dict[str, Any]:
    """Return the number of `examples`, and the `dimensions` that are known for any example."""
    found = {
        dimension.name: _dimension(dimension, *counts[dimension.name])
        for dimension in DIMENSIONS
        if counts[dimension.name].groups
    }
    return {"examples": len(examples), "dimensions": found}


def differences(first: Counts, second: Counts) -> dict[str, float]:
    """Return the distance of two sets in each dimension that is known for both and should be similar."""
    return {
        name: round(distance(own.groups, second[name].groups), 4)
        for name, own in first.items()
        if BY_NAME[name].compared and own.groups and second[name].groups
    }


def _dimension(dimension: Dimension, counts: Counter[str], known: int) -> dict[str, Any]:
    """Return `known` examples, `distinct` groups, `shannon`, and the largest (or all ordered) `groups`.

    A group has its `count`, its `share` of the known examples in percent, and the Wilson interval `ci95` of the share,
    which treats the examples as a sample. `others` counts the examples in groups that aren't listed.
    """
    ranked = [name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    names = list(dimension.order) or ranked[:MAX_GROUPS]
    return {
        "known": known,
        "distinct": len(counts),
        "shannon": round(shannon(counts), 2),
        "groups": [_group(name, counts[name], known) for name in names],
        "others": sum(counts[name] for name in ranked if name not in names),
    }


def _group(name: str, count: int, known: int) -> dict[str, Any]:
    ends = [round(end, 2) for end in wilson(count, known)]
    return {"group": name, "count": count, "share": round(100 * count / known, 2), "ci95": ends}


def _by_source(examples: Sequence[Example]) -> dict[str, dict[str, Any]]:
    """Return rows and quantiles of question words, answer words and reading grade per source and collection."""
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


MAX_COMPARED_GROUPS = 8
"""Number of groups listed for each dimension: those with the largest change of share"""


def compared(before: Sequence[Example], after: Sequence[Example], seed: int) -> dict[str, Any]:
    """Return `examples` of both sets, `gone` and `new` (by id), and the changes in each dimension.

    A dimension has its total variation `distance`, `effective` (the effective numbers of groups, rarefied to the size
    of the smaller set, because more rows show more groups), and `groups` with the largest changes: their shares in
    percent of all examples, sorted by change or in the order of the groups.
    """
    ids = {example.id for example in before}, {example.id for example in after}
    counts = counted_groups(before), counted_groups(after)
    least = min(len(before), len(after))
    dimensions = {}
    for dimension in DIMENSIONS:
        name = dimension.name
        sides = counts[0][name].groups, counts[1][name].groups
        if not any(sides):
            continue
        shares: list[dict[str, Any]] = [
            {
                "group": group,
                "before": round(100 * sides[0][group] / len(before), 2),
                "after": round(100 * sides[1][group] / len(after), 2),
            }
            for group in sides[0].keys() | sides[1].keys()
        ]
        shares.sort(key=lambda row: (-abs(row["after"] - row["before"]), row["group"]))
        listed = [row for row in shares if row["before"] != row["after"]][:MAX_COMPARED_GROUPS]
        if dimension.kind == "ordered":
            listed.sort(key=lambda row: dimension.order.index(row["group"]))
        dimensions[name] = {
            "distance": round(distance(*sides), 4),
            "effective": [
                round(rarefied(side, least / len(examples), seed), 2)
                for side, examples in zip(sides, (before, after), strict=True)
            ],
            "groups": listed,
        }
    return {
        "examples": [len(before), len(after)],
        "gone": len(ids[0] - ids[1]),
        "new": len(ids[1] - ids[0]),
        "dimensions": dimensions,
    }
