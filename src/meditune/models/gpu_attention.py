"""Attention on GPUs without dense masks, because PyTorch's flash kernels don't support them.

Two layouts need no dense mask:

- Rows with one branch use causal attention. Padding is on the right, where no token of the row sees it.
- Rows with several branches (shared_prefix_batch.py), or longer than a sliding window, are packed: every branch is a
  sequence of queries whose keys are the common start and the branch itself. FlashAttention 2 aligns the last query with
  the last key (Dao 2023, arXiv:2307.08691), which gives exactly the mask that such rows need.

Everything else (cached tokens, virtual tokens, older GPUs, FP32) uses a dense mask, as on a CPU.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention

from meditune.models.shared_prefix_batch import Batch, sees_of

NAME = "meditune_gpu"
CAUSAL_MASK_ATTENTION = {NAME}
"""Names of attention implementations that accept `causal_mask`"""
PACKED_ATTENTION = {NAME}
"""Names of attention implementations that accept packed sequences"""
HALF = (torch.bfloat16, torch.float16)
"""Dtypes that flash kernels support"""
MAX_HEAD_SIZE = 256
"""The largest head size that flash kernels support"""


class PackedSequences(NamedTuple):
    """The layout of a batch (B rows of T tokens) as S sequences, for an attention kernel that takes cumulative lengths.

    `queries` contains the indices of the real tokens among the batch's B * T tokens, sequence by sequence. `keys`
    contains the indices of each sequence's keys, so a common start is repeated for each branch. `query_ends` contains 0
    and the end of each sequence in `queries`; `key_ends` does the same for `keys`. Both are (S + 1,) and INT32.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    query_ends: torch.Tensor
    key_ends: torch.Tensor
    longest_queries: int
    longest_keys: int

    def to(self, device: torch.device) -> PackedSequences:
        """Return the same layout with its tensors on `device`.

        For the meta device, the ends stay where their values can be read, because plans count operations from them.
        """
        names = ("queries", "keys") if device.type == "meta" else ("queries", "keys", "query_ends", "key_ends")
        return self._replace(**{name: getattr(self, name).to(device) for name in names})


def pack(branch: torch.Tensor) -> PackedSequences:
    """Return the layout of the rows of a batch; `branch` is the (B, T) tensor of that name in a `Batch`."""
    queries, keys, query_counts, key_counts = [], [], [], []
    for row, branches in enumerate(branch):
        runs = torch.unique_consecutive(branches[branches >= 0], return_counts=True)
        numbers, counts = (part.tolist() for part in runs)
        first = row * branch.shape[1]
        if len(numbers) <= 2 and numbers[0] == 0:
            # A common start and a single branch after it are one sequence.
            numbers, counts = [0], [sum(counts)]
        start = counts[0] if numbers[0] == 0 else 0
        place = first
        for number, count in zip(numbers, counts, strict=True):
            own = torch.arange(place, place + count)
            seen = torch.cat([torch.arange(first, first + start), own]) if number else own
            queries.append(own)
            keys.append(seen)
            query_counts.append(count)
            key_counts.append(len(seen))
            place += count
    query_ends, key_ends = (torch.tensor([0, *each]).cumsum(0).int() for each in (query_counts, key_counts))
    longest = max(query_counts), max(key_counts)
    return PackedSequences(torch.cat(queries), torch.cat(keys), query_ends, key_ends, *longest)


def needs_no_mask(model: Any, length: int) -> bool:
    """Return whether the model can read causal rows of `length` tokens with `causal_mask` instead of a dense mask."""
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    return model.config._attn_implementation in CAUSAL_MASK_ATTENTION and (not window or length <= window)


def causal_mask(device: torch.device) -> torch.Tensor:
    """Return an empty mask that means "causal"; transformers doesn't change a mask that has four dimensions."""
    return torch.empty((1, 1, 0, 0), device=device)


def inputs_without_mask(model: Any, batch: Batch) -> dict[str, Any]:
    """Return arguments for the model that replace a batch's dense mask; empty if the model needs a dense mask."""
    device = next(model.parameters()).device
    if batch.is_causal and needs_no_mask(model, batch.tokens.shape[1]):
        return {"attention_mask": causal_mask(device)}
    if not packs(model):
        return {}
    return {"attention_mask": causal_mask(device), "packed": pack(batch.branch).to(device)}


class Heads(NamedTuple):
    """The numbers of a layer's heads and of its key heads, and the size of a head."""

    heads: int
    key_heads: int
    size: int


