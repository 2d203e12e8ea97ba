"""Forward passes with attention masks and virtual tokens; the output head runs only where a target is predicted.

peft's own forward pass supports virtual tokens (prompt and prefix tuning) only with two-dimensional masks and without
position ids. Here, every token of a row sees all virtual tokens, and the positions of the row follow those of the
virtual tokens. For single rows, the result equals peft's (checked by a test).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch

from meditune.models.gpu_attention import inputs_without_mask
from meditune.models.quiet_libraries import quiet_transformers
from meditune.models.shared_prefix_batch import MIN_PADDING, Batch, collate, sees_of, windows

UNPADDED_ATTENTION: set[str] = set()
"""Names of attention implementations that accept `real_tokens` (`models/inference.py`)"""
CHANGED_AFTER_HEAD = ("output_multiplier", "logit_scale", "logits_scaling", "final_logit_softcapping")
"""Config settings of architectures that multiply, divide and cap the head's output, in the order of their use"""
ALIGNED = 8
"""CUDA's attention expects each row of a mask to begin at a multiple of this number of elements."""


def attention_masks(model: Any, sees: torch.Tensor, queries: torch.Tensor, keys: torch.Tensor) -> Any:
    """Return the attention mask, or a dict of masks by kind of layer if only some layers have sliding windows.

    `sees` is (B, Q, K), true where a query may see a key. `queries` (B, Q) and `keys` (B, K) contain the positions of
    the queries and keys. A mask is (B, 1, Q, K) and is added to the attention scores.
    """
    config = model.config.get_text_config()
    dtype = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    full = _as_mask(sees, dtype)
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if not window or (kinds and "sliding_attention" not in kinds):
        return full
    near = _as_mask(sees & (queries[:, :, None] - keys[:, None, :] < window), dtype)
    # An architecture that doesn't list its layers' kinds (Mistral) has sliding windows in all layers.
    return {"full_attention": full, "sliding_attention": near} if kinds else near


def _as_mask(sees: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # The softmax of a fully masked row (padding) is uniform and finite, and is never used.
    hidden = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=sees.device)
    keys = sees.shape[-1]
    if sees.is_cuda and keys % ALIGNED:
        # Otherwise every layer would copy the mask to align its rows.
        sees = torch.nn.functional.pad(sees, (0, -keys % ALIGNED))
    return torch.where(sees, torch.zeros((), dtype=dtype, device=sees.device), hidden).unsqueeze(1)[..., :keys]


def add_prompt(model: Any, count: int, seed: int) -> Any:
    """Return the frozen model with `count` trainable embeddings before every text.

    They are initialized to the embeddings of random tokens.
    """
    from peft import PromptTuningConfig, PromptTuningInit, get_peft_model

    config = PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=count, prompt_tuning_init=PromptTuningInit.SAMPLE_VOCAB
    )
    torch.manual_seed(seed)
    with quiet_transformers():
        return get_peft_model(model, config)


def add_prefix(model: Any, count: int, seed: int) -> Any:
    """Return the frozen model with `count` trainable keys and values before each layer's own keys and values.

    The new keys and values are initialized to those of random tokens, because random numbers train far worse (Li and
    Liang 2021, arXiv:2101.00190).
    """
    from peft import PrefixTuningConfig, get_peft_model

    torch.manual_seed(seed)
    words = torch.randint(0, model.get_input_embeddings().num_embeddings, (1, count))
    cache = cache_of([])
    with torch.no_grad():
        model(input_ids=words.to(model.device), use_cache=True, **{cache_name(model): cache})
    pairs = [(layer.keys[0], layer.values[0]) for layer in cache.layers]
    (heads, _, size) = pairs[0][0].shape
    config = PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=count, token_dim=heads * size, num_attention_heads=heads
    )
    with quiet_transformers():
        adapted = get_peft_model(model, config)
    with torch.no_grad():
        flat = [part.transpose(0, 1).reshape(count, -1) for pair in pairs for part in pair]
        adapted.prompt_encoder["default"].embedding.weight.copy_(torch.cat(flat, dim=1))
    return adapted


def virtual_tokens(model: Any) -> int:
    """Return the number of virtual tokens that the model puts before each row; 0 for most models."""
    config = getattr(model, "active_peft_config", None)
    return int(config.num_virtual_tokens) if config is not None and config.is_prompt_learning else 0


