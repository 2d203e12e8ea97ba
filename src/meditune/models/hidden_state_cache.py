"""A cache of the hidden states that the frozen layers below the trained ones (`model.top_layers`) compute for each row.

From the second pass over a row on, only the top layers are computed. The result is the same (checked by a test). The
rounding of a matrix product depends on the shape of the batch, so `group` fixes the batches: a run that was stopped and
resumed computes the same states as an uninterrupted run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from meditune.models.forward import Predicted, predict
from meditune.models.shared_prefix_batch import Batch, Row, by_length, collate

Key = tuple[tuple[int, ...], tuple[int, ...]]


class HiddenStateCache:
    """A cache for a model whose lowest `count` layers never change. If `count` is 0, nothing is cached."""

    def __init__(self, model: Any, count: int, max_gb: float = 2.0) -> None:
        self.blocks, self._above = blocks_of(model)[:count], blocks_of(model)[count:]
        self.max_bytes = max_gb * 1e9
        self.bytes = 0
        """Size of the cached rows and of the rows for which `group` has reserved memory"""
        self._kept: dict[Key, torch.Tensor] = {}
        self._groups: dict[Key, list[Row]] = {}
        self._as_tuple = False
        self._token_bytes = 0
        if self.blocks:
            embedding = model.get_input_embeddings().weight
            self._token_bytes = model.config.get_text_config().hidden_size * embedding.element_size()

    def group(self, rows: Sequence[Row], max_tokens: int) -> None:
        """Divide `rows` into fixed batches: when a row is first needed, its whole batch is computed and cached.

        A batch has up to `max_tokens` tokens, including padding. If there isn't enough memory for these rows and the
        cached ones, the cached ones are dropped. Rows beyond `max_bytes`, the shortest ones, aren't cached.
        """
        if not self.blocks:
            return
        unique = list({_key(row): row for row in rows}.values())
        self._groups = {}
        for row in unique:
            self._kept.pop(_key(row), None)  # it was computed in another batch
        self.bytes = sum(len(cached) * self._token_bytes for cached in self._kept.values())
        if self.bytes + sum(map(self._size, unique)) > self.max_bytes:
            self.forget()
        for indices in by_length(unique, max_tokens):
            batch = [unique[index] for index in indices]
            size = sum(map(self._size, batch))
            if self.bytes + size > self.max_bytes:
                # What is cached must not depend on the order in which rows are used, so no other rows are cached.
                self.bytes = int(self.max_bytes)
                return
            self.bytes += size
            self._groups |= {_key(row): batch for row in batch}

    def forget(self) -> None:
        """Clear the cache and the batches of `group`."""
        self._kept, self._groups, self.bytes = {}, {}, 0

    def predict(self, model: Any, rows: Sequence[Row], pad_id: int, logits: bool = True) -> tuple[Batch, Predicted]:
        """Return the batch of these rows and the prediction that `models.forward.predict` computes for it."""
        batch = collate(rows, pad_id)
        if not self.blocks:
            return batch, predict(model, batch, logits)
        keys = [_key(row) for row in rows]
        if all(key in self._kept or key in self._groups for key in keys):
            for key in keys:
                if key not in self._kept:
                    self._compute(model, self._groups[key], pad_id)
            with self._given([self._kept[key] for key in keys], batch.tokens.shape[1]):
                return batch, predict(model, batch, logits)
        with self._remembering(rows):
            return batch, predict(model, batch, logits)

    def without_dropout(self, model: Any) -> None:
        """Turn off dropout below the trained layers, so that cached states contain no noise."""
        if not self.blocks:
            return
        above = {id(part) for block in blocks_of(model)[len(self.blocks) :] for part in block.modules()}
        for part in model.modules():
            if isinstance(part, torch.nn.Dropout) and id(part) not in above:
                part.eval()
        for block in self.blocks:
            # Attention has its own training mode. A block keeps its mode, on which gradient checkpointing depends.
            for child in block.children():
                child.eval()

    def _size(self, row: Row) -> int:
        return len(row) * self._token_bytes

    @torch.no_grad()
    def _compute(self, model: Any, rows: Sequence[Row], pad_id: int) -> None:
        """Compute and cache the rows of one group, without running the layers above the frozen ones."""

        def passed_on(states: torch.Tensor, *_: Any, **__: Any) -> Any:
            return (states,) if self._as_tuple else states

        with ExitStack() as afterwards:
            afterwards.enter_context(self._remembering(rows, grouped=True))
            for block in self._above:
                afterwards.enter_context(replayed(block, passed_on))
            predict(model, collate(rows, pad_id), logits=False)

    @contextmanager
    def _remembering(self, rows: Sequence[Row], grouped: bool = False) -> Iterator[None]:
        """Cache the rows that the model reads inside the block: those of a group if `grouped`, else only the others."""

        def keep(_: torch.nn.Module, __: Any, output: Any) -> None:
            self._as_tuple = isinstance(output, tuple)
            hidden = (output[0] if self._as_tuple else output).detach()
            for index, row in enumerate(rows):
                key, size = _key(row), self._size(row)
                if key in self._kept or (key in self._groups) != grouped:
                    continue
                if grouped or self.bytes + size <= self.max_bytes:
                    self._kept[key] = hidden[index, : len(row)].clone()
                    self.bytes += 0 if grouped else size

        hook = self.blocks[-1].register_forward_hook(keep)
        try:
            yield
        finally:
            hook.remove()

    @contextmanager
    def _given(self, cached: Sequence[torch.Tensor], length: int) -> Iterator[None]:
        """Inside the block, make the last frozen layer return cached states, and the layers below it do nothing."""
        hidden = torch.nn.utils.rnn.pad_sequence(list(cached), batch_first=True)
        assert hidden.shape[1] == length

        def nothing(states: torch.Tensor, *_: Any, **__: Any) -> Any:
            return (states,) if self._as_tuple else states

        def remembered(*_: Any, **__: Any) -> Any:
            return (hidden,) if self._as_tuple else hidden

        with ExitStack() as afterwards:
            for block in self.blocks:
                afterwards.enter_context(replayed(block, remembered if block is self.blocks[-1] else nothing))
            yield


def _key(row: Row) -> Key:
    return tuple(row.tokens), tuple(row.positions)


@contextmanager
def replayed(module: torch.nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace the module's forward method (or its current replacement) by `forward` inside the block."""
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
    """Return the model's layers, from the input to the output."""
    count = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return list(module)
    return []


def frozen_count(model: Any, top_layers: int | None) -> int:
    """Return the number of frozen layers if only the `top_layers` highest layers are trained (None: all layers)."""
    return max(0, len(blocks_of(model)) - top_layers) if top_layers else 0
