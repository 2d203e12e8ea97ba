"""Evaluate on the dev split during training, to stop early (Prechelt 1998) and to keep the best weights."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from meditune.config.recipe import Recipe
from meditune.config.training_options import DevMetric, DevSpec
from meditune.data.example import Example
from meditune.data.splits import Splits
from meditune.errors import DataError
from meditune.models.load import LoadedModel
from meditune.models.shared_prefix_batch import by_length
from meditune.prompts import Encoder
from meditune.train.dataset import TokenWeights, encode, supported_tasks, task_names
from meditune.train.losses import loss_of_rows
from meditune.train.optimizer import MasterOptimizer

Measure = Callable[[LoadedModel], float]  # function that returns the metric of a model with its current weights
HIGHER_IS_BETTER: frozenset[DevMetric] = frozenset({"accuracy", "macro_f1"})


class DevMonitor:
    """A monitor that records dev metrics, keeps the best weights if the recipe asks for that, and says when to stop."""

    def __init__(
        self, spec: DevSpec, measure: Callable[[], float], epoch_steps: int, earlier: Mapping[int, float]
    ) -> None:
        """`epoch_steps` is the number of steps in an epoch; `earlier` maps a resumed run's earlier steps to metrics."""
        self.spec, self.measure = spec, measure
        self.every = spec.every_steps or epoch_steps
        self.best: float | None = None
        self.best_step = 0
        self.since = 0  # number of measurements after the best measurement
        self._best_weights: list[torch.Tensor] = []
        for step, metric in earlier.items():
            self._note(step, metric)

    def is_due(self, step: int, last: int) -> bool:
        """Return whether to measure after this step (1-based); always true for the last one."""
        return step % self.every == 0 or step == last

    def take(self, step: int, optimizer: MasterOptimizer) -> float:
        """Measure after `step`, keep the weights if the metric is the best so far, and return the metric."""
        metric = self.measure()
        if self._note(step, metric) and self.spec.keep_best:
            self._best_weights = [master.detach().clone() for master in optimizer.masters]
        return metric

    @property
    def is_over(self) -> bool:
        """True if the recipe sets `patience`, and this many measurements in a row brought no improvement."""
        return self.spec.patience is not None and self.since >= self.spec.patience

    def finish(self, optimizer: MasterOptimizer) -> None:
        """Set the model to the best weights, if they were kept."""
        if self._best_weights:
            optimizer.set_weights(self._best_weights)

    def state(self) -> dict[str, torch.Tensor]:
        """Return the best weights, for a checkpoint; the metrics are in the checkpoint's log."""
        return {f"best.{index}": weight for index, weight in enumerate(self._best_weights)}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Restore the tensors that `state` returned."""
        count = sum(key.startswith("best.") for key in tensors)
        self._best_weights = [tensors[f"best.{index}"] for index in range(count)]

    def facts(self, examples: int) -> dict[str, Any]:
        """Return the outcome for the run's records; `examples` is the number of dev examples."""
        return {
            "metric": self.spec.metric,
            "examples": examples,
            "best": self.best,
            "best_step": self.best_step,
            "kept": self.spec.keep_best,
            "stopped_early": self.is_over,
        }

    def announced(self, examples: int) -> str:
        """Return a sentence about the measurements; for accuracy and F1, it states about two standard errors."""
        noise = f" (uncertainty about ±{100 / math.sqrt(examples):.0f} points)" * (self.spec.metric in HIGHER_IS_BETTER)
        return f"Measuring {self.spec.metric} on {examples} dev examples every {self.every} steps{noise}."

    def outcome(self) -> Iterator[str]:
        """Yield sentences about the outcome."""
        best = f"{self.spec.metric} {self.best:.4g} after step {self.best_step}"
        if self.is_over:
            yield f"Training stopped early: {self.since} measurements in a row were no better than {best}."
        if self.spec.keep_best:
            yield f"Kept the weights of the best state: {best}."

    def _note(self, step: int, metric: float) -> bool:
        """Record a metric, and return whether it is the best so far."""
        higher = self.spec.metric in HIGHER_IS_BETTER
        better = self.best is None or math.isnan(self.best) or (metric > self.best if higher else metric < self.best)
        if better:
            self.best, self.best_step, self.since = metric, step, 0
        else:
            self.since += 1
        return better


def check_dev(splits: Splits, recipe: Recipe) -> None:
    """Raise DataError if the dev split has no example for `train.dev.metric`."""
    metric = recipe.train.dev.metric
    if recipe.train.dev.is_on and not measured_on(splits.dev, recipe):
        raise DataError(
            f"train.dev.metric {metric} needs {task_names(_tasks(recipe))} on the dev split, but none of its "
            f"{len(splits.dev)} examples has one. Choose another metric, raise data.dev_share, or remove "
            "train.dev.patience and train.dev.keep_best."
        )


def measured_on(examples: Sequence[Example], recipe: Recipe) -> list[Example]:
    """Return those of the dev split's examples to which the recipe's metric applies."""
    return [example for example in examples if supported_tasks(example, _tasks(recipe))]


def _tasks(recipe: Recipe) -> Any:
    metric = recipe.train.dev.metric
    if metric == "loss":
        return recipe.train.tasks
    return ["answer"] if metric == "perplexity" else ["decision"]


def dev_loss(examples: Sequence[Example], encoder: Encoder, recipe: Recipe) -> Measure:
    """Return a function that computes the training loss on `examples`. Raises DataError if no example can be used."""
    examples = measured_on(examples, recipe)
    rows, facts = encode(examples, encoder, recipe.train.tasks, recipe.train.prompt_share > 0, split="dev")
    if facts.dropped:
        print(
            f"{facts.dropped} of {len(examples)} dev examples don't fit into the prompt and are left out.",
            file=sys.stderr,
        )
    weights = TokenWeights(examples, rows, recipe.train, end_id=encoder.tokenizer.eos_token_id)
    total_weight = sum(sum(weights.of(row)) for row in rows)

    @torch.no_grad()
    def measure(loaded: LoadedModel) -> float:
        total = 0.0
        for indices in by_length(rows, recipe.train.batch_tokens):
            piece = [rows[index] for index in indices]
            each = [value / total_weight for row in piece for value in weights.of(row)]
            total += float(loss_of_rows(loaded.model, loaded.frozen, piece, each, loaded.pad_id)[0])
        return total

    return measure
