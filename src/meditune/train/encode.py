"""From examples to training rows, with a count of everything that was shortened or left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from meditune.data.example import Example
from meditune.errors import DataError
from meditune.models.rows import PROMPT, Row, rows_of, with_prompt
from meditune.prompts import Encoded, Encoder, QuestionTooLongError
from meditune.recipe import Task
from meditune.train.tasks import able, named


@dataclass(frozen=True)
class TokenFacts:
    """What fitting the examples into the token budget did."""

    rows: int
    tokens: int
    supervised_tokens: int
    longest: int
    shortened: int
    """Examples whose context lost sentences."""
    cut: int
    """Answers that end early; their end token isn't trained."""
    dropped: int
    """Examples left out because their question alone is too long, or they teach none of the tasks."""


def encode(
    examples: Sequence[Example], encoder: Encoder, tasks: Sequence[Task], prompts: bool = False
) -> tuple[list[Row], TokenFacts]:
    """Rows in the order of `examples`, one for each that teaches at least one task; `prompts`: they are learnt, too.

    Raises DataError where nothing is left to train on.
    """
    encoded: list[Encoded] = []
    dropped = 0
    for example in examples:
        try:
            mine = [encoder.supervised(example, task) for task in able(example, tasks)]
        except QuestionTooLongError:
            mine = []
        dropped += not mine
        encoded += mine
    rows = [with_prompt(row) if prompts else row for row in rows_of(encoded)]
    if not rows:
        raise DataError(
            f"None of the {len(examples)} training examples has {named(tasks)} to learn from that fits into "
            f"prompt.max_tokens={encoder.format.max_tokens}."
        )
    return rows, token_facts(rows, dropped)


def token_facts(rows: Sequence[Row], dropped: int) -> TokenFacts:
    """What fitting `rows` did; `dropped` more were left out."""
    return TokenFacts(
        rows=len(rows),
        tokens=sum(len(row) for row in rows),
        supervised_tokens=sum(len(row.targets) for row in rows),
        longest=max(len(row) for row in rows),
        shortened=sum(any(item.dropped_sentences for item in row.encoded) for row in rows),
        cut=sum(item.answer_cut for row in rows for item in row.encoded),
        dropped=dropped,
    )


def lengths(rows: Sequence[Row]) -> dict[str, list[int]]:
    """Tokens of each row's longest prompt and of all that follow it, for the report's histograms."""
    return {
        "prompt": [max(len(item.prompt) for item in row.encoded) for row in rows],
        "target": [len(row.targets) - row.of.count(PROMPT) for row in rows],
    }


def marked(row: Row, tokenizer: Any) -> str:
    """The row's texts with what is trained between guillemets, for people to check before the first step."""
    parts = []
    for item in row.encoded:
        prompt = tokenizer.decode(item.prompt)
        if PROMPT in row.of:
            learnt, cue = tokenizer.decode(row.tokens[: row.branch.count(0)]), item.prompt[row.branch.count(0) :]
            prompt = f"«{learnt}»{tokenizer.decode(cue)}"
        parts.append(f"{prompt}«{tokenizer.decode(item.target)}»")
    return "\n---\n".join(parts)


def check_masks(rows: Sequence[Row]) -> None:
    """Raise DataError where a row has nothing to train on or trains on nothing but its end token."""
    for row in rows:
        for number, item in enumerate(row.encoded):
            if len(item.target) < 2 or number not in row.of:
                raise DataError(
                    f"{item.id}: no token of its {item.task} would be trained. Check the example and prompt.max_tokens."
                )
