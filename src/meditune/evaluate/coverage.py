"""Whether stored predictions are those of the items that were to be measured: strangers are refused, gaps are named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from meditune.data.example import Example
from meditune.errors import DataError
from meditune.evaluate.items import chosen_answers
from meditune.evaluate.predictions import Predictions
from meditune.recipe import Recipe

SHOWN = 5


def remarks(predictions: Predictions, name: str, examples: Sequence[Example], recipe: Recipe) -> list[str]:
    """What one must know of a model's stored predictions, in sentences; none where nothing is missing.

    Raises DataError where an id isn't among `examples`, or an item's reference is another there: such predictions
    belong to other data, and their figures would say nothing of these.
    """
    known = {example.id: example for example in examples}
    answered = chosen_answers(examples, recipe.evaluate.answers, recipe.seed)
    decided = [example.id for example in examples if example.decision]
    asked = [example.id for example in answered]
    expected = {"decision": decided, "likelihood": asked, "answer": asked, "rating": asked}
    found = []
    for kind, ids in expected.items():
        rows: list[dict[str, Any]] = getattr(predictions, kind)
        if not rows:
            continue
        _refuse_strangers(rows, known, f"{name}-{kind}.jsonl")
        there = {row["id"] for row in rows} | set(predictions.no_reference if kind == "answer" else ())
        missing = [each for each in ids if each not in there]
        if missing:
            found.append(
                f"{len(missing)} of {len(ids)} items have no prediction in {name}-{kind}.jsonl ({listed(missing)}); "
                "its figures are those of the others."
            )
    if predictions.no_reference:
        found.append(
            f"{len(predictions.no_reference)} answers in {name}-answer.jsonl have an empty reference "
            f"({listed(predictions.no_reference)}); nothing is measured on them."
        )
    return found


def unmeasured(examples: Sequence[Example]) -> list[str]:
    """A sentence where test items have neither a decision nor an answer, or only some have an answer."""
    without = [example.id for example in examples if not example.answer.strip() and not example.decision]
    if not without:
        return []
    return [f"{len(without)} of {len(examples)} items have neither answer nor decision to measure ({listed(without)})."]


def listed(ids: Sequence[str]) -> str:
    """The first ids, and how many more there are."""
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return f"{', '.join(ids[:SHOWN])}{more}"


def _refuse_strangers(rows: Sequence[dict[str, Any]], known: Mapping[str, Example], file: str) -> None:
    strangers = [row["id"] for row in rows if row["id"] not in known]
    if strangers:
        raise DataError(
            f"{file}: {len(strangers)} of {len(rows)} predictions are for items that aren't in the data measured on "
            f"({listed(strangers)}). They belong to other data: evaluate the model again, or take them out."
        )
    changed = [row["id"] for row in rows if row.get("reference") not in _references(known[row["id"]])]
    if changed:
        raise DataError(
            f"{file}: {len(changed)} of {len(rows)} predictions have another reference than the data "
            f"({listed(changed)}). The data or the file was changed since: evaluate the model again."
        )


def _references(example: Example) -> list[str | None]:
    return [None, example.decision, example.answer, *example.references()]
