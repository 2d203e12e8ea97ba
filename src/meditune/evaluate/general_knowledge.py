"""Questions of general knowledge with four choices: what a model knew before tuning, and should know afterwards.

They were written for Meditune: everyday things, nature, places, history, numbers and language, nothing about medicine.
Almost any adult answers all of them, so they measure what is lost and not how learned a model is.

Running texts whose perplexity shows what a model forgets.

A text of kind K is measured on its first `evaluate.K_tokens` tokens and gives the metric `K_perplexity`.

Technical English that every Python carries: the prose of Python's language reference.

`help("assignment")` shows it. It stands under the PSF licence, needs no download, and has nothing to do with medicine.
"""

from __future__ import annotations

import hashlib
import platform
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meditune.config.recipe import EvaluateSpec
from meditune.data.sources import locate_source
from meditune.errors import DataError
from meditune.evaluate.likelihood import general_rows, score
from meditune.evaluate.predictions import TextKind
from meditune.files import read_jsonl
from meditune.models.load import LoadedModel
from meditune.models.shared_prefix_batch import Row, join
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


def answer_choices(
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


WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*")
AROUND = '.,;:!?()"“”*'
BULLET = re.compile(r"^(?:[*+-]|\d+\.|\[\d+\])\s+")
SHORTEST = 8
"""Words of the shortest paragraph that is kept; what has fewer is mostly a heading or a signature."""
ENGLISH = 0.8
"""Share of a paragraph's words that must be plain words; in code and grammar it is lower."""


def language_reference() -> str | None:
    """The reference's paragraphs in the order of its topics, each once; None where this Python came without it.

    The same for the same version of Python.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return None
    blocks = (block for name in sorted(topics) for block in re.split(r"\n\s*\n", topics[name]))
    # Topics contain one another, so most paragraphs come more than once.
    paragraphs = dict.fromkeys(BULLET.sub("", " ".join(block.split())) for block in blocks)
    return "\n\n".join(paragraph for paragraph in paragraphs if is_prose(paragraph))


def is_prose(paragraph: str) -> bool:
    """Whether it is sentences, not code, grammar, a heading or a signature."""
    words = paragraph.split()
    if len(words) < SHORTEST or paragraph[-1] not in ".:;!?)" or "::=" in paragraph or ">>>" in paragraph:
        return False
    return sum(bool(WORD.fullmatch(word.strip(AROUND))) for word in words) >= ENGLISH * len(words)


WINDOW = 512


@dataclass(frozen=True)
class RunningText:
    """A text to measure on."""

    text: str
    title: str
    """For people"""
    edition: dict[str, str] = field(default_factory=dict)
    """Which of several editions it is; empty where there is only one. Kept with what is measured on it."""

    def rows(self, loaded: LoadedModel, tokens: int) -> list[Row]:
        """Windows over its first `tokens` tokens; an edition's windows are named by its hash."""
        name = f"{self.edition['sha256'][:8]}-window" if self.edition else "window"
        return general_rows(loaded, self.text, tokens, WINDOW, name)


def wikitext() -> RunningText | None:
    """WikiText-2's test text where it can be found; else None, after saying so."""
    try:
        path = locate_source("wikitext-2", download=False)
    except DataError as error:
        print(f"Forgetting is not measured: {error}", file=sys.stderr)
        return None
    file = path if path.is_file() else path / "test.txt"
    return RunningText(file.read_text(encoding="utf-8"), "WikiText-2 test.txt") if file.is_file() else None


def technical() -> RunningText | None:
    """Python's language reference, which differs between versions; None, after saying so, where it isn't there."""
    text = language_reference()
    if text is None:
        print(
            "Forgetting of technical English is not measured: this Python came without its language reference (the "
            "module pydoc_data). Take another build of Python, or evaluate.technical_tokens=0.",
            file=sys.stderr,
        )
        return None
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return RunningText(text, "Python's language reference", {"python": platform.python_version(), "sha256": sha256})


TEXTS: dict[TextKind, Callable[[], RunningText | None]] = {"general": wikitext, "technical": technical}


def tokens_of(spec: EvaluateSpec, kind: TextKind) -> int:
    """How many tokens of the text the recipe asks for."""
    count: int = getattr(spec, f"{kind}_tokens")
    return count


def general_texts(spec: EvaluateSpec) -> dict[TextKind, RunningText]:
    """The texts that the recipe asks for and that can be had."""
    found = {kind: find() for kind, find in TEXTS.items() if tokens_of(spec, kind)}
    return {kind: text for kind, text in found.items() if text is not None and text.text}
