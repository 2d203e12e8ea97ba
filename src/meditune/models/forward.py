"""A forward pass that computes the output head only where a target is predicted.

With a vocabulary of 49,000 to 262,000 words the head costs more than the rest of a small model; a PubMedQA row has
some 400 tokens and 60 targets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from meditune.models import virtual
from meditune.models.masks import attention_masks
from meditune.models.rows import Batch


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
    if virtual.virtual_tokens(model):
        inputs, shift = virtual.inputs_of(model, tokens, sees, positions)
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
