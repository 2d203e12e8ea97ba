"""Rows for the tests of quality control."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from meditune.data.example import Example
from meditune.data.readers import medquad
from meditune.data.readers.tables import Rejects

ANSWER = (
    "Asthma is treated with inhaled medicine. A reliever opens the airways within minutes when breathing gets hard. "
    "A controller is taken every day and keeps the swelling down. Most people need both, and a plan for attacks. "
    "The plan says which medicine to take, how often, and when to call for help."
)


@cache
def medquad_rows(real_data: Path) -> list[Example]:
    """All answered pairs, read once."""
    return list(medquad.read(real_data / "medquad", Rejects()))


def row(number: int, **changes: Any) -> Example:
    """One good row of the user's own."""
    fields: dict[str, Any] = {
        "id": f"own:{number}",
        "source": "own",
        "question": "How is asthma treated?",
        "answer": ANSWER,
        "group": f"group-{number}",
    }
    return Example(**fields | changes)
