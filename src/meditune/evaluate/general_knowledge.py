"""Data for measuring forgetting: general-knowledge questions, and running texts for perplexity.

The questions have four choices, were written for Meditune, and don't cover medicine. Almost every adult can answer all
of them, so they measure forgetting, not expertise. A running text is general or technical, and
`evaluate.general_tokens` or `evaluate.technical_tokens` sets how many of its first tokens are measured.
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


Question = dict[str, Any]
"""A question: `id`, `subject`, `question`, four `choices`, and `answer`, the index of the correct choice"""


def questions(count: int) -> list[Question]:
    """Return the first `count` questions; the file mixes subjects and the positions of the correct choice."""
    return read_jsonl(FILE)[:count]


def answer_choices(
    loaded: LoadedModel, encoder: Encoder, questions: Sequence[Question], batch_tokens: int | None, label: str
) -> Iterator[dict[str, Any]]:
    """Yield a row for each question: `nll` has each choice's negative log-likelihood in nats, `bytes` its UTF-8 length.

    The prompt is "Question: ..." and, on the next line, "Answer:", whatever the model's own prompt format is.
    """
    encoded = [
        encoder.continuations(each["id"], f"Question: {each['question']}\nAnswer:", each["choices"])
        for each in questions
    ]
    scores = score(loaded, [join(choices) for choices in encoded], batch_tokens, label)
    for each, choices in zip(questions, encoded, strict=True):
        yield {
            "id": each["id"],
            "subject": each["subject"],
            "reference": each["answer"],
            "nll": [scores.answers[item.id].nll for item in choices],
            "bytes": [len(choice.encode()) for choice in each["choices"]],
        }


WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*")
PUNCTUATION = '.,;:!?()"“”*'
BULLET = re.compile(r"^(?:[*+-]|\d+\.|\[\d+\])\s+")
MIN_WORDS = 8
"""Minimum number of words in a paragraph; shorter paragraphs are mostly headings or function signatures"""
ENGLISH = 0.8
"""Minimum share of plain words in a paragraph; the share is lower in code and in grammar rules"""


def language_reference() -> str | None:
    """Return the prose of Python's language reference, each paragraph once; None if this Python doesn't include it.

    The text depends only on the version of Python, has the PSF licence, and is unrelated to medicine.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return None
    blocks = (block for name in sorted(topics) for block in re.split(r"\n\s*\n", topics[name]))
    # Topics contain the text of other topics, so most paragraphs occur more than once.
    paragraphs = dict.fromkeys(BULLET.sub("", " ".join(block.split())) for block in blocks)
    return "\n\n".join(paragraph for paragraph in paragraphs if is_prose(paragraph))


def is_prose(paragraph: str) -> bool:
    """Return True if a paragraph consists of sentences, not of code, grammar, a heading or a signature."""
    words = paragraph.split()
    if len(words) < MIN_WORDS or paragraph[-1] not in ".:;!?)" or "::=" in paragraph or ">>>" in paragraph:
        return False
    return sum(bool(WORD.fullmatch(word.strip(PUNCTUATION))) for word in words) >= ENGLISH * len(words)


WINDOW = 512


@dataclass(frozen=True)
class RunningText:
    """A text for measuring perplexity."""

    text: str
    title: str
    """Title that is shown to users"""
    edition: dict[str, str] = field(default_factory=dict)
    """The edition of the text, which is stored with the results; empty if the text has only one edition"""

    def rows(self, loaded: LoadedModel, tokens: int) -> list[Row]:
        """Return windows over the first `tokens` tokens; the edition's hash, if any, is part of their ids."""
        name = f"{self.edition['sha256'][:8]}-window" if self.edition else "window"
        return general_rows(loaded, self.text, tokens, WINDOW, name)


def wikitext() -> RunningText | None:
    """Return WikiText-2's test text, or None with a message if it is unavailable."""
    try:
        path = locate_source("wikitext-2", download=False)
    except DataError as error:
        print(f"Forgetting is not measured: {error}", file=sys.stderr)
        return None
    file = path if path.is_file() else path / "test.txt"
    return RunningText(file.read_text(encoding="utf-8"), "WikiText-2 test.txt") if file.is_file() else None


def technical() -> RunningText | None:
    """Return Python's language reference, which differs between versions, or None with a message if it is missing."""
    text = language_reference()
    if text is None:
        print(
            "Forgetting of technical English is not measured: this Python has no language reference (the module "
            "pydoc_data). Use another build of Python, or set evaluate.technical_tokens=0.",
            file=sys.stderr,
        )
        return None
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return RunningText(text, "Python's language reference", {"python": platform.python_version(), "sha256": sha256})


def tokens_of(spec: EvaluateSpec, kind: TextKind) -> int:
    """Return how many tokens of this kind of text the recipe measures."""
    count: int = getattr(spec, f"{kind}_tokens")
    return count


def general_texts(spec: EvaluateSpec) -> dict[TextKind, RunningText]:
    """Return kind -> text, for the texts that the recipe measures and that are available."""
    finders: dict[TextKind, Callable[[], RunningText | None]] = {"general": wikitext, "technical": technical}
    found = {kind: find() for kind, find in finders.items() if tokens_of(spec, kind)}
    return {kind: text for kind, text in found.items() if text is not None and text.text}
