"""Which items changed between two models, in both directions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from meditune.data.example import Example
from meditune.evaluate.predictions import Predictions

Change = dict[str, Any]


def changes(base: Predictions, tuned: Predictions, examples: Mapping[str, Example]) -> list[Change]:
    """Each item of which the two models say something else, the greatest loss first and the greatest gain last.

    `id`, `kind` (decision or answer), `question` (empty where it isn't known), `reference`, what `base` and `tuned`
    say, `change` (lost, gained, or neither), and `delta`: of a decision 1 where it turned right, -1 where it turned
    wrong, else 0; of an answer the difference in ROUGE-L.
    """
    found = [
        _row("decision", first, second, examples, int(_is_right(second)) - int(_is_right(first)))
        for first, second in _pairs(base.decision, tuned.decision)
    ]
    found += [
        _row("answer", first, second, examples, _rouge(second) - _rouge(first))
        for first, second in _pairs(base.answer, tuned.answer)
    ]
    return sorted(found, key=lambda row: (row["delta"], row["kind"], row["id"]))


def counted(found: list[Change]) -> dict[str, dict[str, int]]:
    """For each kind of prediction, how many items were lost, gained, or changed to neither's good."""
    counts: dict[str, dict[str, int]] = {}
    for row in found:
        of_kind = counts.setdefault(row["kind"], {"lost": 0, "gained": 0, "neither": 0})
        of_kind[row["change"]] += 1
    return counts


def _pairs(base: list[dict[str, Any]], tuned: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    later = {row["id"]: row for row in tuned}
    both = [(row, later[row["id"]]) for row in base if row["id"] in later]
    return [(first, second) for first, second in both if first["prediction"] != second["prediction"]]


def _row(
    kind: str, base: dict[str, Any], tuned: dict[str, Any], examples: Mapping[str, Example], delta: float
) -> Change:
    example = examples.get(base["id"])
    return {
        "id": base["id"],
        "kind": kind,
        "question": example.question if example else "",
        "reference": base["reference"],
        "base": base["prediction"],
        "tuned": tuned["prediction"],
        "change": "gained" if delta > 0 else "lost" if delta < 0 else "neither",
        "delta": delta,
    }


def _is_right(row: dict[str, Any]) -> bool:
    return bool(row["prediction"] == row["reference"])


def _rouge(row: dict[str, Any]) -> float:
    return rouge(row["reference"], row["prediction"])


def rouge(reference: str, prediction: str) -> float:
    """ROUGE-L F of one answer, stemmed."""
    return float(_scorer().score(reference, prediction)["rougeL"].fmeasure)


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)
