"""What a training reads, and in which order: the examples' rows, how sources are mixed, and replay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from meditune.data.balance import check_weights, heaviest
from meditune.data.retrieved import in_training
from meditune.data.splits import Splits
from meditune.models.load import LoadedModel
from meditune.models.rows import Row
from meditune.recipe import Recipe
from meditune.train.dev import check_dev
from meditune.train.encode import TokenFacts, check_masks, encode, marked
from meditune.train.head_loss import loss_of_rows
from meditune.train.mixing import Mix, mix_of
from meditune.train.mixture import Part, facts, mixture, said
from meditune.train.replay import Replay, plan_replay
from meditune.train.replay_text import check_source, replay_rows
from meditune.train.retrieved import retrieved_facts, retrieved_said
from meditune.train.sft import LossOfRows, Weights, plan_steps
from meditune.train.start import check_plain
from meditune.train.tasks import check_teaches
from meditune.train.weights import TokenWeights


@dataclass(frozen=True)
class Plan:
    """Everything that follows from the recipe, the data and the base model before the first step."""

    rows: list[Row]
    fitted: TokenFacts
    weights: Weights
    mix: Mix | None
    steps: list[list[int]]
    """As `plan_steps` gives them"""
    pool: list[Row]
    """Rows of the recipe's replay source, for replay and for EWC's estimate"""
    replay: Replay | None
    loss_of: LossOfRows = loss_of_rows
    unit: str = "examples"
    """What a row is, for people"""
    shown: str = "One example; what is trained on stands between « »:"
    """Introduces the first row in the pre-flight"""
    further: dict[str, Any] = field(default_factory=dict)
    """More for the run's records"""
    sources: list[str] = field(default_factory=list)
    """Of each row; empty where rows aren't examples"""

    @property
    def epoch_rows(self) -> int:
        """Rows in an epoch."""
        return self.mix.size if self.mix else len(self.rows)

    @property
    def tokens(self) -> int:
        """Tokens read in all steps together."""
        examples = sum(len(self.rows[index]) for step in self.steps for index in step)
        return examples + (self.replay.tokens() if self.replay else 0)

    def facts(self, done: int | None = None) -> dict[str, Any]:
        """For the run's records, of the first `done` steps or all; of mix and replay only what there is."""
        found = asdict(self.fitted) | self.further
        if self.mix:
            found |= {"mix": self.mix.visits, "mix_by": self.mix.by, "curriculum": self.mix.order or "none"}
        if self.replay:
            found["replay"] = self.replay.facts(self._weight)
        return found | ({"mixture": facts(self._mixture(done))} if self.sources else {})

    def lines(self, tokenizer: Any) -> list[str]:
        """How sources are mixed and what is rehearsed, for people to check before the first step."""
        found = [retrieved_said(self.further["retrieved"])] if "retrieved" in self.further else []
        if self.mix:
            by = "" if self.mix.by == "source" else f" by {self.mix.by.replace('_', ' ')}"
            found.append(f"Of an epoch's {self.mix.size} rows{by}: {self.mix.said()}.")
            found += [f"The first epoch comes in order: {self.mix.order}."] if self.mix.order else []
        if self.replay:
            found += [
                f"Replay: {self.replay.said(self._weight)} One row; what is trained on stands between « »:",
                *(f"    {line}" for line in marked(self.replay.rows[0], tokenizer).splitlines()),
            ]
        parts = self._mixture() if self.sources else []
        if len(parts) > 1:
            found += ["What the whole training reads:", *(f"    {line}" for line in said(parts))]
        return found

    def _mixture(self, done: int | None = None) -> list[Part]:
        return mixture(self.rows, self.sources, self.steps[:done], self.replay)

    @property
    def _weight(self) -> float:
        """Sum of the weights of the examples' tokens over all steps."""
        of_row = [sum(self.weights.of(row)) for row in self.rows]
        return sum(of_row[index] for step in self.steps for index in step)


def check(splits: Splits, recipe: Recipe) -> None:
    """Raise DataError for what would stop training later; it needs no model, so it can come first."""
    check_teaches(splits.train, recipe.train.tasks)
    check_plain(splits.train, recipe)
    check_weights(splits.train, recipe.data.balance)
    mix_of([example.source for example in splits.train], recipe.train.mix, recipe.train.epochs)
    check_source(recipe)
    check_dev(splits, recipe)


def visited(rows: Sequence[Row], steps: Sequence[Sequence[int]]) -> list[Row]:
    """The rows that any of the steps reads, in their order."""
    return [rows[index] for index in sorted({index for step in steps for index in step})]


def plan(loaded: LoadedModel, splits: Splits, recipe: Recipe, folder: Path) -> Plan:
    """Plan the training of `loaded`, which must still be the base model; what it writes for replay goes to `folder`."""
    spec = recipe.train
    shown = in_training(splits.train, folder)
    rows, fitted = encode(shown, loaded.encoder(recipe.prompt), spec.tasks, spec.prompt_share > 0)
    pool = replay_rows(loaded, recipe, splits, folder)
    check_masks([*rows, *pool])
    examples = {example.id: example for example in splits.train}
    mine = [examples[row.encoded[0].id] for row in rows]
    sources, balance = [example.source for example in mine], recipe.data.balance
    groups = [heaviest(example, balance) for example in mine] if balance.weights else sources
    mix = mix_of(
        *(sources, spec.mix, spec.epochs, [len(row) for row in rows], [len(row.targets) for row in rows]),
        *(balance.weights, groups, str(balance.by)),
    )
    repeats = mix.repeats() if mix else {}
    often = {row.encoded[0].id: repeats.get(group, 1.0) for row, group in zip(rows, groups, strict=True)}
    weights = TokenWeights(splits.train, rows, spec, often)
    steps = plan_steps(len(rows), spec, recipe.seed, mix)
    replay = plan_replay(pool, steps, weights, spec.replay, recipe.seed) if spec.replay.share else None
    rehearsed = visited(replay.rows, replay.steps) if replay else []
    loaded.frozen.group([*visited(rows, steps), *rehearsed], spec.micro_batch_tokens)
    found = retrieved_facts(rows, folder)
    further = {"retrieved": found} if found else {}
    return Plan(rows, fitted, weights, mix, steps, pool, replay, sources=sources, further=further)
