"""Reading without gradients, as fast as the processor multiplies.

PyTorch multiplies FP32 matrices with MKL, which takes AVX2 on processors of other makers than Intel, also where they
have AVX-512: half their speed. oneDNN, which PyTorch carries for other number formats, takes what the processor has.
The products are the same FP32 sums in another order (a test holds them so). Gradients don't pass through oneDNN's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from meditune.models.frozen import answering

FEW = 32
"""Rows under which a call costs more than it saves"""
ROWS = 32
"""Rows that packed weights are laid out for; others take the same layout"""
MAX_PACKED = 600_000_000
"""Bytes of weights that are packed at most"""
CPU_INFO = Path("/proc/cpuinfo")


@contextmanager
def inference(model: Any, few_rows: bool = False) -> Iterator[None]:
    """Inside the block nothing keeps gradients, and the model's linear layers take the faster product.

    With `few_rows`, products will mostly have few of them, as in decoding: weights are then laid out once as oneDNN
    wants them, and not for every product anew. That takes their memory a second time, so large models go without.
    """
    with torch.inference_mode(), ExitStack() as afterwards:
        linear = [module for module in model.modules() if type(module) is torch.nn.Linear]
        sizes = {id(module.weight): module.weight.nbytes for module in linear}
        packed = few_rows and sum(sizes.values()) <= MAX_PACKED
        for module in linear:
            if packed and can_pack(module.weight):
                weight = torch.ops.mkldnn._reorder_linear_weight(module.weight, ROWS)
                afterwards.enter_context(answering(module, partial(product, weight=weight, bias=module.bias)))
            elif takes_onednn(module.weight) and mkl_is_slow():
                answer = partial(product, weight=module.weight, bias=module.bias)
                afterwards.enter_context(answering(module, answer))
        yield


@cache
def mkl_is_slow() -> bool:
    """Whether this processor has AVX-512 that MKL doesn't use."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not CPU_INFO.is_file():
        return False
    return "GenuineIntel" not in CPU_INFO.read_text(encoding="utf-8") and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def can_pack(weight: torch.Tensor) -> bool:
    """Whether oneDNN has a layout of its own for this matrix."""
    if weight.device.type != "cpu" or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


def takes_onednn(weight: torch.Tensor) -> bool:
    """Whether products with this matrix can be oneDNN's."""
    return weight.dtype == torch.float32 and weight.device.type == "cpu"


def tokens_at_once(model: Any, most: int) -> int:
    """How many tokens, `most` at the most, one forward pass had best read: half of them in FP32 on a CPU.

    Pieces of 1,024 FP32 tokens are a fifth slower than of 512, because their memory is given back and fetched anew.
    """
    return max(most // 2, 1) if takes_onednn(next(model.parameters())) else most


def product(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """oneDNN's rows @ weight.T + bias: (..., inputs), (outputs, inputs), (outputs) to (..., outputs)."""
    made: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return made


def products(many: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """many @ others.transpose(1, 2) by the faster product.

    (N, rows, size) and (N, columns, size) to (N, rows, columns).
    """
    if torch.is_grad_enabled() or not takes_onednn(many) or many.shape[1] < FEW or not mkl_is_slow():
        return torch.bmm(many, others.transpose(1, 2))
    return torch.stack([product(rows, other) for rows, other in zip(many, others.contiguous(), strict=True)])
