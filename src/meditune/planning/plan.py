"""What each strategy would take by a recipe, what fits, and what to change where the recipe itself doesn't."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from meditune.models.context import refuse_unreadable
from meditune.models.load import in_range
from meditune.models.strategies import parameter_counts
from meditune.planning.memory import Memory, peak_of
from meditune.planning.rehearsal import rehearse
from meditune.planning.shape import config_of, on_meta
from meditune.planning.target import UTILIZATION, Target, target_of
from meditune.progress import Progress
from meditune.recipe import VIRTUAL, Quantize, Recipe, Strategy

TIGHT = 0.9
"""A prediction above this share of the memory may not fit, for it can be some per cent off."""
Verdict = Literal["fits", "tight", "no"]


@dataclass(frozen=True)
class Estimate:
    """One way of training, as predicted."""

    strategy: Strategy
    quantize: Quantize
    trained: int
    parameters: int
    memory: Memory
    tokens_per_s: float
    """On a quantized base at most so many: unpacking its weights isn't counted"""
    verdict: Verdict

    def seconds(self, tokens: int) -> float:
        """How long training on so many tokens takes."""
        return tokens / self.tokens_per_s


@dataclass(frozen=True)
class Planned:
    """What `meditune plan` shows."""

    target: Target
    own: Estimate
    """The recipe as it is"""
    others: list[Estimate]
    """The other strategies, the recipe's other settings kept where they have a meaning"""
    advice: list[str]
    """Settings with which the recipe fits, the least intrusive first; one line for each way"""
    example_tokens: int
    """Tokens of an example, at most"""


def plan(recipe: Recipe, gpu: str | None = None) -> Planned:
    """Predict the recipe's training, and that of the other strategies, on the named GPU or on this machine.

    Needs the model's configuration only, and of the catalogue's models not even that. Raises MedituneError where the
    GPU isn't known or the model doesn't read so long rows, ModelError where the model isn't known.
    """
    target, config = target_of(recipe.model, gpu), config_of(recipe.model)
    refuse_unreadable(recipe.model.base, config, recipe.prompt, recipe)
    ways = list(_other_ways(recipe))
    with Progress("Predicting", len(ways) + 1, "ways") as progress:
        own = estimate(recipe, config, target)
        progress.advance(1)
        others = []
        for way in ways:
            others.append(estimate(way, config, target))
            progress.advance(1)
    advice = [] if own.verdict == "fits" else _advice(recipe, config, target)
    return Planned(target, own, others, advice, recipe.prompt.max_tokens)


def estimate(recipe: Recipe, config: Any, target: Target) -> Estimate:
    """Predict one way of training."""
    attention = "eager" if recipe.model.attention == "eager" else target.attention
    dtype = in_range(target.dtype, config) if recipe.model.dtype == "auto" else target.dtype
    model = on_meta(config, recipe.model, dtype, attention)
    piece = rehearse(model, recipe)
    memory = peak_of(model, piece, recipe, target.device == "cuda")
    speed = target.flops * UTILIZATION[target.device] / (piece.flops / piece.tokens)
    share = memory.total / (target.memory_gb * 1e9)
    verdict: Verdict = "fits" if share <= TIGHT else "tight" if share <= 1 else "no"
    return Estimate(recipe.model.strategy, recipe.model.quantize, *parameter_counts(model), memory, speed, verdict)


def _other_ways(recipe: Recipe) -> Iterator[Recipe]:
    quantized: list[tuple[Strategy, Quantize]] = [("lora", "nf4"), ("lora", "int8")]
    ways: list[tuple[Strategy, Quantize]] = [(strategy, "none") for strategy in get_args(Strategy)]
    for strategy, quantize in [*ways, *quantized]:
        if (strategy, quantize) != (recipe.model.strategy, recipe.model.quantize):
            yield _changed(recipe, {"model.strategy": strategy, "model.quantize": quantize})


def _advice(recipe: Recipe, config: Any, target: Target) -> list[str]:
    """Single changes with which the recipe fits; where there are none, all of them together, if that does."""
    found, together = [], recipe
    changes = list(_changes(recipe, config.get_text_config().num_hidden_layers))
    for change in changes:
        if estimate(_changed(recipe, change), config, target).verdict == "fits":
            found.append(_said(change))
    if found:
        return found
    gathered: dict[str, Any] = {}
    for change in changes:
        gathered |= change
        together = _changed(recipe, gathered)
        if estimate(together, config, target).verdict == "fits":
            return [_said(gathered)]
    return []


def _changes(recipe: Recipe, layers: int) -> Iterator[dict[str, Any]]:
    """What saves memory, from what changes the result least to what changes it most."""
    longest, strategy = recipe.prompt.max_tokens, recipe.model.strategy
    if recipe.train.micro_batch_tokens // longest > 1:
        yield {"train.micro_batch_tokens": max(64, longest)}
    if strategy != "prefix" and not recipe.train.gradient_checkpointing:
        yield {"train.gradient_checkpointing": True}
    if strategy == "full":
        yield {"train.optimizer": "adafactor"}
        yield {"model.strategy": "lora"}
    if recipe.model.quantize != "nf4":
        yield {"model.quantize": "nf4"} | ({"model.strategy": "lora"} if strategy == "full" else {})
    if strategy not in VIRTUAL and recipe.model.top_layers is None and layers > 1:
        yield {"model.top_layers": layers // 2}
    if longest >= 256:
        yield {"prompt.max_tokens": longest // 2, "train.micro_batch_tokens": max(64, longest // 2)}


def _changed(recipe: Recipe, change: dict[str, Any]) -> Recipe:
    """The recipe with these keys changed, and without what then has no meaning."""
    model = {key.partition(".")[2]: value for key, value in change.items() if key.startswith("model.")}
    train = {key.partition(".")[2]: value for key, value in change.items() if key.startswith("train.")}
    prompt = {key.partition(".")[2]: value for key, value in change.items() if key.startswith("prompt.")}
    if model.get("strategy") in VIRTUAL:
        model["top_layers"] = None
    if model.get("strategy") == "prefix":
        train["gradient_checkpointing"] = False
    return recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update=model),
            "train": recipe.train.model_copy(update=train),
            "prompt": recipe.prompt.model_copy(update=prompt),
        }
    )


def _said(change: dict[str, Any]) -> str:
    return " ".join(f"--set {key}={str(value).lower()}" for key, value in change.items())
