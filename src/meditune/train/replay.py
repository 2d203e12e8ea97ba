"""Replay: other text trained on in every step beside the examples, against catastrophic forgetting."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from meditune.models.rows import Row
from meditune.recipe import ReplaySpec
from meditune.train.mixing import endless
from meditune.train.weights import TokenWeights


@dataclass(frozen=True)
class Replay:
    """Rows to rehearse, and which of them each step takes."""

    rows: Sequence[Row]
    steps: list[list[int]]
    """Indices of `rows` for every optimizer step"""
    weights: TokenWeights
    """What the examples' tokens count"""
    spec: ReplaySpec

    def step(self, number: int) -> list[Row]:
        """The rows that optimizer step `number` (from 0) rehearses."""
        return [self.rows[index] for index in self.steps[number]]

    def weigh(self, row: Row) -> list[float]:
        """One weight for each target of a replay row."""
        return [self.spec.weight * value for value in self.weights.of(row)]

    def tokens(self, done: int = 0) -> int:
        """Tokens read for replay after the first `done` steps."""
        return sum(len(self.rows[index]) for step in self.steps[done:] for index in step)

    def facts(self, examples: float) -> dict[str, Any]:
        """What it amounts to in the whole training, beside `examples`, the sum of the examples' token weights."""
        rehearsed = sum(sum(self.weigh(self.rows[index])) for step in self.steps for index in step)
        return {
            "source": self.spec.source,
            "rows": len(self.rows),
            "visits": sum(map(len, self.steps)),
            "tokens": self.tokens(),
            "loss_share": round(rehearsed / (rehearsed + examples), 4),
        }

    def said(self, examples: float) -> str:
        """The facts in words."""
        facts = self.facts(examples)
        visits, rows = facts["visits"], facts["rows"]
        return (
            f"{visits:,} rows in all, {self.spec.share:.0%} of what is trained on, from {rows:,} of source "
            f"{self.spec.source} ({facts['tokens']:,} tokens); they are {facts['loss_share']:.0%} of the loss."
        )


def plan_replay(
    rows: Sequence[Row], steps: Sequence[Sequence[int]], weights: TokenWeights, spec: ReplaySpec, seed: int
) -> Replay:
    """Spread replay over the steps so that after each the share of replay rows is `spec.share`, rounded to whole rows.

    Of `rows`, the first `spec.rows` are rehearsed, in a seeded order, all of them once before any comes again.
    """
    chosen = rows[: spec.rows]
    stream = endless(len(chosen), f"{seed}/replay")
    taken = itertools.accumulate((len(step) for step in steps), initial=0)
    due = [round(count * spec.share / (1 - spec.share)) for count in taken]
    counts = [after - before for before, after in itertools.pairwise(due)]
    return Replay(chosen, [list(itertools.islice(stream, count)) for count in counts], weights, spec)
