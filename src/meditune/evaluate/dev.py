"""Figures on the dev split while a model is trained, for `train.dev`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from meditune.data.example import Example
from meditune.evaluate.metrics import summarise
from meditune.evaluate.stage import Scoring
from meditune.models.load import LoadedModel
from meditune.recipe import Recipe


def dev_measure(
    loaded: LoadedModel, examples: Sequence[Example], recipe: Recipe
) -> Callable[[LoadedModel], float] | None:
    """What gives the metric of `train.dev` for a model, or None where training measures it itself, or nothing.

    `loaded` lends its tokenizer. Raises DataError where a dev question is too long for the prompt.
    """
    dev = recipe.train.dev
    if not dev.is_on or dev.metric == "loss":
        return None
    decided = [example for example in examples if example.decision and dev.metric != "perplexity"]
    answered = [example for example in examples if example.answer.strip() and dev.metric == "perplexity"]
    scoring = Scoring(loaded.encoder(recipe.prompt), decided, answered)

    def measure(trained: LoadedModel) -> float:
        predictions = scoring.predictions(trained, recipe.evaluate.batch_tokens, f"Measuring {dev.metric} on dev")
        return summarise(predictions)[dev.metric]

    return measure
