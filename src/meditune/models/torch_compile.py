"""The model's layers as fused code, made by torch.compile for this machine.

Between a layer's matrix products lie some fifty small operations (norms, rotations, activations, sums), each a pass
over memory. Fused into a few they take a third of the time and keep less for the way back. Making the code takes a C++
compiler and half a minute, less where the cache has it, so it pays for long trainings only; everything else, and all
that runs without gradients, takes the plain layers. A test holds the two equal.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from meditune.files import cache_folder
from meditune.models.hidden_state_cache import blocks_of, replayed

PAYS_FROM = 5e13
"""Operations of a training from which compiling takes a small part of it: some minutes on two cores."""
VARIANTS = 64
"""Of one layer's code: for a first layer, frozen ones, windows, batches of one row ... PyTorch gives up after 8."""


def is_worthwhile(model: Any, tokens: int) -> bool:
    """Whether a training that reads so many tokens is long enough to be compiled for, and on a CPU.

    A model with dropout isn't compiled: compiled code draws random numbers one at a time on a CPU. Only what doesn't
    change from one call to the next counts, so that a training goes on as it began.
    """
    trained = [block for block in blocks_of(model) if any(each.requires_grad for each in block.parameters())]
    inside = (module for block in trained for module in block.modules())
    if any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in inside):
        return False
    weights = sum(int(parameter.numel()) for block in trained for parameter in block.parameters())
    return bool(next(model.parameters()).device.type == "cpu") and 4.0 * weights * tokens >= PAYS_FROM


def why_not(model: Any) -> str | None:
    """What keeps this model's layers from being compiled here, as a sentence; None where nothing does."""
    from meditune.models.forward import virtual_tokens
    from meditune.models.fsdp import is_sharded
    from meditune.models.quantization import is_quantized

    if is_sharded(model):
        return "The weights are spread over processes (train.parallel fsdp)."
    on_cpu = next(model.parameters()).device.type == "cpu"
    return why_unsupported(is_quantized(model), virtual_tokens(model) > 0, on_cpu)


def why_unsupported(quantized: bool, virtual: bool, on_cpu: bool) -> str | None:
    """As `why_not`, as far as that can be said before a model is loaded."""
    if quantized:
        return "The base is quantized."
    if virtual:
        return "Virtual tokens go around the layers' own call."
    if on_cpu and compiler() is None:
        return f"There is no C++ compiler {_compiler_name()} here (install g++, or name one in CXX)."
    return None


def compiler() -> str | None:
    """The C++ compiler that torch.compile will call; None where it isn't there."""
    return shutil.which(_compiler_name())


def _compiler_name() -> str:
    return os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")


@contextmanager
def compiled(model: Any) -> Iterator[None]:
    """Inside the block the model's layers run as fused code wherever gradients are computed."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder("compiled")))
    with ExitStack() as inside:
        limits = {"recompile_limit": VARIANTS, "accumulated_recompile_limit": 4 * VARIANTS}
        inside.enter_context(torch._dynamo.config.patch(limits))
        for block in blocks_of(model):
            fused = torch.compile(block.forward, dynamic=True)
            inside.enter_context(replayed(block, _where_gradients(fused, block.forward)))
        yield


def _where_gradients(fused: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """The compiled layer where gradients are computed, until compiling it for another kind of input fails."""
    from torch._dynamo.exc import TorchDynamoException

    failed = False

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal failed
        if failed or not torch.is_grad_enabled():
            return plain(*args, **kwargs)
        try:
            return fused(*args, **kwargs)
        except TorchDynamoException as error:
            failed = True
            print(f"A layer goes on uncompiled, which is slower: {failure(error)}", file=sys.stderr)
            return plain(*args, **kwargs)

    return forward


def failure(error: Exception) -> str:
    """The first line of what torch.compile says, as a sentence."""
    return f"torch.compile failed: {(str(error).strip().splitlines() or [type(error).__name__])[0].rstrip('.')}."
