"""Pair, the one record that preference tuning works on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from meditune.data.example import STYLE, Example, Passage
from meditune.data.restrictions import RESTRICTED
from meditune.errors import DataError
from meditune.files import numbered_jsonl, write_jsonl
from meditune.recipe import Style

OWN = "own"
"""The kind of a pair that was read as such from a user's file."""
RATED = "rated"
"""The kind of a pair of rated answers."""
SAMPLED = "sampled"
"""The kind of a pair of answers that the model itself wrote."""


class Pair(BaseModel):
    """A question with an answer to prefer and one to avoid."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1)
    """Unique in a run; of an automatic pair, the example's id and the kind."""
    question: str = Field(min_length=1)
    context: tuple[Passage, ...] = ()
    chosen: str = Field(min_length=1)
    rejected: str = Field(min_length=1)
    group: str = Field(min_length=1)
    """What must not straddle training and measuring."""
    kind: str
    """How the pair came about: `own`, `rated`, `sampled`, or the kind of corruption."""

    style: Style | None = None
    """Of both answers, where the question's source has two"""
    source: str = ""
    """Where the question comes from; empty where only its file is known"""
    restricted: bool = False
    """Whether its licence forbids passing it on"""

    def example(self) -> Example:
        """The question with its preferred answer."""
        mark = {RESTRICTED: True} if self.restricted else {}
        return Example(
            id=self.id,
            source=self.source or OWN,
            question=self.question,
            context=self.context,
            answer=self.chosen,
            group=self.group,
            meta=mark | ({STYLE: self.style} if self.style else {}),
        )


def write_pairs(path: Path, pairs: Iterable[Pair]) -> int:
    """Store pairs as JSON Lines; returns how many."""
    return write_jsonl(path, (pair.model_dump(mode="json") for pair in pairs))


def read_pairs(path: Path) -> list[Pair]:
    """Pairs stored by `write_pairs`. Raises DataError with the line of one that isn't a Pair."""
    pairs = []
    for number, row in numbered_jsonl(path):
        try:
            pairs.append(Pair.model_validate(row))
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not a Pair record: {error}") from error
    return pairs
