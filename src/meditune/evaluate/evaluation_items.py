"""Evaluation items, the conditions under which they are asked, and a check that predictions belong to them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from meditune.config.recipe import EvaluateSpec, Recipe
from meditune.data.example import Example
from meditune.errors import DataError
from meditune.evaluate.predictions import Condition, DecisionKind, Predictions


def decided_on(
    examples: Sequence[Example], dev: Sequence[Example], spec: EvaluateSpec, retrieved: Sequence[Example] = ()
) -> dict[DecisionKind, list[Example]]:
    """Return the examples for each kind of decision, as the model sees them; kinds without examples are absent.

    `dev` is used only if something is fitted on it. `retrieved` are the examples with retrieved passages instead of the
    given context.
    """
    kinds: dict[DecisionKind, list[Example]] = {"decision": _decided_items(examples)}
    if spec.fits_on_dev:
        kinds["dev_decision"] = _decided_items(dev)
    for condition, items in under_conditions(examples, spec, retrieved).items():
        kinds[condition] = _decided_items(items)
    return {kind: items for kind, items in kinds.items() if items}


def under_conditions(
    examples: Sequence[Example], spec: EvaluateSpec, retrieved: Sequence[Example] = ()
) -> dict[Condition, list[Example]]:
    """Return the examples as the model sees them under each condition that is measured.

    Only examples with a context are asked closed book.
    """
    ids = {example.id for example in examples}
    closed = [example.model_copy(update={"context": ()}) for example in examples if example.context]
    kinds: dict[Condition, list[Example]] = {
        "closed": closed if spec.closed_book else [],
        "retrieved": [example for example in retrieved if example.id in ids],
    }
    return {kind: items for kind, items in kinds.items() if items}


def _decided_items(examples: Sequence[Example]) -> list[Example]:
    return [example for example in examples if example.decision]


def chosen_answers(examples: Sequence[Example], count: int | None, seed: int) -> list[Example]:
    """Return the examples whose long answers are scored: a seeded subset in the original order."""
    able = [example for example in examples if example.answer.strip()]
    if count is None or len(able) <= count:
        return able
    return [able[index] for index in sorted(random.Random(f"{seed}/answers").sample(range(len(able)), count))]


MAX_LISTED_IDS = 5


def coverage_remarks(predictions: Predictions, name: str, examples: Sequence[Example], recipe: Recipe) -> list[str]:
    """Return sentences about what is missing in a model's stored predictions.

    Raises DataError if an id isn't among `examples`, or an item has a different reference there, because such
    predictions were made from different data.
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
        _refuse_unknown_items(rows, known, f"{name}-{kind}.jsonl")
        predicted = {row["id"] for row in rows} | set(predictions.no_reference if kind == "answer" else ())
        missing = [each for each in ids if each not in predicted]
        if missing:
            found.append(
                f"{len(missing)} of {len(ids)} items have no prediction in {name}-{kind}.jsonl ({list_ids(missing)}); "
                "the metrics cover only the others."
            )
    if predictions.no_reference:
        found.append(
            f"{len(predictions.no_reference)} answers in {name}-answer.jsonl have an empty reference "
            f"({list_ids(predictions.no_reference)}) and are left out of the metrics."
        )
    return found


def unmeasured_ids(examples: Sequence[Example]) -> list[str]:
    """Return a sentence if test items have neither a decision nor an answer."""
    without = [example.id for example in examples if not (example.answer.strip() or example.decision or example.label)]
    if not without:
        return []
    return [
        f"{len(without)} of {len(examples)} items have neither an answer nor a decision to measure "
        f"({list_ids(without)})."
    ]


def list_ids(ids: Sequence[str]) -> str:
    """Return the first ids as text, and the number of further ones."""
    more = f" and {len(ids) - MAX_LISTED_IDS} more" if len(ids) > MAX_LISTED_IDS else ""
    return f"{', '.join(ids[:MAX_LISTED_IDS])}{more}"


def _refuse_unknown_items(rows: Sequence[dict[str, Any]], known: Mapping[str, Example], file: str) -> None:
    unknown = [row["id"] for row in rows if row["id"] not in known]
    if unknown:
        raise DataError(
            f"{file}: {len(unknown)} of {len(rows)} predictions are for items that aren't in the test data "
            f"({list_ids(unknown)}). Evaluate the model again, or remove these predictions."
        )
    changed = [row["id"] for row in rows if row.get("reference") not in _references(known[row["id"]])]
    if changed:
        raise DataError(
            f"{file}: {len(changed)} of {len(rows)} predictions have another reference than the data "
            f"({list_ids(changed)}). The data or the file has changed: evaluate the model again."
        )


def _references(example: Example) -> list[str | None]:
    return [None, example.decision, example.answer, *example.references()]
