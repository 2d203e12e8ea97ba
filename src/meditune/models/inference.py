"""Faster matrix products and attention for inference on CPUs.

PyTorch multiplies FP32 matrices with MKL. On processors that aren't from Intel, MKL uses AVX2 even if AVX-512 is
available, which halves the speed. oneDNN uses the best instructions available. It computes the same FP32 sums in a
different order (checked by a test), but it computes no gradients.

PyTorch's fused CPU attention is slow in BF16. For grouped-query attention, the key heads are also repeated in memory.
`grouped_attention` avoids both problems: it combines all query heads that share a key head into one matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from meditune.config.training_options import CPU_TOKENS
from meditune.hardware import free_gpu_bytes
from meditune.models.forward import UNPADDED_ATTENTION
from meditune.models.gpu_attention import refuse_more_than_softmax
from meditune.models.hidden_state_cache import replayed

FEW = 32
"""Minimum number of rows for oneDNN; with fewer rows, calling it takes more time than it saves"""
ROWS = 32
"""Number of rows for which the layout of packed weights is optimized; other numbers of rows work, too"""
MAX_PACKED = 600_000_000
"""Maximum total size in bytes of a model's linear weights for them to be packed"""
CPU_INFO = Path("/proc/cpuinfo")


@contextmanager
def inference(model: Any, small_batches: bool = False) -> Iterator[None]:
    """Inside the block, disable gradients and use the fastest matrix product in the model's linear layers.

    Set `small_batches` if most products have few rows, as in decoding. Weights are then packed: they are converted to
    oneDNN's layout once instead of for every product. Packing doubles the memory of the weights, so large models aren't
    packed.
    """
    with torch.inference_mode(), ExitStack() as afterwards:
        linear = [module for module in model.modules() if type(module) is torch.nn.Linear]
        size = sum({id(module.weight): module.weight.nbytes for module in linear}.values())
        packed = small_batches and size <= MAX_PACKED
        for module in linear:
            if packed and can_pack(module.weight):
                weight = torch.ops.mkldnn._reorder_linear_weight(module.weight, ROWS)
                afterwards.enter_context(replayed(module, partial(matmul, weight=weight, bias=module.bias)))
            elif takes_onednn(module.weight) and mkl_is_slow():
                answer = partial(matmul, weight=module.weight, bias=module.bias)
                afterwards.enter_context(replayed(module, answer))
        yield


@cache
def mkl_is_slow() -> bool:
    """Return whether this processor has AVX-512, but MKL doesn't use it."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not CPU_INFO.is_file():
        return False
    return "GenuineIntel" not in CPU_INFO.read_text(encoding="utf-8") and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def can_pack(weight: torch.Tensor) -> bool:
    """Return whether this matrix can be converted to oneDNN's own layout."""
    if weight.device.type != "cpu" or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


def takes_onednn(weight: torch.Tensor) -> bool:
    """Return whether oneDNN can compute products with this matrix."""
    return weight.dtype == torch.float32 and weight.device.type == "cpu"


GPU_WORK = 2**25
"""Tokens times hidden size beyond which larger batches no longer make a GPU more efficient (estimated, not measured)"""


