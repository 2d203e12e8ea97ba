"""Any number of measured models side by side, each compared with the first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from meditune.errors import DataError
from meditune.evaluate.changes import Change, changes
from meditune.evaluate.compare import claim_p, compare, got_worse
from meditune.evaluate.measured import Measured
from meditune.evaluate.metrics import summarise
from meditune.evaluate.significance import holm


class NothingInCommonError(DataError):
    """Models of which no metric was measured for both."""


def side_by_side(models: Sequence[Measured], resamples: int, seed: int) -> dict[str, Any]:
    """`models` (names), `figures` (name -> metric -> figure), `comparisons` (name -> `comparison` and `worse`).

    Every model but the first is compared with it, with rows as in compare.compare, but Holm's correction runs over all
    metrics of all of these comparisons; `worse` names what moved the wrong way. Of just two models `base`, `tuned`,
    `comparison` and `worse` are there as in report.json, too.

    Raises DataError where models were measured on different items, NothingInCommonError where there is no metric of
    both.
    """
    first, *others = models
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        raise DataError(f"A model is given twice: {', '.join(names)}.")
    found = {}
    for other in others:
        try:
            found[other.name] = compare(
                first.predictions, other.predictions, resamples, seed, first.groups() | other.groups()
            )
        except DataError as error:
            raise DataError(f"{first.name} and {other.name}: {error}") from error
        if not found[other.name]:
            raise NothingInCommonError(
                f"{first.name} and {other.name} have no metric in common, so there is nothing to compare."
            )
    adjusted = holm({f"{name}\n{metric}": claim_p(row) for name, rows in found.items() for metric, row in rows.items()})
    comparisons = {}
    for name, rows in found.items():
        corrected = {metric: row | {"p_holm": adjusted[f"{name}\n{metric}"]} for metric, row in rows.items()}
        comparisons[name] = {"comparison": corrected, "worse": got_worse(corrected)}
    figures = {model.name: summarise(model.predictions) for model in models}
    result: dict[str, Any] = {"models": names, "figures": figures, "comparisons": comparisons}
    if len(others) == 1:
        only = others[0].name
        result |= {"base": figures[first.name], "tuned": figures[only], **comparisons[only]}
    return result


def changed(first: Measured, second: Measured) -> list[Change]:
    """Which items the second model answers otherwise than the first, the greatest loss first."""
    return changes(first.predictions, second.predictions, first.examples | second.examples)
