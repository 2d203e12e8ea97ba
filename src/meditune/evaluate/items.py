"""Which items are measured, and under which conditions."""

from __future__ import annotations

import random
from collections.abc import Sequence

from meditune.data.example import Example
from meditune.errors import DataError
from meditune.evaluate.predictions import Condition, DecisionKind
from meditune.recipe import EvaluateSpec


def decided_on(
    examples: Sequence[Example], dev: Sequence[Example], spec: EvaluateSpec, found: Sequence[Example] = ()
) -> dict[DecisionKind, list[Example]]:
    """The examples of each kind of decision, as a model is to see them; a kind without examples isn't there.

    `dev` is decided on only where something is fitted there. `found` are the examples with retrieved passages in place
    of the given context.
    """
    kinds: dict[DecisionKind, list[Example]] = {"decision": _decided(examples)}
    if spec.fits_on_dev:
        kinds["dev_decision"] = _decided(dev)
    for condition, shown in under_conditions(examples, spec, found).items():
        kinds[condition] = _decided(shown)
    return {kind: shown for kind, shown in kinds.items() if shown}


def refuse_no_repeat(spec: EvaluateSpec) -> None:
    """Raise DataError where answers are to be written by a rule that engines and APIs don't follow."""
    if spec.no_repeat:
        raise DataError(
            "evaluate.no_repeat holds for models that are loaded here; an exported model or an API writes as it does. "
            "Set it to null, for the models to be compared with, too."
        )


def under_conditions(
    examples: Sequence[Example], spec: EvaluateSpec, found: Sequence[Example] = ()
) -> dict[Condition, list[Example]]:
    """The examples as they are shown under each condition that is measured, if any are.

    Closed book are those that have a context to take away.
    """
    ids = {example.id for example in examples}
    closed = [example.model_copy(update={"context": ()}) for example in examples if example.context]
    kinds: dict[Condition, list[Example]] = {
        "closed": closed if spec.closed_book else [],
        "retrieved": [example for example in found if example.id in ids],
    }
    return {kind: shown for kind, shown in kinds.items() if shown}


def _decided(examples: Sequence[Example]) -> list[Example]:
    return [example for example in examples if example.decision]


def chosen_answers(examples: Sequence[Example], count: int | None, seed: int) -> list[Example]:
    """The examples whose long answers are scored: a seeded subset in the original order."""
    able = [example for example in examples if example.answer.strip()]
    if count is None or len(able) <= count:
        return able
    return [able[index] for index in sorted(random.Random(f"{seed}/answers").sample(range(len(able)), count))]
