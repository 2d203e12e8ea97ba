"""Data whose licence forbids sending it to others."""

from __future__ import annotations

from collections.abc import Iterable

from meditune.data.example import Example
from meditune.data.sources import SOURCES
from meditune.errors import DataError


def is_restricted(example: Example) -> bool:
    """Whether the example is marked `restricted`, by its reader (MIMIC-III) or in a column of the user's own file."""
    mark = example.meta.get("restricted")
    return bool(mark) and str(mark).strip().lower() not in {"false", "no", "0"}


def refuse_restricted_sources_for_api(names: Iterable[str], model_name: str) -> None:
    """Raise DataError if a source's rows are all restricted; needs no reading, so it can come first."""
    restricted = [source for name in names if (source := SOURCES.get(name)) and source.restricted]
    if restricted:
        raise _forbidden("Rows", {source.name: source.licence for source in restricted}, model_name)


def refuse_restricted_for_api(examples: Iterable[Example], model_name: str) -> None:
    """Raise DataError if any of the examples may not be sent to `model_name`, a model on someone else's machine.

    Call this before the first request. PhysioNet's agreement forbids sharing credentialed data with third parties,
    online services included: https://physionet.org/news/post/gpt-responsible-use.
    """
    number = 0
    licences: dict[str, str] = {}
    for example in examples:
        if is_restricted(example):
            number += 1
            licences.setdefault(example.source, str(example.meta.get("licence", "its licence")))
    if number:
        raise _forbidden(f"{number:,} examples", licences, model_name)


def _forbidden(what: str, licences: dict[str, str], model_name: str) -> DataError:
    named = "; ".join(f"{source} ({licence})" for source, licence in sorted(licences.items()))
    return DataError(
        f"{what} from {named} may not be sent to {model_name}: their licence forbids passing rows to a third party. "
        "Use a model that runs on this machine, or leave that source out of the recipe."
    )
