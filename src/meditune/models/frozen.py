"""What the frozen layers below the trained ones say about a row, computed once and remembered.

Where only the top layers are trained or adapted (`model.top_layers`), the layers below give the same hidden states in
every epoch, and for the tuned model the same as for the base. A row's second visit then costs the top layers only.
The result is that of the whole model (a test holds it so); a row takes tokens * hidden size * 2 bytes in BF16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from meditune.models.forward import Predicted, predict
from meditune.models.rows import Batch, Row, collate

Key = tuple[tuple[int, ...], tuple[int, ...]]


class FrozenLayers:
    """Predicts rows with a model whose lowest `count` layers never change; 0 remembers nothing."""

    def __init__(self, model: Any, count: int, max_gb: float = 2.0) -> None:
        self.blocks = blocks_of(model)[:count]
        self.max_bytes = max_gb * 1e9
        self.bytes = 0
        self._kept: dict[Key, torch.Tensor] = {}
        self._as_tuple = False

    def predict(self, model: Any, rows: Sequence[Row], pad_id: int, logits: bool = True) -> tuple[Batch, Predicted]:
        """As `models.forward.predict`, for the batch of these rows."""
        batch = collate(rows, pad_id)
        if not self.blocks:
            return batch, predict(model, batch, logits)
        keys = [(tuple(row.tokens), tuple(row.positions)) for row in rows]
        if all(key in self._kept for key in keys):
            with self._given([self._kept[key] for key in keys], batch.tokens.shape[1]):
                return batch, predict(model, batch, logits)
        with self._remembering(keys, rows):
            return batch, predict(model, batch, logits)

    def without_dropout(self, model: Any) -> None:
        """Switch dropout off wherever it acts below the trained layers; what is remembered must not be noise."""
        if not self.blocks:
            return
        above = {id(part) for block in blocks_of(model)[len(self.blocks) :] for part in block.modules()}
        for part in model.modules():
            if isinstance(part, torch.nn.Dropout) and id(part) not in above:
                part.eval()
        for block in self.blocks:
            # Attention asks itself whether it is in training; a block itself does so for checkpointing.
            for child in block.children():
                child.eval()

    @contextmanager
    def _remembering(self, keys: Sequence[Key], rows: Sequence[Row]) -> Iterator[None]:
        def keep(_: torch.nn.Module, __: Any, output: Any) -> None:
            self._as_tuple = isinstance(output, tuple)
            hidden = (output[0] if self._as_tuple else output).detach()
            for index, (key, row) in enumerate(zip(keys, rows, strict=True)):
                size = len(row) * hidden.shape[-1] * hidden.element_size()
                if key not in self._kept and self.bytes + size <= self.max_bytes:
                    self._kept[key] = hidden[index, : len(row)].clone()
                    self.bytes += size

        hook = self.blocks[-1].register_forward_hook(keep)
        try:
            yield
        finally:
            hook.remove()

    @contextmanager
    def _given(self, kept: Sequence[torch.Tensor], length: int) -> Iterator[None]:
        """Let the frozen layers answer from memory: the last gives what was kept, those below do nothing."""
        hidden = torch.nn.utils.rnn.pad_sequence(list(kept), batch_first=True)
        assert hidden.shape[1] == length

        def nothing(states: torch.Tensor, *_: Any, **__: Any) -> Any:
            return (states,) if self._as_tuple else states

        def remembered(*_: Any, **__: Any) -> Any:
            return (hidden,) if self._as_tuple else hidden

        with ExitStack() as afterwards:
            for block in self.blocks[:-1]:
                afterwards.enter_context(answering(block, nothing))
            afterwards.enter_context(answering(self.blocks[-1], remembered))
            yield


@contextmanager
def answering(module: torch.nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Inside the block `forward` stands in for the module's own, or for what stood in for it before."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


def blocks_of(model: Any) -> list[Any]:
    """The model's layers, from the input to the output."""
    count = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return list(module)
    return []


def frozen_count(model: Any, top_layers: int | None) -> int:
    """How many of the lowest layers stay as they are when only the `top_layers` highest are trained (None: all)."""
    return max(0, len(blocks_of(model)) - top_layers) if top_layers else 0
