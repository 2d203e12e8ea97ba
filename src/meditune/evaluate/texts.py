"""Running texts whose perplexity shows what a model forgets.

A text of kind K is measured on its first `evaluate.K_tokens` tokens and gives the metric `K_perplexity`.
"""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from meditune.data.locate import locate
from meditune.errors import DataError
from meditune.evaluate.likelihood import general_rows
from meditune.evaluate.predictions import TextKind
from meditune.evaluate.technical import language_reference
from meditune.models.load import LoadedModel
from meditune.models.rows import Row
from meditune.recipe import EvaluateSpec

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
        path = locate("wikitext-2", download=False)
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


def asked_for(spec: EvaluateSpec) -> dict[TextKind, RunningText]:
    """The texts that the recipe asks for and that can be had."""
    found = {kind: find() for kind, find in TEXTS.items() if tokens_of(spec, kind)}
    return {kind: text for kind, text in found.items() if text is not None and text.text}
