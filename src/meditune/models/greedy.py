"""Greedy decoding of many texts at once.

A step costs a small model about the same for one text as for thirty. transformers' `generate` keeps a batch until its
last text has ended, copies its cache for every token, and pads on the left, which moves a prompt away from virtual
tokens before it. Here a text that has ended makes room for the next prompt, the cache is written in place (slots.py),
and every token has its own position and mask, so a text doesn't depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from meditune.models import virtual
from meditune.models.forward import head_only_at
from meditune.models.masks import attention_masks
from meditune.models.slots import Slots

READ_TOKENS = 1024
"""Tokens of prompts that are read in one forward pass"""


class NotFiniteError(ArithmeticError):
    """Logits that are infinite or no numbers, after the prompt of this number."""

    def __init__(self, prompt: int) -> None:
        self.prompt = prompt
        super().__init__(f"prompt {prompt}")


class Greedy:
    """Continues prompts, at most `at_once` at a time, longest first."""

    def __init__(
        self, model: Any, prompts: Sequence[list[int]], more: int, end: int | None, pad: int, at_once: int
    ) -> None:
        self.model, self.prompts, self.more, self.end, self.pad = model, prompts, more, end, pad
        self.virtual = virtual.virtual_tokens(model)
        self.called = model.get_base_model() if self.virtual else model
        self.device = next(model.parameters()).device
        self.waiting = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        self.slots = Slots(min(at_once, len(prompts)))
        self.written: list[tuple[int, list[int]]] = []
        """Of each slot in use: the prompt's number, and the tokens after it"""

    def texts(self) -> Iterator[tuple[int, list[int]]]:
        """Each prompt's number with the likeliest next tokens, without the end token, as they are finished.

        Raises NotFiniteError where a model's logits aren't finite.
        """
        while self.waiting or self.written:
            if self.waiting and self._has_room():
                self._read()
            else:
                self._step()
            yield from self._finished()

    def _has_room(self) -> bool:
        """Whether so many slots are free that reading new prompts is worth a pass."""
        free = self.slots.count - len(self.written)
        if not free or not self.written or free >= len(self.waiting):
            return bool(free)
        return free * len(self.prompts[self.waiting[-1]]) >= READ_TOKENS // 2

    def _read(self) -> None:
        free = self.slots.count - len(self.written)
        fitting = max(1, READ_TOKENS // len(self.prompts[self.waiting[-1]]))
        chosen = [self.waiting.pop() for _ in range(min(free, fitting, len(self.waiting)))]
        first = len(self.written)
        rows = [torch.tensor(self.prompts[index], device=self.device) for index in chosen]
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.pad)
        size, length = tokens.shape
        positions = torch.arange(length, device=self.device).expand(size, length)
        sees = (positions < lengths[:, None])[:, None, :] & lengths.new_ones(length, length).bool().tril()
        name, shift = virtual.cache_name(self.model), 0
        before = []
        if self.virtual:
            inputs, shift = virtual.inputs_of(self.model, tokens, sees, positions)
            before = [(layer.keys, layer.values) for layer in inputs[name].layers] if name in inputs else []
        else:
            masks = attention_masks(self.model, sees, positions, positions)
            inputs = {"input_ids": tokens, "attention_mask": masks, "position_ids": positions}
        inputs[name] = self.slots.reading(range(first, first + size), before)
        with head_only_at(self.model, torch.arange(size, device=self.device), lengths - 1 + shift):
            logits = self.called(**inputs, use_cache=True).logits[0]
        self.written += [(index, []) for index in chosen]
        self._add(logits, first)

    def _step(self) -> None:
        """One more token for every text."""
        last = torch.tensor([tokens[-1] for _, tokens in self.written], device=self.device)
        places = [self.virtual + len(self.prompts[index]) + len(tokens) - 1 for index, tokens in self.written]
        here = torch.tensor(places, device=self.device)
        self.slots.grow(max(places) + 1)
        keys = torch.arange(self.slots.length, device=self.device).expand(len(places), -1)
        masks = attention_masks(self.model, (keys <= here[:, None])[:, None, :], here[:, None], keys)
        inputs = {"input_ids": last[:, None], "attention_mask": masks, "position_ids": here[:, None]}
        inputs[virtual.cache_name(self.model)] = self.slots.writing(here)
        self._add(self.called(**inputs, use_cache=True).logits[:, -1], 0)

    def _add(self, logits: torch.Tensor, first: int) -> None:
        """The likeliest token of each row of logits, to the slots from `first` on."""
        highest, tokens = logits.max(dim=-1)
        for slot, (sound, token) in enumerate(zip(highest.isfinite().tolist(), tokens.tolist(), strict=True), first):
            index, written = self.written[slot]
            if not sound:
                raise NotFiniteError(index)
            written.append(token)

    def _finished(self) -> Iterator[tuple[int, list[int]]]:
        """Take out what has ended; the last slots' texts move into the gaps."""
        for slot in reversed(range(len(self.written))):
            index, tokens = self.written[slot]
            ended = tokens[-1] == self.end
            if not ended and len(tokens) < self.more:
                continue
            last = len(self.written) - 1
            if slot < last:
                self.slots.move(last, slot)
                self.written[slot] = self.written[last]
            self.written.pop()
            yield index, tokens[:-1] if ended else tokens
