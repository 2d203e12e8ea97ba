"""Questions of general knowledge with four choices: what a model knew before tuning, and should know afterwards.

They were written for Meditune: everyday things, nature, places, history, numbers and language, nothing about medicine.
Almost any adult answers all of them, so they measure what is lost and not how learned a model is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meditune.evaluate.likelihood import score
from meditune.files import read_jsonl
from meditune.models.load import LoadedModel
from meditune.models.rows import join
from meditune.prompts import Encoder

FILE = Path(__file__).parent / "choices.jsonl"


@dataclass(frozen=True)
class Question:
    """One question, of whose choices one is right."""

    id: str
    subject: str
    question: str
    choices: list[str]
    answer: int
    """Index of the right choice"""


def questions(count: int) -> list[Question]:
    """The first `count` of them, or all where there are fewer; subjects and places of the right choice are mixed."""
    return [Question(**row) for row in read_jsonl(FILE)[:count]]


def measured(
    loaded: LoadedModel, encoder: Encoder, asked: Sequence[Question], batch_tokens: int, label: str
) -> Iterator[dict[str, Any]]:
    """For each question the summed negative log-likelihood in nats (`nll`) and the UTF-8 `bytes` of every choice.

    The prompt is plain, whatever the model's own format: "Question: ...", and "Answer:" in a line of its own.
    """
    encoded = [encoder.continuations(each.id, f"Question: {each.question}\nAnswer:", each.choices) for each in asked]
    scores = score(loaded, [join(choices) for choices in encoded], batch_tokens, label)
    for each, choices in zip(asked, encoded, strict=True):
        yield {
            "id": each.id,
            "subject": each.subject,
            "reference": each.answer,
            "nll": [scores.answers[item.id].nll for item in choices],
            "bytes": [len(choice.encode()) for choice in each.choices],
        }
