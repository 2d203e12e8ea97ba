"""Answers to a question."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from meditune.ask import Answer
from meditune.limits import LIMITS
from meditune.terminal.console import console

if TYPE_CHECKING:
    from meditune.retrieve.cited import CitedAnswer


def print_cited(answer: CitedAnswer, as_json: bool) -> None:
    """An answer with its sources, or the sources alone, and what every medical answer carries."""
    from meditune.retrieve import cited

    if as_json:
        print(json.dumps(cited.as_dict(answer), ensure_ascii=False))
        return
    out = console()
    for line in cited.as_text(answer):
        out.print(line, markup=False)


def print_answer(answer: Answer, has_sources: bool, as_json: bool = False) -> None:
    """The answer, the decision, and what every medical answer carries."""
    if as_json:
        print(json.dumps(asdict(answer) | {"limits": LIMITS}, ensure_ascii=False))
        return
    out = console()
    out.print(answer.text or "(the model wrote nothing)", markup=False)
    shares = ", ".join(f"{label} {share:.0%}" for label, share in answer.probabilities.items())
    decision = answer.decision or "neither yes, no nor maybe"
    out.print(f"\nAs a yes/no question: {decision}{f' ({shares})' if shares else ''}", style="dim")
    if not has_sources:
        out.print("No source was given (--source FILE): this answer rests on the model's memory alone.", style="yellow")
    out.print(LIMITS, style="dim")
