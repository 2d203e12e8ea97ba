"""The training file of the fine-tuning API: chats as JSON Lines, held to the API's rules before anything is sent.

https://developers.openai.com/api/docs/guides/supervised-fine-tuning
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meditune.data.example import Example
from meditune.errors import DataError
from meditune.files import numbered_jsonl
from meditune.models.api.model import ApiModel
from meditune.models.api.tokens import of_chat
from meditune.prompts import chat_messages
from meditune.recipe import Recipe
from meditune.train.tasks import able

LEAST_ROWS = 10
LARGEST_BYTES = 512 * 10**6
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class RowFacts:
    """What became of the examples. Tokens are estimates."""

    rows: int
    """One for each task of an example."""
    tokens: int
    """Of one epoch; the API bills them times the epochs."""
    longest: int
    dropped: int
    """Rows left out because they are longer than the model takes."""


def chats(examples: Sequence[Example], recipe: Recipe, model: ApiModel) -> tuple[list[dict[str, Any]], RowFacts]:
    """A chat for each task that an example teaches, in the examples' order.

    Raises DataError where fewer are left than the API takes.
    """
    rows: list[dict[str, Any]] = []
    lengths: list[int] = []
    dropped = 0
    for example in examples:
        for task in able(example, recipe.train.tasks):
            target = str(example.decision) if task == "decision" else example.answer.strip()
            messages = chat_messages(recipe.prompt, example, task, model.system, target)
            length = of_chat(messages)
            if length > model.spec.context_tokens:
                dropped += 1
                continue
            rows.append({"messages": messages})
            lengths.append(length)
    if len(rows) < LEAST_ROWS:
        left_out = f" ({dropped} are longer than model.api.context_tokens={model.spec.context_tokens})"
        raise DataError(
            f"The fine-tuning API takes {LEAST_ROWS} rows or more, and the training examples make {len(rows)}"
            f"{left_out if dropped else ''}. Give it more data."
        )
    return rows, RowFacts(len(rows), sum(lengths), max(lengths), dropped)


def check(path: Path) -> None:
    """Raise DataError, with its line, at the first row of a training file that the API would refuse."""
    count = 0
    for number, row in numbered_jsonl(path):
        problem = _problem(row)
        if problem:
            raise DataError(f"{path}, line {number}: {problem}. Remove the file's folder and run the command again.")
        count += 1
    if count < LEAST_ROWS:
        raise DataError(f"{path}: {count} rows; the fine-tuning API takes {LEAST_ROWS} or more.")
    size = path.stat().st_size
    if size > LARGEST_BYTES:
        raise DataError(
            f"{path}: {size / 1e6:,.0f} MB; the API takes files of up to {LARGEST_BYTES / 1e6:.0f} MB. Take fewer "
            "examples with data.sources.N.limit."
        )


def _problem(row: dict[str, Any]) -> str:
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        return "no messages"
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            return f"a message's role is none of {', '.join(ROLES)}"
        if not isinstance(message.get("content"), str) or not message["content"].strip():
            return f"the {message['role']} says nothing"
    if messages[-1]["role"] != "assistant":
        return "the last message isn't the assistant's, so there is nothing to learn"
    if all(message["role"] != "user" for message in messages):
        return "no message is the user's"
    return ""
