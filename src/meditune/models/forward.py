"""Virtual tokens before every row: prompt tuning trains their embeddings, prefix tuning their keys and values.

peft's own forward pass makes room for them only where masks have two dimensions and positions are left out. Rows that
share a prompt, and padded batches, need more than that, so the virtual tokens are laid out here: every token of a row
sees all of them, and the row's positions go on after them. It equals peft's on single rows (a test holds it so).

Attention masks as the architectures expect them, from who sees whom.

A forward pass that computes the output head only where a target is predicted.

With a vocabulary of 49,000 to 262,000 words the head costs more than the rest of a small model; a PubMedQA row has
some 400 tokens and 60 targets.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from meditune.models.quiet_libraries import quiet_transformers
from meditune.models.shared_prefix_batch import Batch


def attention_masks(model: Any, sees: torch.Tensor, queries: torch.Tensor, keys: torch.Tensor) -> Any:
    """The masks that the architecture expects: one, or one for each kind of layer where some slide a window.

    `sees` is (B, Q, K), true where a query may see a key; `queries` (B, Q) and `keys` (B, K) are their positions.
    A mask is (B, 1, Q, K), to be added to the scores.
    """
    config = model.config.get_text_config()
    dtype = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    full = _as_mask(sees, dtype)
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if not window or (kinds and "sliding_attention" not in kinds):
        return full
    near = _as_mask(sees & (queries[:, :, None] - keys[:, None, :] < window), dtype)
    # An architecture that doesn't list its layers' kinds (Mistral) slides in all of them.
    return {"full_attention": full, "sliding_attention": near} if kinds else near


def _as_mask(sees: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # A row of nothing but "unseen" (padding) softmaxes to a uniform row of finite numbers, which nobody reads.
    hidden = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=sees.device)
    return torch.where(sees, torch.zeros((), dtype=dtype, device=sees.device), hidden).unsqueeze(1)


def add_prompt(model: Any, count: int, seed: int) -> Any:
    """The frozen model with `count` trainable embeddings before every text, at first those of random words."""
    from peft import PromptTuningConfig, PromptTuningInit, get_peft_model

    config = PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=count, prompt_tuning_init=PromptTuningInit.SAMPLE_VOCAB
    )
    torch.manual_seed(seed)
    with quiet_transformers():
        return get_peft_model(model, config)


def add_prefix(model: Any, count: int, seed: int) -> Any:
    """The frozen model with `count` trainable keys and values before every layer's own.

    They begin as those of random words: Li and Liang found random numbers to train far worse.
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
        made = get_peft_model(model, config)
    with torch.no_grad():
        flat = [part.transpose(0, 1).reshape(count, -1) for pair in pairs for part in pair]
        made.prompt_encoder["default"].embedding.weight.copy_(torch.cat(flat, dim=1))
    return made


def virtual_tokens(model: Any) -> int:
    """How many virtual tokens stand before each of the model's rows."""
    config = getattr(model, "active_peft_config", None)
    return int(config.num_virtual_tokens) if config is not None and config.is_prompt_learning else 0


def inputs_of(
    model: Any, tokens: torch.Tensor, sees: torch.Tensor, positions: torch.Tensor
) -> tuple[dict[str, Any], int]:
    """What a model with virtual tokens is called with, and by how much its outputs are shifted to the right.

    `tokens` and `positions` are (B, T), `sees` is (B, T, T), as in a `Batch`. The call is for the model underneath,
    `model.get_base_model()`.
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
    """Whether the virtual tokens are keys and values, not embeddings."""
    return bool(model.active_peft_config.peft_type == "PREFIX_TUNING")


def cache_name(model: Any) -> str:
    """The argument that takes keys and values: `cache` in newer versions of transformers."""
    parameters = inspect.signature(type(model.get_decoder()).forward).parameters
    return "cache" if "cache" in parameters else "past_key_values"


def _prefix(model: Any, size: int) -> Any:
    """The trained keys and values as a cache for `size` rows."""
    config = model.active_peft_config
    weight = model.prompt_encoder[model.active_adapter].embedding.weight.to(model.get_input_embeddings().weight.dtype)
    heads = config.num_attention_heads
    parts = weight.view(len(weight), -1, heads, config.token_dim // heads).permute(1, 2, 0, 3)
    rows = parts.unsqueeze(1).expand(-1, size, -1, -1, -1)
    return cache_of([(rows[index], rows[index + 1]) for index in range(0, len(rows), 2)])


def cache_of(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> Any:
    """A cache that keeps everything, in sliding layers too: masks say what a layer sees."""
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer, (keys, values) in enumerate(pairs):
        cache.update(keys, values, layer)
    return cache


class Predicted(NamedTuple):
    """What the model says at the N supervised tokens of a batch."""

    hidden: torch.Tensor
    """(N, hidden size), the last hidden state"""
    logits: torch.Tensor
    """(N, vocabulary), in the model's number format; (0, vocabulary) where they weren't asked for"""


def predict(model: Any, batch: Batch, logits: bool = True) -> Predicted:
    """Run the model over the batch's rows and its head over the supervised tokens only, or over nothing."""
    device = next(model.parameters()).device
    tokens, sees, positions = batch.tokens.to(device), batch.sees.to(device), batch.positions.to(device)
    called, shift = model, 0
    if virtual_tokens(model):
        inputs, shift = inputs_of(model, tokens, sees, positions)
        called = model.get_base_model()
    else:
        masks = attention_masks(model, sees, positions, positions)
        inputs = {"input_ids": tokens, "attention_mask": masks, "position_ids": positions}
    with head_only_at(model, batch.rows.to(device), batch.columns.to(device) + shift, logits) as selected:
        output = called(**inputs, use_cache=False)
    return Predicted(selected[0], output.logits[0])


@contextmanager
def head_only_at(
    model: Any, rows: torch.Tensor, columns: torch.Tensor, logits: bool = True
) -> Iterator[list[torch.Tensor]]:
    """Inside the block the model's head reads these N places only: its logits are (1, N, vocabulary), or (1, 0, ...).

    The head's own forward sees just the selected hidden states, so whatever an architecture does after it
    (soft-capping, scaling) still happens. Gives a list that holds those states, (N, hidden size), after the call.
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


def label_logits(head: Any, hidden: torch.Tensor, tokens: Sequence[int]) -> torch.Tensor:
    """The head's FP32 logits of these tokens after one hidden state, as a tensor of their number."""
    ids = torch.tensor(tokens, device=hidden.device)
    logits: torch.Tensor = head.weight[ids].float() @ hidden.float()
    if getattr(head, "bias", None) is not None:
        logits = logits + head.bias[ids].float()
    return logits
