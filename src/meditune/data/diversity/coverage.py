"""The coverage of examples, dimension by dimension: what diversity.json and quality.json hold.

By what coverage is told: the dimensions, and an example's groups in each.

Effective numbers of groups, and how far two mixtures of groups lie apart.

Two prepared sets side by side: what a filter, rebalancing or mixing changed in the training split.
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
"""The second is readability's TARGET, both ends included."""
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
"""UMLS's semantic types among disorders (https://www.nlm.nih.gov/research/umls/META3_current_semantic_types.html)"""


@dataclass(frozen=True)
class Dimension:
    """One way to group examples."""

    name: str
    """Its key in diversity.json"""
    title: str
    groups: Groups
    kind: Literal["one", "several", "ordered"] = "one"
    """several: an example may be in more than one group; ordered: `order` says how they follow each other"""
    order: tuple[str, ...] = ()
    compared: bool = True
    """Whether train and test should be alike in it; foci and headings differ by design."""


def focus(example: Example) -> list[str]:
    """What the example is about by its source, in lower case; empty where the source doesn't say."""
    return [" ".join(text.casefold().split()) for text in texts(example.meta.get("focus")) if text.strip()]


@lru_cache(maxsize=65536)
def grade(answer: str) -> float | None:
    """Flesch-Kincaid grade of an answer; None where it has no word."""
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
    return [_band(count, LENGTHS, LONGEST)] if count else []


def _band(value: float, bands: Sequence[tuple[int, str]], last: str) -> str:
    return next((name for end, name in bands if value < end), last)


def _semantic(example: Example) -> list[str]:
    types = dict.fromkeys(texts(example.meta.get("semantic_type")))
    return [SEMANTIC_TYPES.get(each, each) for each in types]


def _names(bands: Sequence[tuple[int, str]], last: str) -> tuple[str, ...]:
    return (*(name for _, name in bands), last)


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
    Dimension("answer_length", "Length of the answer", _length, "ordered", _names(LENGTHS, LONGEST)),
    Dimension("question_length", "Length of the question", TRAITS["question length"], "ordered", QUESTION_LENGTHS),
)
BY_NAME = {dimension.name: dimension for dimension in DIMENSIONS}


DRAWS = 20


def shannon(counts: Mapping[str, float]) -> float:
    """Effective number of groups, exp of Shannon's entropy: Hill's number of order 1 (Hill 1973, Ecology 54:427-432).

    As many equally large groups have the same entropy. 0 without groups.
    """
    total = sum(counts.values())
    shares = [count / total for count in counts.values() if count]
    return exp(-sum(share * log(share) for share in shares)) if shares else 0.0


def simpson(counts: Mapping[str, float]) -> float:
    """Effective number of groups, the inverse of Simpson's index: Hill's number of order 2; large groups lead it."""
    total = sum(counts.values())
    return 1 / sum((count / total) ** 2 for count in counts.values()) if total else 0.0


def rarefied(counts: Mapping[str, int], share: float, seed: int) -> float:
    """`shannon` of a seeded draw of this share of what was counted, without putting back; the mean of DRAWS draws.

    More rows show more groups, so two sets are comparable only at the same size.
    """
    values = np.array([count for count in counts.values() if count], dtype=np.int64)
    size = round(share * int(values.sum()))
    if not size or share >= 1:
        return shannon(counts)
    drawn = np.random.default_rng(seed).multivariate_hypergeometric(values, size, size=DRAWS, method="marginals")
    return float(np.mean([shannon(dict(enumerate(row.tolist()))) for row in drawn]))  # type: ignore[arg-type]


def distance(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """Total variation distance of two mixtures, 0 to 1: the share of either that must change to give the other."""
    sums = sum(first.values()), sum(second.values())
    if not all(sums):
        return float(any(sums))
    names = first.keys() | second.keys()
    return sum(abs(first.get(name, 0) / sums[0] - second.get(name, 0) / sums[1]) for name in names) / 2


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


COMPARING_SHOWN = 8
"""Groups listed of each dimension: those whose share changed most"""


def compared(before: Sequence[Example], after: Sequence[Example], seed: int) -> dict[str, Any]:
    """`examples` of both, `gone` and `new` (by id), and for each dimension what changed.

    A dimension has its total variation `distance`, `effective` (exp of Shannon's entropy of both, drawn down to the
    size of the smaller one, because more rows show more groups), and `groups`: the shares of both in percent of all
    examples: the largest changes, first or in their groups' order.
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
        listed = [row for row in shares if row["before"] != row["after"]][:COMPARING_SHOWN]
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