def batch_limit(model: Any, max_tokens: int | None = None) -> int:
    """Return the maximum number of tokens in a forward pass without gradients: `max_tokens`, or a limit for the device.

    On a GPU, the limit is meant to use at most half of the free memory, even if the logits of all tokens are stored.
    """
    weight = model.get_input_embeddings().weight
    if max_tokens is not None or not weight.is_cuda:
        return max_tokens or CPU_TOKENS
    text = model.config.get_text_config()
    inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    # Bytes per token of a layer's tensors, the logits, the logits' FP32 copy, and the probabilities.
    size = weight.element_size()
    token_bytes = size * (10 * text.hidden_size + 4 * inner) + (size + 8) * text.vocab_size
    most = free_gpu_bytes(weight.device) // 2 // token_bytes
    return int(max(CPU_TOKENS // 4, min(GPU_WORK // text.hidden_size, most)))


def tokens_per_pass(model: Any, max_tokens: int | None) -> int:
    """Return the fastest number of tokens per pass: `batch_limit`, or half of it for FP32 on a CPU (20% faster)."""
    limit = batch_limit(model, max_tokens)
    return max(limit // 2, 1) if takes_onednn(next(model.parameters())) else limit


def matmul(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return rows @ weight.T + bias, computed by oneDNN. `rows` is (..., inputs), and the result is (..., outputs)."""
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return product


def matmuls(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return left @ right.transpose(1, 2), (N, rows, columns), computed by oneDNN where that is faster than PyTorch."""
    if torch.is_grad_enabled() or not takes_onednn(left) or left.shape[1] < FEW or not mkl_is_slow():
        return torch.bmm(left, right.transpose(1, 2))
    return torch.stack([matmul(rows, other) for rows, other in zip(left, right.contiguous(), strict=True)])


NAME = "meditune_grouped"
BLOCK = 128
"""Number of queries processed at once if gradients are disabled; keys after the last one that they see are skipped"""


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    real_tokens: torch.Tensor | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """Return the output of attention from `query` to `key` and `value`, and None instead of attention weights.

    `query` is (batch, heads, queries, size), `key` and `value` are (batch, key heads, keys, size).
    `attention_mask` (batch or 1, 1, queries, keys) is added to the scores. The output is (batch, queries, heads, size)
    and equals that of transformers' "sdpa" (checked by a test).

    With `real_tokens`, the three inputs and the output contain only the N real tokens of all rows, as one row:
    (1, heads, N, size). `attention_mask` is (batch, 1, length, length) for the padded rows, and `real_tokens` (N,)
    contains the places of the real tokens among their batch * length tokens.

    Raises ValueError for attention with capped scores or sinks.
    """
    refuse_more_than_softmax(more)
    if real_tokens is not None:
        if attention_mask is None:
            raise ValueError("real_tokens needs the mask of the padded rows")
        rows, length = len(attention_mask), attention_mask.shape[-1]

        def padded(part: torch.Tensor) -> torch.Tensor:
            real = part[0].transpose(0, 1)
            all_tokens = real.new_zeros(rows * length, *real.shape[1:]).index_copy(0, real_tokens, real)
            return all_tokens.view(rows, length, *real.shape[1:]).transpose(1, 2)

        inputs = (padded(query), padded(key), padded(value))
        whole, _ = grouped_attention(module, *inputs, attention_mask, scaling, dropout)
        return whole.flatten(0, 1).index_select(0, real_tokens).unsqueeze(0), None
    batch, heads, queries, size = query.shape
    scale = scaling if scaling is not None else 1 / math.sqrt(size)
    if torch.is_grad_enabled() or queries <= BLOCK or attention_mask is None or not getattr(module, "is_causal", False):
        rate = dropout if module.training else 0.0
        return _attended(query * scale, key, value, attention_mask, rate).contiguous(), None
    mixed = query.new_empty(batch, queries, heads, value.shape[-1])
    hidden = torch.finfo(attention_mask.dtype).min
    for first in range(0, queries, BLOCK):
        last = min(first + BLOCK, queries)
        mask = attention_mask[:, :, first:last]
        # In a key-value cache, the last key needn't belong to the last query.
        seen = int((mask > hidden).any(dim=(0, 1, 2)).nonzero().max()) + 1
        block = query[:, :, first:last] * scale
        mixed[:, first:last] = _attended(block, key[:, :, :seen], value[:, :, :seen], mask[..., :seen], 0.0)
    return mixed, None


def _attended(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, dropout: float
) -> torch.Tensor:
    """Return the output of attention for queries that are scaled already, as a (batch, queries, heads, size) view."""
    batch, heads, queries, size = query.shape
    key_heads, keys = key.shape[1], key.shape[2]
    folded = query.reshape(batch * key_heads, (heads // key_heads) * queries, size)
    scores = matmuls(folded, key.reshape(batch * key_heads, keys, size))
    if mask is not None:
        scores = (scores.view(batch, heads, queries, keys) + mask).view_as(scores)
    weights = torch.softmax(scores, dim=-1)
    if dropout:
        weights = torch.nn.functional.dropout(weights, dropout)
    mixed = matmuls(weights, value.reshape(batch * key_heads, keys, value.shape[-1]).transpose(1, 2))
    return mixed.view(batch, heads, queries, -1).transpose(1, 2)


def register() -> str:
    """Register `grouped_attention` with transformers, and return its name for `attn_implementation`."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, grouped_attention)
    UNPADDED_ATTENTION.add(NAME)
    AttentionMaskInterface.register(NAME, eager_mask)
    return NAME
