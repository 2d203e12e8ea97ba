"""A forward pass that computes the output head only where a target is predicted.

With a vocabulary of 49,000 to 262,000 words the head costs more than the rest of a small model; a PubMedQA row has
some 400 tokens and 60 targets.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from meditune.models.rows import Batch


class Predicted(NamedTuple):
    """What the model says at the N supervised tokens of a batch."""

    hidden: torch.Tensor
    """(N, hidden size), the last hidden state"""
    logits: torch.Tensor
    """(N, vocabulary), in the model's number format; (0, vocabulary) where they weren't asked for"""


def predict(model: Any, batch: Batch, logits: bool = True) -> Predicted:
    """Run the model over the batch's rows and its head over the supervised tokens only, or over nothing.

    The output head's own forward sees just the selected hidden states, so whatever an architecture does after its head
    (soft-capping, scaling) still happens.
    """
    device = next(model.parameters()).device
    rows, columns = batch.rows.to(device), batch.columns.to(device)
    selected: list[torch.Tensor] = []

    def select(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        selected.append(inputs[0][rows, columns])
        given = selected[0] if logits else selected[0][:0]
        return (given.unsqueeze(0), *inputs[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        output = model(
            input_ids=batch.tokens.to(device),
            attention_mask=attention_masks(model, batch, device),
            position_ids=batch.positions.to(device),
            use_cache=False,
        )
    finally:
        hook.remove()
    return Predicted(selected[0], output.logits[0])


def attention_masks(model: Any, batch: Batch, device: torch.device) -> Any:
    """The masks that the architecture expects: one, or one for each kind of layer where some slide a window."""
    config = model.config.get_text_config()
    sees, positions = batch.sees.to(device), batch.positions.to(device)
    dtype = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    full = _as_mask(sees, dtype)
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if not window or (kinds and "sliding_attention" not in kinds):
        return full
    near = _as_mask(sees & (positions[:, :, None] - positions[:, None, :] < window), dtype)
    # An architecture that doesn't list its layers' kinds (Mistral) slides in all of them.
    return {"full_attention": full, "sliding_attention": near} if kinds else near


def _as_mask(sees: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # A row of nothing but "unseen" (padding) softmaxes to a uniform row of finite numbers, which nobody reads.
    hidden = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=sees.device)
    return torch.where(sees, torch.zeros((), dtype=dtype, device=sees.device), hidden).unsqueeze(1)
