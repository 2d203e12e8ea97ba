"""A model run one layer at a time over calibration text, so that each layer sees what the pruned ones below it say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from meditune.models.frozen import blocks_of
from meditune.models.masks import attention_masks
from meditune.models.rows import Row, by_length, collate
from meditune.progress import track


@dataclass
class Passage:
    """One batch on its way through the layers. B rows, T tokens in the longest."""

    hidden: torch.Tensor
    """(B, T, hidden size), what goes into the next layer"""
    real: torch.Tensor
    """(B, T), false at padding"""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]
    """For each layer, what else it is called with: masks, positions"""

    def after(self, layers: Sequence[Any], number: int) -> torch.Tensor:
        """What that layer makes of the hidden states, (B, T, hidden size)."""
        positional, named = self.calls[number]
        output = layers[number](self.hidden, *positional, **named)
        found: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return found


def passages(model: Any, rows: Sequence[Row], pad_id: int, batch_tokens: int) -> list[Passage]:
    """The rows in batches of at most `batch_tokens` tokens, before the lowest layer; dropout must be off."""
    device = next(model.parameters()).device
    made = []
    for indices in track(by_length(rows, batch_tokens), "Calibration text", unit="batches"):
        chosen = [rows[index] for index in indices]
        batch = collate(chosen, pad_id)
        tokens, sees, positions = batch.tokens.to(device), batch.sees.to(device), batch.positions.to(device)
        lengths = torch.tensor([len(row) for row in chosen], device=device)
        with torch.no_grad(), _calls_kept(blocks_of(model)) as (first, calls):
            model.get_decoder()(
                input_ids=tokens,
                attention_mask=attention_masks(model, sees, positions, positions),
                position_ids=positions,
                use_cache=False,
            )
        real = torch.arange(tokens.shape[1], device=device) < lengths[:, None]
        made.append(Passage(first[0], real, calls))
    return made


@contextmanager
def _calls_kept(layers: Sequence[Any]) -> Iterator[tuple[list[torch.Tensor], list[Any]]]:
    """Gives, after a call of the model in the block, the lowest layer's input and what each layer was called with."""
    first: list[torch.Tensor] = []
    calls: list[Any] = []

    def keep(_: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        if not first:
            first.append(positional[0])
        calls.append((positional[1:], named))

    hooks = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]
    try:
        yield first, calls
    finally:
        for hook in hooks:
            hook.remove()
