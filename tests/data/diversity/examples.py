"""Examples that differ in what a test is about."""

from typing import Any

from meditune.data.example import Example
from meditune.data.splits import Splits


def example(number: int, **changes: Any) -> Example:
    fields: dict[str, Any] = {
        "id": f"own:{number}",
        "source": "own",
        "question": f"Does treatment {number} help?",
        "answer": f"It helps {number} of them.",
        "group": str(number),
    }
    return Example(**fields | changes)


def splits(train: list[Example], test: list[Example] | None = None) -> Splits:
    return Splits(train, [], test if test is not None else [example(10_000)], "own-group")
