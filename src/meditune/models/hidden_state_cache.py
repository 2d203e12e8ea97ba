"""A cache of hidden states for models that train only their top layers (`model.top_layers`).

The frozen layers below the trained layers run only once for each row. Their output is cached, so every later pass over
the row runs only the trained layers. A test checks that the results are the same. The rounding of a matrix product
depends on the shape of the batch, so `group` decides in advance which rows share a batch. A resumed run therefore
computes the same states as an uninterrupted run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch

from meditune.models.forward import Predicted, predict, skips_padding
from meditune.models.shared_prefix_batch import Batch, Row, by_length, collate
from meditune.progress import Progress

Key = tuple[tuple[int, ...], tuple[int, ...]]


class HiddenStateCache:
    """A cache for a model whose lowest `count` layers never change. If `count` is 0, nothing is cached."""

    def __init__(self, model: Any, count: int, max_gb: float = 2.0) -> None:
        self.blocks, self._above = blocks_of(model)[:count], blocks_of(model)[count:]
        self.max_bytes = max_gb * 1e9
        self.bytes = 0
        """Size in bytes of the cached rows, and of the rows for which `group` has reserved memory"""
        self._kept: dict[Key, torch.Tensor] = {}
        self._groups: dict[Key, list[Row]] = {}
        self._as_tuple = False
        self._token_bytes = 0
        if self.blocks:
            embedding = model.get_input_embeddings().weight
            self._token_bytes = model.config.get_text_config().hidden_size * embedding.element_size()

    def group(self, rows: Sequence[Row], max_tokens: int) -> None:
        """Divide `rows` into fixed batches. When a row is first needed, all rows of its batch are computed and cached.

        A batch has up to `max_tokens` tokens including padding, or a single longer row. If `rows` and the rows that are
        already cached would together exceed `max_bytes`, the cached rows are dropped first. If `rows` alone exceed
        `max_bytes`, the shortest rows aren't cached.
        """
        if not self.blocks:
            return
        unique = list({_key(row): row for row in rows}.values())
        self._groups = {}
        for row in unique:
            self._kept.pop(_key(row), None)  # computed in another batch, so rounded differently
        self.bytes = sum(len(cached) * self._token_bytes for cached in self._kept.values())
        if self.bytes + sum(map(self._size, unique)) > self.max_bytes:
            self.forget()
        for indices in by_length(unique, max_tokens):
            batch = [unique[index] for index in indices]
            size = sum(map(self._size, batch))
            if self.bytes + size > self.max_bytes:
                # Mark the cache as full: which rows are cached must not depend on the order in which they are used.
                self.bytes = int(self.max_bytes)
                return
            self.bytes += size
            self._groups |= {_key(row): batch for row in batch}

    def fill(self, model: Any, pad_id: int) -> None:
        """Compute and cache the states of all batches of `group` now, with a progress bar.

        Otherwise, early training steps would compute most of them, and the time left would be overestimated.
        """
        batches = list({id(batch): batch for key, batch in self._groups.items() if key not in self._kept}.values())
        if batches:
            with Progress("Frozen layers", sum(len(row) for batch in batches for row in batch), "tokens") as progress:
                for batch in batches:
                    self._compute(model, batch, pad_id)
                    progress.advance(sum(map(len, batch)))

    def forget(self) -> None:
        """Clear the cache, and forget the batches that `group` fixed."""
        self._kept, self._groups, self.bytes = {}, {}, 0

    def predict(self, model: Any, rows: Sequence[Row], pad_id: int, logits: bool = True) -> tuple[Batch, Predicted]:
        """Return the rows as a batch, and the same predictions as `models.forward.predict`; use and fill the cache."""
        batch = collate(rows, pad_id)
        if not self.blocks:
            return batch, predict(model, batch, logits)
        unpadded = skips_padding(model, batch)
        keys = [_key(row) for row in rows]
        if all(key in self._kept or key in self._groups for key in keys):
            for key in keys:
                if key not in self._kept:
                    self._compute(model, self._groups[key], pad_id)
            with self._given([self._kept[key] for key in keys], unpadded):
                return batch, predict(model, batch, logits)
        with self._remembering(rows):
            return batch, predict(model, batch, logits)

    def without_dropout(self, model: Any) -> None:
        """Turn off dropout below the trained layers, so that cached states contain no noise."""
        if self.blocks:
            turn_off_dropout(model, len(self.blocks))

    def _size(self, row: Row) -> int:
        return len(row) * self._token_bytes

    @torch.no_grad()
    def _compute(self, model: Any, rows: Sequence[Row], pad_id: int) -> None:
        """Compute and cache the states of all rows in one fixed batch, without running the trained layers."""
        batch = collate(rows, pad_id)
        # The first time, this runs the model, which must happen before a layer is replaced.
        skips_padding(model, batch)
        with ExitStack() as afterwards:
            afterwards.enter_context(self._remembering(rows, grouped=True))
            for block in self._above:
                afterwards.enter_context(replayed(block, self._passed_on))
            predict(model, batch, logits=False)

    @contextmanager
    def _remembering(self, rows: Sequence[Row], grouped: bool = False) -> Iterator[None]:
        """Inside the block, cache the states of the rows that the model reads.

        If `grouped` is true, only rows in a batch of `group` are cached; otherwise, only rows outside these batches.
        """

        def keep(_: torch.nn.Module, __: Any, output: Any) -> None:
            self._as_tuple = isinstance(output, tuple)
            hidden = (output[0] if self._as_tuple else output).detach()
            # Without padding, all rows are in one row.
            each = hidden if len(hidden) == len(rows) else hidden[0].split([len(row) for row in rows])
            for states, row in zip(each, rows, strict=True):
                key, size = _key(row), self._size(row)
                if key in self._kept or (key in self._groups) != grouped:
                    continue
                if grouped or self.bytes + size <= self.max_bytes:
                    self._kept[key] = states[: len(row)].clone()
                    self.bytes += 0 if grouped else size

        hook = self.blocks[-1].register_forward_hook(keep)
        try:
            yield
        finally:
            hook.remove()

    @contextmanager
    def _given(self, cached: Sequence[torch.Tensor], unpadded: bool) -> Iterator[None]:
        """Inside the block, make the last frozen layer return cached states, and skip the layers below it."""
        states = list(cached)
        hidden = torch.cat(states)[None] if unpadded else torch.nn.utils.rnn.pad_sequence(states, batch_first=True)
        with ExitStack() as afterwards:
            for block in self.blocks[:-1]:
                afterwards.enter_context(replayed(block, self._passed_on))
            afterwards.enter_context(replayed(self.blocks[-1], partial(self._passed_on, hidden)))
            yield

    def _passed_on(self, states: torch.Tensor, *_: Any, **__: Any) -> Any:
        """Return the states as a layer would; this replaces the forward method of a layer that is skipped."""
        return (states,) if self._as_tuple else states


def _key(row: Row) -> Key:
    return tuple(row.tokens), tuple(row.positions)


@contextmanager
def replayed(module: torch.nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Inside the block, use `forward` as the module's forward method; such blocks can be nested."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


def turn_off_dropout(model: Any, layers: int | None = None) -> None:
    """Turn off dropout in the lowest `layers` layers and outside of the layers; None: in all layers."""
    blocks = blocks_of(model)
    affected = blocks[:layers]
    above = {id(part) for block in blocks[len(affected) :] for part in block.modules()}
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout) and id(part) not in above:
            part.eval()
    for block in affected:
        # Attention reads the training flag of its own module. The block itself keeps its flag, because gradient
        # checkpointing depends on that flag.
        for child in block.children():
            child.eval()


def blocks_of(model: Any) -> list[Any]:
    """Return the layers of the model's text decoder, lowest first; empty if they aren't found."""
    count = model.config.get_text_config().num_hidden_layers
    for module in model.get_decoder().modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return list(module)
    return []


def frozen_count(model: Any, top_layers: int | None) -> int:
    """Return the number of frozen layers whose output can be cached if only the top `top_layers` layers are trained.

    It is 0 if `top_layers` is None, or if upper layers use the keys and values of lower layers (Gemma 3n, Gemma 4 E2B).
    """
    if not top_layers or getattr(model.config.get_text_config(), "num_kv_shared_layers", None):
        return 0
    return max(0, len(blocks_of(model)) - top_layers)