def inputs_of(
    model: Any, tokens: torch.Tensor, sees: torch.Tensor, positions: torch.Tensor
) -> tuple[dict[str, Any], int]:
    """Return the base model's inputs with virtual tokens, and the number of positions by which these shift its outputs.

    `tokens` and `positions` are (B, T), `sees` is (B, T, T), as in a `Batch`.
    """
    count = virtual_tokens(model)
    size, length = tokens.shape
    before = torch.arange(count, device=tokens.device).expand(size, count)
    after = positions + count
    keys = torch.cat([before, after], dim=1)
    sees = torch.cat([sees.new_ones(size, length, count), sees], dim=2)
    if is_prefix(model):
        cache = _prefix(model, size)
        masks = attention_masks(model, sees, after, keys)
        return {"input_ids": tokens, "attention_mask": masks, "position_ids": after, cache_name(model): cache}, 0
    first = sees.new_ones(count, count + length).tril().expand(size, -1, -1)
    masks = attention_masks(model, torch.cat([first, sees], dim=1), keys, keys)
    words = model.get_input_embeddings()(tokens)
    embedded = torch.cat([model.get_prompt(size).to(words.dtype), words], dim=1)
    return {"inputs_embeds": embedded, "attention_mask": masks, "position_ids": keys}, count


def is_prefix(model: Any) -> bool:
    """Return whether the virtual tokens are keys and values instead of embeddings."""
    return bool(model.active_peft_config.peft_type == "PREFIX_TUNING")


def cache_name(model: Any) -> str:
    """Return the name of the model's argument for the key-value cache, which depends on the version of transformers."""
    parameters = inspect.signature(type(model.get_decoder()).forward).parameters
    return "cache" if "cache" in parameters else "past_key_values"


