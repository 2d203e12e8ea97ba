"""Data whose licence forbids sending it to others."""

from __future__ import annotations

from collections.abc import Iterable

from meditune.data.example import Example
from meditune.errors import DataError


def is_restricted(example: Example) -> bool:
    """Whether the example's reader marked it `restricted` (MIMIC-III)."""
    return bool(example.meta.get("restricted"))


def refuse_restricted_for_api(examples: Iterable[Example], model_name: str) -> None:
    """Raise DataError if any of the examples may not be sent to `model_name`, a model on someone else's machine.

    Call this before the first request. PhysioNet's agreement forbids sharing credentialed data with third parties,
    online services included: https://physionet.org/news/post/gpt-responsible-use.
    """
    number = 0
    sources: dict[str, str] = {}
    for example in examples:
        if is_restricted(example):
            number += 1
            sources.setdefault(example.source, str(example.meta.get("licence", "its licence")))
    if number:
        named = "; ".join(f"{source} ({licence})" for source, licence in sorted(sources.items()))
        raise DataError(
            f"{number:,} examples from {named} may not be sent to {model_name}: their licence forbids passing rows to "
            "a third party. Use a model that runs on this machine, or leave that source out of the recipe."
        )
