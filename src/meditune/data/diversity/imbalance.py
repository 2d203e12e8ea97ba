"""Remarks on imbalances in training data, with advice.

The thresholds are Meditune's own rules of thumb, low enough to report every imbalance that matters; they are documented
in docs/how-to/measure-diversity.md. A remark isn't an error: data for one task may well be one-sided.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from meditune.data.example import DECISIONS

MIN_EXAMPLES = 30
"""With fewer examples, the only remark is that there are too few"""
RARE_DECISION = 20.0
"""A decision with a smaller share, in percent, is rare"""
DOMINANT = 70.0
"""A group with a larger share, in percent, is dominant if there are at least two groups"""
MIN_EVENNESS = 0.5
"""A dimension with at least five groups is uneven below this ratio of effective number to distinct groups"""
HARD = 50.0
"""The data are hard to read if more answers than this, in percent, are above grade 8"""
MIN_MENTION_PERCENT = 2.0
"""People in a smaller share of the examples, in percent, are hardly mentioned"""
MAX_MENTION_RATIO = 2.0
"""The ratio of mentions of women and men above which a remark is made"""
MAX_SPLIT_DISTANCE = 0.3
"""Total variation distance above which train and test are different"""

Remark = dict[str, str]
_DOMINANCE = ("source", "collection", "question_type", "semantic_type", "subject")
_EVENNESS_DIMENSIONS = ("question_type", "semantic_type", "subject")


def remarks(train: Mapping[str, Any], distances: Mapping[str, float]) -> list[Remark]:
    """Return `rule`, `message` and `advice` for each imbalance in the profile of the training split."""
    if train["examples"] < MIN_EXAMPLES:
        return [
            {
                "rule": "too few to tell",
                "message": f"{train['examples']:,} training examples are too few to detect an imbalance.",
                "advice": f"At least {MIN_EXAMPLES} are needed.",
            }
        ]
    dimensions = train["dimensions"]
    found = [*_decisions(dimensions.get("decision")), *_dominant(dimensions), *_low_evenness(dimensions)]
    return [
        *found,
        *_reading_difficulty(dimensions.get("reading_grade")),
        *_people(dimensions.get("people")),
        *_split_distance(distances),
    ]


def _decisions(dimension: Mapping[str, Any] | None) -> Iterator[Remark]:
    if not dimension or dimension["known"] < MIN_EXAMPLES:
        return
    shares = {row["group"]: row for row in dimension["groups"]}
    missing = [label for label in DECISIONS if label not in shares]
    if missing:
        yield {
            "rule": "missing decision",
            "message": f"No training decision is {' or '.join(missing)}.",
            "advice": "A model can't learn this decision from the data. Add a source that has it.",
        }
    for label, row in shares.items():
        if row["share"] < RARE_DECISION:
            yield {
                "rule": "rare decision",
                "message": f"{label} is {_percent(row)} of {dimension['known']:,} decisions.",
                "advice": "A model that never predicts it loses little. Weight decisions with train.class_balance=0.5.",
            }


def _dominant(dimensions: Mapping[str, Any]) -> Iterator[Remark]:
    for name in _DOMINANCE:
        dimension = dimensions.get(name)
        if not dimension or dimension["distinct"] < 2 or dimension["known"] < MIN_EXAMPLES:
            continue
        top = max(dimension["groups"], key=lambda row: row["count"])
        if top["share"] > DOMINANT:
            rest = max(1, dimension["known"] - top["count"])
            ways = [f"cap it with data.balance={{by: {name}, cap: {rest}}}", "add other data"]
            if name == "source":
                ways.insert(1, "sample small sources more often with train.mix.weights")
            yield {
                "rule": "dominant group",
                "message": f"{_title(name)} {top['group']} is {_percent(top)} of the {dimension['known']:,} training "
                "examples for which it is known.",
                "advice": f"Metrics over all examples mostly describe this group: {', or '.join(ways)}.",
            }


def _low_evenness(dimensions: Mapping[str, Any]) -> Iterator[Remark]:
    for name in _EVENNESS_DIMENSIONS:
        dimension = dimensions.get(name)
        if dimension and dimension["distinct"] >= 5 and dimension["shannon"] / dimension["distinct"] < MIN_EVENNESS:
            yield {
                "rule": "uneven groups",
                "message": f"The {dimension['distinct']} groups by {_title(name).lower()} are as diverse as "
                f"{dimension['shannon']:.1f} equal groups (effective number).",
                "advice": "The small groups are hardly learned and hardly tested. See the metrics by subgroup in the "
                f"report; data.balance={{by: {name}, cap: {max(1, dimension['known'] // 5)}}} caps the large ones.",
            }


def _reading_difficulty(dimension: Mapping[str, Any] | None) -> Iterator[Remark]:
    if not dimension or dimension["known"] < MIN_EXAMPLES:
        return
    hard = sum(row["share"] for row in dimension["groups"][2:])
    if hard > HARD:
        yield {
            "rule": "hard to read",
            "message": f"{hard:.0f} % of the training answers are above reading grade 8.",
            "advice": "A model learns the style of its training answers. For patients, keep the easy answers with "
            "data.max_reading_grade (10, or 8 for everyone). MedQuAD has the most easy answers of the known sources.",
        }


def _people(dimension: Mapping[str, Any] | None) -> Iterator[Remark]:
    if not dimension:
        return
    rows = {row["group"]: row for row in dimension["groups"]}
    women, men = rows["women or girls"], rows["men or boys"]
    more, fewer = (women, men) if women["count"] >= men["count"] else (men, women)
    if more["count"] >= MIN_EXAMPLES and more["count"] > MAX_MENTION_RATIO * fewer["count"]:
        yield {
            "rule": "women and men",
            "message": f"{more['group']} are mentioned in {_percent(more)} of the examples, {fewer['group']} in "
            f"{_percent(fewer)}.",
            "advice": "Compare the metrics of both subgroups in the report, and add data for the weaker one.",
        }
    scarce = [row["group"] for row in dimension["groups"] if row["share"] < MIN_MENTION_PERCENT]
    if scarce:
        yield {
            "rule": "hardly mentioned",
            "message": f"Mentioned in fewer than {MIN_MENTION_PERCENT:.0f} % of the examples: {', '.join(scarce)}.",
            "advice": "The metrics don't apply to them. Add sources about them, or state this limit wherever the model "
            "is offered.",
        }


def _split_distance(distances: Mapping[str, float]) -> Iterator[Remark]:
    far = {name: value for name, value in distances.items() if value > MAX_SPLIT_DISTANCE}
    if far:
        listed = ", ".join(f"{_title(name).lower()} {100 * value:.0f} %" for name, value in far.items())
        yield {
            "rule": "train and test differ",
            "message": "Train and test differ. Share of training examples that would have to change to match the test "
            f"set: {listed}.",
            "advice": "The test metrics then describe other questions or answers than those in training. This may be "
            "intended (a filter, a publisher's test set); if not, data.split=group tests on held-out parts of every "
            "source.",
        }


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _percent(row: Mapping[str, Any]) -> str:
    low, high = row["ci95"]
    return f"{row['share']:.0f} % ({low:.0f} to {high:.0f})" if row["share"] < 99.5 else "nearly 100 %"
