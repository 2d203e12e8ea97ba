"""Which fast layers a training takes, each with the plain one to fall back on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from meditune.errors import ModelError
from meditune.models import compiled
from meditune.models.lora_layer import one_operation
from meditune.recipe import VIRTUAL, Recipe, TrainSpec


@contextmanager
def fast_layers(model: Any, spec: TrainSpec, tokens: int, try_a_piece: Callable[[], object]) -> Iterator[bool]:
    """Inside the block the model's layers are the fastest that work here; gives whether they are compiled.

    `tokens` are those that the whole training reads. `try_a_piece` computes the gradients of one piece and forgets
    them; compiling is tried on it. Raises ModelError where `train.compile` is on and can't be had.
    """
    with ExitStack() as fast:
        fast.enter_context(one_operation(model))
        yield spec.compile != "off" and _compiled(model, spec, tokens, try_a_piece, fast)


def check_compile(recipe: Recipe) -> None:
    """Raise ModelError where `train.compile` is on and can be seen not to work before the model is loaded."""
    if recipe.train.compile != "on":
        return
    from meditune.models.load import device

    quantized, virtual = recipe.model.quantize != "none", recipe.model.strategy in VIRTUAL
    if reason := compiled.why_never(quantized, virtual, device() == "cpu"):
        raise _refused(reason)


def _refused(reason: str) -> ModelError:
    return ModelError(f"train.compile on: the layers can't be compiled. {reason} Set train.compile to off.")


def _compiled(model: Any, spec: TrainSpec, tokens: int, try_a_piece: Callable[[], object], fast: ExitStack) -> bool:
    # DPO compares the model with itself before training, which the plain layers have measured.
    if spec.compile == "auto" and (spec.objective != "sft" or not compiled.pays(model, tokens)):
        return False
    from torch._dynamo.exc import TorchDynamoException

    reason = compiled.why_not(model)
    if reason is None:
        print("Compiling the layers (train.compile); up to a minute the first time.", file=sys.stderr)
        with ExitStack() as tried:
            tried.enter_context(compiled.compiled(model))
            try:
                try_a_piece()
            except TorchDynamoException as error:
                reason = compiled.failure(error)
            else:
                fast.push(tried.pop_all())
                return True
    if spec.compile == "on":
        raise _refused(reason)
    print(f"The layers aren't compiled, which is slower. {reason}", file=sys.stderr)
    return False
