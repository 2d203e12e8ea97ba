"""What the items of an annotation set are, which neither the page nor its server reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from meditune.data.decisions import Verdict
from meditune.review.ratingset import Origin, origin_of


@dataclass(frozen=True)
class Row(Origin):
    """A row of the data, or a known item."""

    source: str = ""
    sha256: str = ""
    """`fingerprint` of the row that is judged"""
    stratum: str = ""
    score: float = 0.0
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Signal -> why the row is suspicious"""
    expected: tuple[Verdict, ...] = ()
    """Of a known item: what counts as right"""

    @property
    def known(self) -> bool:
        """Whether it is there to check the rater, and no row of the data."""
        return bool(self.expected)


def row_of(row: dict[str, Any]) -> Row:
    """Of an item's row in the key."""
    found = origin_of(row)
    return Row(
        found.example,
        found.group,
        found.origins,
        row["source"],
        row["sha256"],
        row["stratum"],
        row["score"],
        row["reasons"],
        tuple(row["expected"]),
    )
