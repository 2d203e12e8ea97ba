"""What a model makes of the same questions closed book, with the given context, and with retrieved passages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meditune.evaluate.compare import compare
from meditune.evaluate.metrics.contexts import asked
from meditune.evaluate.predictions import CONDITIONS, Predictions
from meditune.shares import wilson


def conditions(
    models: Mapping[str, Predictions], resamples: int, seed: int, groups: Mapping[str, str]
) -> dict[str, Any]:
    """Model -> condition (closed, given, retrieved) -> `figures`, and, but for given, `comparison` with given.

    Comparisons are as in compare.compare: the model under the condition, less the same model with the given context.
    Empty where no model was measured otherwise than with the given context.
    """
    found = {name: _of(predictions, resamples, seed, groups) for name, predictions in models.items()}
    return {name: each for name, each in found.items() if len(each) > 1}


def _of(predictions: Predictions, resamples: int, seed: int, groups: Mapping[str, str]) -> dict[str, Any]:
    given = predictions.under(None)
    sides = {"closed": predictions.under("closed"), "given": given, "retrieved": predictions.under("retrieved")}
    found: dict[str, Any] = {}
    for name, side in sides.items():
        figures = {metric: each.value() for metric, each in asked(side).items()}
        if not figures:
            continue
        found[name] = {"figures": figures}
        if name in CONDITIONS:
            rows = compare(given, side, resamples, seed, groups)
            found[name]["comparison"] = {metric: rows[metric] for metric in figures if metric in rows}
    return found


def retrieval(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What report.json says of the search: retrieved.json's facts, with the `share` of own documents and its `ci95`.

    In percent, with Wilson's interval; neither is there where no item's own document is among those searched.
    """
    own = facts["own"]
    said = {key: value for key, value in facts.items() if key != "leaks"}
    if not own["items"]:
        return said
    met = sum(own["ranks"].values())
    return said | {"share": 100 * met / own["items"], "ci95": wilson(met, own["items"])}
