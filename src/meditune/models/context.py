"""How many tokens a model reads, and recipes that ask for more."""

from __future__ import annotations

from typing import Any

from meditune.errors import RecipeError
from meditune.recipe import VIRTUAL, PromptFormat, Recipe


def positions(config: Any) -> int | None:
    """How many tokens a model of this configuration reads at most; None where it doesn't say."""
    text = config.get_text_config()
    said = (getattr(text, name, None) for name in ("n_positions", "max_position_embeddings", "n_ctx"))
    return next((most for most in said if isinstance(most, int)), None)


def refuse_unreadable(name: str, config: Any, form: PromptFormat, recipe: Recipe, virtual: int | None = None) -> None:
    """Raise RecipeError, with the key to lower, where rows of `form` or answers are longer than the model `name` reads.

    `virtual` tokens stand before each row, by default those that the recipe trains. Prompts are taken to leave the
    room that they keep free for an answer.
    """
    most = positions(config)
    if most is None:
        return
    if virtual is None:
        virtual = recipe.model.virtual_tokens if recipe.model.strategy in VIRTUAL else 0
    room = most - virtual
    reads = f"{name} reads {most:,} tokens" + (f", of which {virtual} are virtual ones" if virtual else "")
    if form.max_tokens > room:
        raise RecipeError(
            f"{reads}, and prompt.max_tokens is {form.max_tokens:,}. Lower prompt.max_tokens to at most {room}."
        )
    prompt, more = form.max_tokens - form.answer_room, recipe.evaluate.max_new_tokens
    if recipe.evaluate.protocol == "meditune" and prompt + more > room:
        raise RecipeError(
            f"{reads}, and a prompt may have {prompt:,} and an answer evaluate.max_new_tokens={more:,}. Lower "
            f"evaluate.max_new_tokens to at most {room - prompt}, or prompt.max_tokens."
        )
