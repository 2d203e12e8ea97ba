"""What training examples with found passages are, for the run's records and for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from meditune.data import retrieved
from meditune.models.rows import Row


def retrieved_facts(rows: Sequence[Row], folder: Path) -> dict[str, int]:
    """`examples` that show found passages, `right`: with their own among them, `left_out`: passages without room.

    Empty where the run doesn't train with passages.
    """
    path = folder / retrieved.TRAINING
    if not path.is_file():
        return {}
    found = retrieved.read(path)
    mine = [row for row in rows if row.encoded[0].id in found]
    return {
        "examples": len(mine),
        "right": sum(bool(found[row.encoded[0].id]["right"]) for row in mine),
        "left_out": sum(max(item.left_out for item in row.encoded) for row in mine),
    }


def retrieved_said(facts: dict[str, int]) -> str:
    """The same in a sentence."""
    without = facts["examples"] - facts["right"]
    room = f" {facts['left_out']} passages had no room." if facts["left_out"] else ""
    return f"{facts['examples']} examples show passages that were found; {without} of them without their own.{room}"
