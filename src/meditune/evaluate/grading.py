"""What is found in stored answers without the model that wrote them: graded once, and stored beside them.

A grader reads a model's stored predictions and the examples they belong to, and gives rows of a kind of its own. So a
run that was measured by an earlier version gets new figures from `meditune report`, and no model has to be loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from meditune.data.example import Example
from meditune.evaluate import calibration, faithfulness
from meditune.evaluate.predictions import Kind, Predictions, once, read
from meditune.evaluate.similarity import similarity
from meditune.recipe import EvaluateSpec

Grader = Callable[[Predictions, Mapping[str, Example], EvaluateSpec], Iterable[dict[str, Any]] | None]
"""Rows to store, from a model's predictions and the examples by id; None where there is nothing to grade"""
GRADERS: dict[Kind, Grader] = {
    "calibration": lambda predictions, _, spec: calibration.fitted(predictions, spec),
    "similarity": similarity,
    "faithfulness": faithfulness.grade,
    "reference_faithfulness": faithfulness.grade_references,
}
BY_PASSAGES: dict[Kind, Grader] = {
    "retrieved_faithfulness": faithfulness.grade_retrieved,
    "retrieved_reference_faithfulness": faithfulness.grade_retrieved_references,
}
"""Those that read the examples with the passages that were found for them"""


def grade(
    folder: Path, model: str, examples: Sequence[Example], spec: EvaluateSpec, found: Sequence[Example] = ()
) -> None:
    """Store what each grader finds in the predictions of `model`, unless it is there already.

    `found` are the examples with retrieved passages.
    """
    predictions = read(folder, model)
    given, by_passages = ({example.id: example for example in each} for each in (examples, found))
    for kind, grader in (GRADERS | BY_PASSAGES).items():
        if not getattr(predictions, kind):
            rows = grader(predictions, by_passages if kind in BY_PASSAGES else given, spec)
            if rows is not None:
                once(folder, model, kind, partial(iter, rows))
