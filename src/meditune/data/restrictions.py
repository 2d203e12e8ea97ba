"""Data whose licence forbids sending it to others."""

from __future__ import annotations

from collections.abc import Iterable

from meditune.data.example import Example
from meditune.data.sources import SOURCES
from meditune.errors import DataError
from meditune.recipe import SourceSpec

RESTRICTED = "restricted"
"""Key of an example's meta, and column of a user's table, that marks it"""


def is_restricted(example: Example) -> bool:
    """Whether the example is restricted: by its mark (of the reader, the recipe, or a column of the user's own file),

    or because it comes from a restricted source, also by way of a file that Meditune wrote before.
    """
    if is_marked(example.meta.get(RESTRICTED)):
        return True
    sources = (SOURCES.get(str(name)) for name in (example.source, example.meta.get("source")))
    return any(source.restricted for source in sources if source)


def is_marked(mark: object) -> bool:
    """Whether the cell of that column marks its row."""
    return bool(mark) and str(mark).strip().lower() not in {"false", "no", "0"}


def refuse_restricted_sources_for_api(specs: Iterable[SourceSpec], model_name: str) -> None:
    """Raise DataError if a source's rows are all restricted, by what it is or as the recipe says.

    It needs no reading, so it can come first.
    """
    restricted: dict[str, str] = {}
    for spec in specs:
        source = SOURCES.get(spec.name)
        if spec.restricted or (source and source.restricted):
            restricted[spec.name] = spec.licence or (source.licence if source else "restricted: true in the recipe")
    if restricted:
        raise _forbidden("Rows", restricted, model_name)


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