def layer_heads(config: Any) -> list[Heads]:
    """Return the heads of each layer; in some architectures (Gemma 4), they depend on the kind of layer."""
    text, found = config.get_text_config(), []
    for layer in range(text.num_hidden_layers):
        each = text.per_layer_config[layer]
        heads = each.num_attention_heads
        key_heads = getattr(each, "num_key_value_heads", None) or heads
        found.append(Heads(heads, key_heads, getattr(each, "head_dim", None) or each.hidden_size // heads))
    return found


def packs(model: Any) -> bool:
    """Return whether this model's layers can process packed sequences on this machine, or on a plan's GPU."""
    config, weight = model.config.get_text_config(), model.get_input_embeddings().weight
    if model.config._attn_implementation not in PACKED_ATTENTION or weight.is_cpu or weight.dtype not in HALF:
        return False
    rates = (getattr(config, name, None) for name in ("attention_dropout", "attn_pdrop"))
    parameters = inspect.signature(type(model.get_decoder()).forward).parameters.values()
    passes_on = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)
    if not passes_on or (model.training and any(rates)):
        return False
    layers = set(layer_heads(model.config))
    if weight.is_meta:
        return all(each.size <= MAX_HEAD_SIZE for each in layers)
    with torch.inference_mode(False), torch.enable_grad():
        groups = {(each.heads // each.key_heads, each.size) for each in layers}
        return all(_packs(weight.dtype, *each, weight.device) for each in sorted(groups))


@cache
def _packs(dtype: torch.dtype, groups: int, size: int, device: torch.device) -> bool:
    """Return whether packed and dense attention give equal results and gradients in a test; if not, print why."""
    branch = torch.tensor([[0] * 9 + [1] * 20 + [2] * 12, [0] * 7 + [1] * 8 + [-1] * 26])
    generator = torch.Generator().manual_seed(0)
    try:
        packed, found = pack(branch).to(device), []
        shapes = [(2, 2 * groups, 41, size), (2, 2, 41, size), (2, 2, 41, size), (2, 41, 2 * groups, size)]
        *inputs, slope = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
        sees = sees_of(branch.to(device))[:, None]
        sees |= ~sees.any(-1, keepdim=True)  # a padding token would otherwise see no key
        real = (branch >= 0).to(device)[:, :, None, None]
        for is_packed in (True, False):
            query, key, value = (part.detach().clone().requires_grad_() for part in inputs)
            if is_packed:
                output = packed_attention(query, key, value, packed, None, None)
            else:
                wide_key, wide_value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
                output = scaled_dot_product_attention(query, wide_key, wide_value, attn_mask=sees).transpose(1, 2)
            output = output * real
            torch.autograd.backward(output, slope)
            found.append([output, query.grad, key.grad, value.grad])
        alike = all(torch.allclose(one, other, atol=0.05, rtol=0.05) for one, other in zip(*found, strict=True))
        reason = "" if alike else "its results differ from those of dense attention"
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, AttributeError, ImportError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if reason:
        print(
            f"Rows that share a prompt use a dense mask, which is slower: PyTorch {torch.__version__}'s attention for "
            f"packed sequences can't be used here ({reason}).",
            file=sys.stderr,
        )
    return not reason


def packed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packed: PackedSequences,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Return the output of attention within packed sequences, (B, T, heads, size), which is zero at padding.

    `query` is (B, heads, T, size), `key` and `value` are (B, key heads, T, size). A query sees the keys up to its own
    position: the last `window` of them, or all of them if `window` is None.
    """
    from torch.nn.attention.varlen import varlen_attn

    batch, heads, length, size = query.shape

    def gathered(part: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        return part.transpose(1, 2).reshape(batch * length, part.shape[1], size).index_select(0, places)

    mixed: Any = varlen_attn(
        gathered(query, packed.queries),
        gathered(key, packed.keys),
        gathered(value, packed.keys),
        packed.query_ends,
        packed.key_ends,
        packed.longest_queries,
        packed.longest_keys,
        scale=scaling,
        window_size=(window - 1 if window else -1, 0),
        enable_gqa=key.shape[1] != heads,
    )
    whole = query.new_zeros(batch * length, heads, size).index_copy(0, packed.queries, mixed)
    return whole.view(batch, length, heads, size)


def gpu_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packed: PackedSequences | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Return the (batch, queries, heads, size) output of attention, and None instead of attention weights.

    `query` is (batch, heads, queries, size), `key` and `value` are (batch, key heads, keys, size). `attention_mask` is
    `causal_mask` or a mask for transformers' "sdpa". Raises ValueError for attention with capped scores or sinks.
    """
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

    refuse_more_than_softmax(kwargs)
    if packed is not None:
        return packed_attention(query, key, value, packed, scaling, sliding_window), None
    if attention_mask is None or attention_mask.numel():
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return found
    grouped = key.shape[1] != query.shape[1]
    if grouped and not _has_flash(query):
        # With grouped heads, PyTorch's other kernels store all scores, so repeat the keys and values instead.
        key, value = (repeat_kv(part, query.shape[1] // part.shape[1]) for part in (key, value))
        grouped = False
    mixed = scaled_dot_product_attention(
        query, key, value, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=grouped
    )
    return mixed.transpose(1, 2).contiguous(), None


def refuse_more_than_softmax(options: Mapping[str, Any]) -> None:
    """Raise ValueError if an architecture asks its attention for capped scores (Gemma 2) or sinks (GPT-OSS)."""
    if given := [name for name in ("softcap", "s_aux") if options.get(name) is not None]:
        raise ValueError(f"this attention doesn't support {given[0]}; set model.attention to eager")


def _has_flash(query: torch.Tensor) -> bool:
    if query.dtype not in HALF or query.shape[-1] > MAX_HEAD_SIZE:
        return False
    return not query.is_cuda or has_flash_kernels(query.device)


def has_flash_kernels(device: torch.device | str) -> bool:
    """Return whether this GPU has flash attention kernels."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


def register() -> str:
    """Register `gpu_attention` with transformers, and return its name for `attn_implementation`."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if torch.cuda.is_available():
        # cuDNN's attention prepares a plan for every new shape, and nearly every batch has a new shape.
        torch.backends.cuda.enable_cudnn_sdp(False)
    AttentionInterface.register(NAME, gpu_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME
