"""What raters said, under their names, on its way from or to a file."""

from __future__ import annotations

from dataclasses import dataclass

from meditune.review.store import Note, Rating


@dataclass(frozen=True)
class Said:
    """Ratings and notes whose `rater` is a name."""

    ratings: list[Rating]
    notes: list[Note]
