"""Compile the model's layers into fused code with torch.compile, for long training runs.

Each small operation between a layer's matrix products is a separate pass over memory. When these operations are fused,
they take a third of the time and save less for the backward pass. Passes without gradients use the uncompiled layers.
Compiled and uncompiled layers give equal results (checked by a test).
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
from meditune.models.forward import virtual_tokens
from meditune.models.fsdp import is_sharded
from meditune.models.hidden_state_cache import blocks_of, replayed
from meditune.models.quantization import is_quantized

MIN_OPERATIONS = 5e13
"""Minimum number of operations in a training run for compiling to be worthwhile (a few minutes on two cores)"""
VARIANTS = 64
"""Maximum number of compiled variants of a layer (first layer, frozen layers, windows, batches of one row, ...);
PyTorch allows 8 by default"""


def is_worthwhile(model: Any, tokens: int) -> bool:
    """Return whether a training run that reads `tokens` tokens is on a CPU and long enough to be worth compiling.

    Compiling isn't worthwhile if trained layers have dropout: on a CPU, compiled code draws random numbers one by one.
    """
    trained = [block for block in blocks_of(model) if any(each.requires_grad for each in block.parameters())]
    inside = (module for block in trained for module in block.modules())
    if any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in inside):
        return False
    weights = sum(int(parameter.numel()) for block in trained for parameter in block.parameters())
    return bool(next(model.parameters()).device.type == "cpu") and 4.0 * weights * tokens >= MIN_OPERATIONS


def unsupported_reason(model: Any) -> str | None:
    """Return why this model's layers can't be compiled here, as a sentence; None if they can."""
    if is_sharded(model):
        return "The weights are sharded over processes (train.parallel fsdp)."
    on_cpu = next(model.parameters()).device.type == "cpu"
    return why_unsupported(is_quantized(model), virtual_tokens(model) > 0, on_cpu)


def why_unsupported(quantized: bool, virtual: bool, on_cpu: bool) -> str | None:
    """Return a reason like `unsupported_reason`, or None, from facts that are known before a model is loaded."""
    if quantized:
        return "The base is quantized."
    if virtual:
        return "Virtual tokens bypass the layers' own forward call."
    if on_cpu and compiler() is None:
        return f"The C++ compiler {_compiler_name()} isn't installed (install g++, or set CXX to another compiler)."
    return None


def compiler() -> str | None:
    """Return the path of the C++ compiler that torch.compile will call; None if the compiler isn't installed."""
    return shutil.which(_compiler_name())


def _compiler_name() -> str:
    return os.environ.get("CXX") or "g++"


@contextmanager
def compiled(model: Any, probe: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Inside the block, run the model's layers as compiled code whenever gradients are enabled.

    `probe` should run the layers; it is called first. Raises TorchDynamoException if compiling fails in `probe`. A
    layer that can't be compiled later runs uncompiled from then on.
    """
    is_probed = False
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder("compiled")))
    with ExitStack() as inside:
        limits = {"recompile_limit": VARIANTS, "accumulated_recompile_limit": 4 * VARIANTS}
        inside.enter_context(torch._dynamo.config.patch(limits))
        for block in blocks_of(model):
            fused = torch.compile(block.forward, dynamic=True)
            inside.enter_context(replayed(block, _where_gradients(fused, block.forward, lambda: is_probed)))
        probe()
        is_probed = True
        yield


def _where_gradients(
    fused: Callable[..., Any], plain: Callable[..., Any], may_fail: Callable[[], bool]
) -> Callable[..., Any]:
    """Return a forward method that calls `fused` if gradients are enabled, else `plain`.

    If compiling fails although it `may_fail`, the method prints why and calls only `plain` from then on.
    """
    from torch._dynamo.exc import TorchDynamoException

    failed = False

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal failed
        if failed or not torch.is_grad_enabled():
            return plain(*args, **kwargs)
        try:
            return fused(*args, **kwargs)
        except TorchDynamoException as error:
            if not may_fail():
                raise
            failed = True
            print(f"A layer runs uncompiled from now on, which is slower: {failure(error)}", file=sys.stderr)
            return plain(*args, **kwargs)

    return forward


def failure(error: Exception) -> str:
    """Return the first line of torch.compile's error message, as a sentence."""
    return f"torch.compile failed: {(str(error).strip().splitlines() or [type(error).__name__])[0].rstrip('.')}."
