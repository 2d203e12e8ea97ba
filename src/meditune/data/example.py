"""The one record that every source is read into, and that every later stage works on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from meditune.errors import DataError
from meditune.files import numbered_jsonl, write_jsonl

Decision = Literal["yes", "no", "maybe"]
DECISIONS: tuple[Decision, ...] = get_args(Decision)
STYLE = "meditune_style"
"""Key of an example's meta, which no column of a user's has by chance"""


class Passage(BaseModel):
    """A piece of source text that an answer may rest on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    label: str = ""
    """The section it came from, as its source names it ("RESULTS"), or empty."""


class Example(BaseModel):
    """One question with what is known about it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1)
    """Unique over all sources: `source:publisher's id`."""
    source: str = Field(min_length=1)
    question: str = Field(min_length=1)
    context: tuple[Passage, ...] = ()
    answer: str = ""
    """The explanation in free text; empty where only the decision is known."""
    decision: Decision | None = None
    group: str = Field(min_length=1)
    """What must not straddle a split: a PubMed id, a MedQuAD focus, a MIMIC SUBJECT_ID."""
    meta: dict[str, Any] = Field(default_factory=dict)
    """URL, licence, question type, focus, year, further reference answers (`references`) and the like."""

    @property
    def style(self) -> str | None:
        """`plain` or `expert`, the style in which the answer is written or asked for; None where its source has one."""
        found: str | None = self.meta.get(STYLE)
        return found

    def references(self) -> list[str]:
        """Every reference answer, the first one first, each once."""
        others = [each if isinstance(each, str) else each["answer"] for each in self.meta.get("references") or []]
        return list(dict.fromkeys(text for text in (self.answer, *others) if text))


def write_examples(path: Path, examples: Iterable[Example]) -> int:
    """Store examples as JSON Lines; returns how many."""
    return write_jsonl(path, (example.model_dump(mode="json") for example in examples))


def read_examples(path: Path) -> list[Example]:
    """Examples stored by `write_examples`. Raises DataError with the line of one that isn't an Example."""
    examples = []
    for number, row in numbered_jsonl(path):
        try:
            examples.append(Example.model_validate(row))
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not an Example record: {error}") from error
    return examples
