"""What is out of balance in training data, and what one can do about it.

The thresholds are ours: a rule of thumb each, low enough that what they leave unsaid hardly matters, and stated in
docs/how-to/measure-diversity.md. A remark isn't an error; data for one task may well be one-sided.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from meditune.data.example import DECISIONS

FEWEST = 30
"""Of fewer examples nothing but that is said."""
RARE_DECISION = 20.0
"""A decision with a smaller share, in percent, is called rare."""
DOMINANT = 70.0
"""A group with a larger share, in percent, is called dominant, where there are two or more."""
UNEVEN = 0.5
"""Effective number over distinct groups below which a dimension with at least five groups is called uneven."""
HARD = 50.0
"""More answers than this, in percent, above grade 8 make the data hard to read."""
HARDLY = 2.0
"""People mentioned in a smaller share of the examples, in percent, are hardly there."""
LOPSIDED = 2.0
"""Women and men are lopsided where one are mentioned so many times as often as the others."""
APART = 0.3
"""Total variation distance from which train and test are called different."""

Remark = dict[str, str]
_DOMINANCE = ("source", "collection", "question_type", "semantic_type", "subject")
_UNEVENNESS = ("question_type", "semantic_type", "subject")


def remarks(train: Mapping[str, Any], apart: Mapping[str, float]) -> list[Remark]:
    """`rule`, `said` and `advice` of everything that is out of balance in the profile of the training split."""
    if train["examples"] < FEWEST:
        return [
            {
                "rule": "too few to tell",
                "said": f"{train['examples']:,} training examples are too few to say what is out of balance.",
                "advice": f"From {FEWEST} on it is looked for.",
            }
        ]
    dimensions = train["dimensions"]
    found = [*_decisions(dimensions.get("decision")), *_dominant(dimensions), *_uneven(dimensions)]
    return [*found, *_hard(dimensions.get("reading_grade")), *_people(dimensions.get("people")), *_apart(apart)]


def _decisions(dimension: Mapping[str, Any] | None) -> Iterator[Remark]:
    if not dimension or dimension["known"] < FEWEST:
        return
    shares = {row["group"]: row for row in dimension["groups"]}
    missing = [label for label in DECISIONS if label not in shares]
    if missing:
        yield {
            "rule": "missing decision",
            "said": f"No training decision is {' or '.join(missing)}.",
            "advice": "A model can't learn it from these data. Add a source that has it.",
        }
    for label, row in shares.items():
        if row["share"] < RARE_DECISION:
            times = max(2, round(100 / len(DECISIONS) / row["share"]))
            yield {
                "rule": "rare decision",
                "said": f"{label} is {_percent(row)} of {dimension['known']:,} decisions.",
                "advice": "A model that never says it loses little. Weight decisions with train.class_balance=0.5, or "
                f"let its rows come more often with data.balance={{by: decision, weights: {{{label}: {times}}}}}.",
            }


def _dominant(dimensions: Mapping[str, Any]) -> Iterator[Remark]:
    for name in _DOMINANCE:
        dimension = dimensions.get(name)
        if not dimension or dimension["distinct"] < 2 or dimension["known"] < FEWEST:
            continue
        top = max(dimension["groups"], key=lambda row: row["count"])
        if top["share"] > DOMINANT:
            rest = max(1, dimension["known"] - top["count"])
            ways = [f"cap it with data.balance={{by: {name}, cap: {rest}}}", "add other data"]
            if name == "source":
                ways.insert(1, "let small sources come more often with train.mix.temperature=3")
            yield {
                "rule": "dominant group",
                "said": f"{_what(name)} {top['group']} is {_percent(top)} of the {dimension['known']:,} training "
                "examples that say theirs.",
                "advice": f"Figures over all examples are mostly about it: {', or '.join(ways)}.",
            }


def _uneven(dimensions: Mapping[str, Any]) -> Iterator[Remark]:
    for name in _UNEVENNESS:
        dimension = dimensions.get(name)
        if dimension and dimension["distinct"] >= 5 and dimension["shannon"] / dimension["distinct"] < UNEVEN:
            yield {
                "rule": "uneven groups",
                "said": f"The {dimension['distinct']} groups by {_what(name).lower()} count for "
                f"{dimension['shannon']:.1f} (effective number).",
                "advice": "The small ones are hardly learnt and hardly tested. Look at their figures by subgroup in "
                f"the report; data.balance={{by: {name}, share: 0.2}} caps the large ones.",
            }


def _hard(dimension: Mapping[str, Any] | None) -> Iterator[Remark]:
    if not dimension or dimension["known"] < FEWEST:
        return
    hard = sum(row["share"] for row in dimension["groups"][2:])
    if hard > HARD:
        yield {
            "rule": "hard to read",
            "said": f"{hard:.0f} % of the training answers are above reading grade 8.",
            "advice": "A model learns to write as its answers do. For patients, keep the easy ones with "
            "data.max_reading_grade (10, or 8 for everyone). Of the known sources MedQuAD has most of them.",
        }


def _people(dimension: Mapping[str, Any] | None) -> Iterator[Remark]:
    if not dimension:
        return
    rows = {row["group"]: row for row in dimension["groups"]}
    women, men = rows["women or girls"], rows["men or boys"]
    more, fewer = (women, men) if women["count"] >= men["count"] else (men, women)
    if more["count"] >= FEWEST and more["count"] > LOPSIDED * fewer["count"]:
        yield {
            "rule": "women and men",
            "said": f"{more['group']} are mentioned in {_percent(more)} of the examples, {fewer['group']} in "
            f"{_percent(fewer)}.",
            "advice": "Compare the figures of both by subgroup in the report, and add data where one lags behind.",
        }
    scarce = [row["group"] for row in dimension["groups"] if row["share"] < HARDLY]
    if scarce:
        yield {
            "rule": "hardly mentioned",
            "said": f"Mentioned in fewer than {HARDLY:.0f} % of the examples: {', '.join(scarce)}.",
            "advice": "Nothing measured here holds for them. Add sources about them, or say so where the model is "
            "offered.",
        }


def _apart(apart: Mapping[str, float]) -> Iterator[Remark]:
    far = {name: value for name, value in apart.items() if value > APART}
    if far:
        listed = ", ".join(f"{_what(name).lower()} {100 * value:.0f} %" for name, value in far.items())
        yield {
            "rule": "train and test differ",
            "said": "Train and test differ; to have the test's mixture, so many training examples had to change: "
            f"{listed}.",
            "advice": "Test figures are then about other questions, or other answers, than those trained on. That may "
            "be meant, where a filter or a publisher's test set makes it so; else data.split=group tests on held-out "
            "parts of every source.",
        }


def _what(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _percent(row: Mapping[str, Any]) -> str:
    low, high = row["ci95"]
    return f"{row['share']:.0f} % ({low:.0f} to {high:.0f})" if row["share"] < 99.5 else "nearly 100 %"