def _prefix(model: Any, size: int) -> Any:
    """Return the trained keys and values as a cache for `size` rows."""
    config = model.active_peft_config
    weight = model.prompt_encoder[model.active_adapter].embedding.weight.to(model.get_input_embeddings().weight.dtype)
    heads = config.num_attention_heads
    parts = weight.view(len(weight), -1, heads, config.token_dim // heads).permute(1, 2, 0, 3)
    rows = parts.unsqueeze(1).expand(-1, size, -1, -1, -1)
    return cache_of([(rows[index], rows[index + 1]) for index in range(0, len(rows), 2)])


def cache_of(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> Any:
    """Return a cache with one pair of keys and values per layer. It stores all tokens; masks implement windows."""
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer, (keys, values) in enumerate(pairs):
        cache.update(keys, values, layer)
    return cache


class Predicted(NamedTuple):
    """The model's predictions for the N supervised tokens of a batch."""

    hidden: torch.Tensor
    """(N, hidden size), the last hidden state"""
    logits: torch.Tensor
    """(N, vocabulary), in the model's number format; (0, vocabulary) if they weren't requested"""


def predict(model: Any, batch: Batch, logits: bool = True) -> Predicted:
    """Return predictions for the batch. The head runs only on the supervised tokens, or not at all without `logits`."""
    return _predict(model, batch, logits, skips_padding(model, batch))


def _predict(model: Any, batch: Batch, logits: bool, unpadded: bool) -> Predicted:
    device = next(model.parameters()).device
    tokens, positions, branch = (part.to(device) for part in (batch.tokens, batch.positions, batch.branch))
    rows, columns = batch.rows.to(device), batch.columns.to(device)
    called = model
    if virtual_tokens(model):
        inputs, shift = inputs_of(model, tokens, sees_of(branch), positions)
        called, columns = model.get_base_model(), columns + shift
    elif unpadded:
        real = (branch >= 0).flatten()
        inputs = {
            "input_ids": tokens.flatten()[real].unsqueeze(0),
            "position_ids": positions.flatten()[real].unsqueeze(0),
            "attention_mask": attention_masks(model, sees_of(branch), positions, positions),
            "real_tokens": real.nonzero()[:, 0],
        }
        rows, columns = torch.zeros_like(rows), (real.cumsum(0) - 1)[rows * tokens.shape[1] + columns]
    else:
        inputs = {"input_ids": tokens, "position_ids": positions, **inputs_without_mask(model, batch)}
        if "attention_mask" not in inputs:
            inputs["attention_mask"] = attention_masks(model, sees_of(branch), positions, positions)
    with head_only_at(model, rows, columns, logits) as selected:
        output = called(**inputs, use_cache=False)
    return Predicted(selected[0], output.logits[0])


def skips_padding(model: Any, batch: Batch) -> bool:
    """Return whether `predict` computes only the real tokens of this batch; then the layers see them as one row."""
    return batch.real_tokens < (1 - MIN_PADDING) * batch.tokens.numel() and takes_unpadded(model)


_TAKES_UNPADDED: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def takes_unpadded(model: Any) -> bool:
    """Return whether the model's attention can read several rows without padding.

    That needs `inference.grouped_attention`, and layers that pass `real_tokens` on to it. The first call tries it out,
    so it runs the model.
    """
    weight = next(model.parameters())
    is_sharded = hasattr(weight, "full_tensor")  # then all processes would have to try it out at the same time
    if is_sharded or weight.is_meta or virtual_tokens(model):
        return False
    if model.config._attn_implementation not in UNPADDED_ATTENTION:
        return False
    if model not in _TAKES_UNPADDED:
        _TAKES_UNPADDED[model] = _equals_padded(model)
    return _TAKES_UNPADDED[model]


@torch.no_grad()
def _equals_padded(model: Any) -> bool:
    batch = collate([windows("", ids, len(ids))[0] for ids in (range(10, 17), range(30, 33))], pad_id=0)
    training = [module for module in model.modules() if module.training]
    model.eval()  # the results of dropout are random
    try:
        padded, unpadded = (_predict(model, batch, False, skipped).hidden.float() for skipped in (False, True))
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return False  # a layer that doesn't pass `real_tokens` on
    finally:
        for module in training:
            module.training = True
    return bool(((padded - unpadded).norm(dim=-1) <= 0.05 * padded.norm(dim=-1)).all())


@contextmanager
def head_only_at(
    model: Any, rows: torch.Tensor, columns: torch.Tensor, logits: bool = True
) -> Iterator[list[torch.Tensor]]:
    """Inside the block, run the model's head only at these N positions, or nowhere if `logits` is False.

    With a vocabulary of 49,000 to 262,000 tokens, the head costs more than the rest of a small model. The model returns
    (1, N, vocabulary) or (1, 0, vocabulary) logits, and the architecture's later steps (soft-capping, scaling) still
    run. Yields a list to which each call of the model adds the (N, hidden size) states at these positions.
    """
    selected: list[torch.Tensor] = []

    def select(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        selected.append(inputs[0][rows, columns])
        given = selected[0] if logits else selected[0][:0]
        return (given.unsqueeze(0), *inputs[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield selected
    finally:
        hook.remove()


def label_logits(model: Any, hidden: torch.Tensor, tokens: Sequence[int]) -> torch.Tensor:
    """Return the model's FP32 logits for these tokens: (tokens,) for one hidden state, (N, tokens) for N of them."""
    head, ids = model.get_output_embeddings(), torch.tensor(tokens, device=hidden.device)
    if hasattr(head, "base_layer"):  # its weight doesn't contain the adapter
        return _changed_after_head(model, head(hidden)[..., ids].float())
    logits: torch.Tensor = (
        (head.weight[ids].float() @ hidden.float().mT).mT
        if hidden.dim() > 1
        else (head.weight[ids].float() @ hidden.float())
    )
    if getattr(head, "bias", None) is not None:
        logits = logits + head.bias[ids].float()
    return _changed_after_head(model, logits)


def _changed_after_head(model: Any, logits: torch.Tensor) -> torch.Tensor:
    """Return the head's output as the architecture scales and caps it."""
    config = model.config.get_text_config()
    multiplier, scale, divisor, cap = (getattr(config, name, None) for name in CHANGED_AFTER_HEAD)
    if divisor and config.model_type == "hyperclovax":  # which multiplies by `logits_scaling`
        multiplier, divisor = divisor, None
    logits = logits * (multiplier or 1) * (scale or 1) / (divisor or 1)
    return torch.tanh(logits / cap) * cap if cap else logits
