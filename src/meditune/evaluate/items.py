"""Which items are measured, and under which conditions."""

from __future__ import annotations

import random
from collections.abc import Sequence

from meditune.data.example import Example
from meditune.evaluate.predictions import DecisionKind
from meditune.recipe import EvaluateSpec


def decided_on(
    examples: Sequence[Example], dev: Sequence[Example], spec: EvaluateSpec
) -> dict[DecisionKind, list[Example]]:
    """The examples of each kind of decision, as a model is to see them; a kind without examples isn't there.

    `dev` is decided on only where something is fitted there. A further condition, such as retrieved passages in place
    of the given context, is one more kind whose examples show it.
    """
    kinds: dict[DecisionKind, list[Example]] = {"decision": [example for example in examples if example.decision]}
    if spec.fits_on_dev:
        kinds["dev_decision"] = [example for example in dev if example.decision]
    if spec.closed_book:
        given = [example for example in kinds["decision"] if example.context]
        kinds["closed"] = [example.model_copy(update={"context": ()}) for example in given]
    return {kind: found for kind, found in kinds.items() if found}


def chosen_answers(examples: Sequence[Example], count: int | None, seed: int) -> list[Example]:
    """The examples whose long answers are scored: a seeded subset in the original order."""
    able = [example for example in examples if example.answer.strip()]
    if count is None or len(able) <= count:
        return able
    return [able[index] for index in sorted(random.Random(f"{seed}/answers").sample(range(len(able)), count))]
