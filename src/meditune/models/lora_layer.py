"""A LoRA layer as one operation: the update is added into the base product, and little is kept for the way back.

peft computes base(x) + B(A(x)) * scale in five passes over memory, three of them as wide as the layer's output. Here
the scale acts on the thin side and the wide output is written twice. Layers that do more than that (DoRA, a quantized
base) keep peft's own forward; a test holds the two equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from meditune.models.frozen import answering


@contextmanager
def one_operation(model: Any) -> Iterator[int]:
    """Inside the block the model's plain LoRA layers run as one operation; gives how many there are."""
    layers = [module for module in model.modules() if _is_plain(module)]
    with ExitStack() as afterwards:
        for layer in layers:
            afterwards.enter_context(answering(layer, _forward(layer)))
        yield len(layers)


def _is_plain(module: Any) -> bool:
    """Whether the module is a LoRA layer that adds scale * B A x, x with or without dropout, to a linear layer's output
    and does nothing else."""
    from peft.tuners.lora import Linear
    from transformers.pytorch_utils import Conv1D

    if type(module) is not Linear or module.merged or module.disable_adapters or len(module.active_adapters) != 1:
        return False
    name = module.active_adapters[0]
    if name not in module.lora_A or name in module.lora_variant or module.lora_B[name].bias is not None:
        return False
    base = module.base_layer
    parts = (base, module.lora_A[name], module.lora_B[name])
    if base.weight.requires_grad or any(part._forward_hooks or part._forward_pre_hooks for part in parts):
        return False
    alike: bool = module.lora_A[name].weight.dtype == module.lora_B[name].weight.dtype == base.weight.dtype
    return type(base) in {torch.nn.Linear, Conv1D} and alike


def _forward(layer: Any) -> Any:
    base, name = layer.base_layer, layer.active_adapters[0]
    a, b, scale, dropout = layer.lora_A[name], layer.lora_B[name], layer.scaling[name], layer.lora_dropout[name]
    is_linear = type(base) is torch.nn.Linear

    def forward(x: torch.Tensor) -> torch.Tensor:
        if layer.merged or layer.disable_adapters:
            return type(layer).forward(layer, x)  # type: ignore[no-any-return]
        # transformers' Conv1D keeps its weight as (inputs, outputs).
        weight = base.weight if is_linear else base.weight.t()
        seen = dropout(x)
        found: torch.Tensor = _Lora.apply(  # type: ignore[no-untyped-call]
            x, None if seen is x else seen, weight, base.bias, a.weight, b.weight, scale
        )
        return found

    return forward


class _Lora(torch.autograd.Function):
    """x (..., inputs), weight (outputs, inputs), a (rank, inputs), b (outputs, rank) to (..., outputs).

    `seen` is what the adapter sees where that isn't x itself. Of the frozen weight and bias no gradient is given.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        seen: torch.Tensor | None,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        kept = flat if seen is None else seen.reshape(-1, x.shape[-1])
        thin = kept @ a.t()
        wide = flat @ weight.t() if bias is None else torch.addmm(bias, flat, weight.t())
        wide = wide.addmm_(thin, b.t(), alpha=scale)
        ctx.save_for_backward(kept, weight, a, b, thin)
        ctx.scale, ctx.shape, ctx.alike = scale, x.shape, seen is None
        return wide.view(*x.shape[:-1], wide.shape[-1])

    @staticmethod
    def backward(ctx: Any, *above: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        kept, weight, a, b, thin = ctx.saved_tensors
        slope = above[0].reshape(-1, above[0].shape[-1])
        through = (slope @ b) * ctx.scale
        down = down_seen = None
        if ctx.needs_input_grad[0]:
            down = slope @ weight
            down = (down.addmm_(through, a) if ctx.alike else down).view(ctx.shape)
        if ctx.needs_input_grad[1]:
            down_seen = (through @ a).view(ctx.shape)
        return down, down_seen, None, None, through.t() @ kept, (slope.t() @ thin) * ctx.scale, None
