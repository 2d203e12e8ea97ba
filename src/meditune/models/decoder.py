"""Texts that are continued side by side: each is read once, then one more token of every text is one forward pass.

A step costs a small model about the same for one text as for thirty. transformers' `generate` keeps a batch until its
last text has ended, copies its cache for every token, and pads on the left, which moves a prompt away from virtual
tokens before it. Here a text that has ended makes room for another at any time, the cache is written in place
(slots.py), and every token has its own position and mask, so a text doesn't depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from meditune.models import virtual
from meditune.models.forward import head_only_at
from meditune.models.masks import attention_masks
from meditune.models.prefixes import Prefixes
from meditune.models.slots import Pairs, Slots

READ_TOKENS = 1024
"""Tokens of prompts that are read in one forward pass"""


class Decoder:
    """Continues texts in the order of `lengths`; whoever calls it says with which tokens."""

    def __init__(self, model: Any, pad: int, count: int = 1, prefixes: Prefixes | None = None) -> None:
        """`count` texts have room from the start. With `prefixes`, beginnings that were read before aren't again."""
        self.model, self.pad = model, pad
        self.virtual = virtual.virtual_tokens(model)
        self.called = model.get_base_model() if self.virtual else model
        self.device = next(model.parameters()).device
        self.slots = Slots(count)
        self.lengths: list[int] = []
        """Tokens of each text so far, virtual ones included"""
        self.prefixes = None if self.virtual else prefixes

    def read(self, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Read whole texts, which come after those there are; the (N, vocabulary) logits of their next tokens."""
        first = len(self.lengths)
        self.slots.grow(0, first + len(texts))
        starts = [self._recall(slot, text) for slot, text in enumerate(texts, first)]
        if not any(starts) and (self.virtual or max(map(len, texts)) <= READ_TOKENS):
            logits = self._read(texts, first)
        else:
            logits = self._read_on(texts, starts, first)
        self.lengths += [self.virtual + len(text) for text in texts]
        for slot, text in enumerate(texts, first):
            self.remember(slot, text)
        return logits

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """One more token of every text; the (N, vocabulary) logits of those after them."""
        last = torch.tensor(tokens, device=self.device)
        here = torch.tensor(self.lengths, device=self.device)
        self.slots.grow(max(self.lengths) + 1)
        keys = torch.arange(self.slots.length, device=self.device).expand(len(tokens), -1)
        masks = attention_masks(self.model, (keys <= here[:, None])[:, None, :], here[:, None], keys)
        inputs = {"input_ids": last[:, None], "attention_mask": masks, "position_ids": here[:, None]}
        inputs[virtual.cache_name(self.model)] = self.slots.writing(here)
        logits: torch.Tensor = self.called(**inputs, use_cache=True).logits[:, -1]
        self.lengths = [length + 1 for length in self.lengths]
        return logits

    def drop(self, number: int) -> None:
        """A text has ended: the last one takes its number."""
        last = len(self.lengths) - 1
        if number < last:
            self.slots.move(last, number)
            self.lengths[number] = self.lengths[last]
        self.lengths.pop()

    def remember(self, number: int, text: Sequence[int]) -> None:
        """Keep the keys and values of a text that is being continued, of which `text` are the tokens read so far."""
        if self.prefixes and not self.prefixes.has(text):
            self.prefixes.keep(text, self.slots.copied(number, len(text)))

    def _recall(self, slot: int, text: Sequence[int]) -> int:
        """How many of a text's first tokens were read before; they are put into its slot."""
        start, pairs = self.prefixes.longest(text) if self.prefixes else (0, [])
        if start:
            self.slots.put(slot, pairs)
        return start

    def _read(self, texts: Sequence[Sequence[int]], first: int) -> torch.Tensor:
        tokens, lengths = self._padded(texts)
        size, length = tokens.shape
        positions = torch.arange(length, device=self.device).expand(size, length)
        sees = (positions < lengths[:, None])[:, None, :] & lengths.new_ones(length, length).bool().tril()
        name, shift = virtual.cache_name(self.model), 0
        before: Pairs = []
        if self.virtual:
            inputs, shift = virtual.inputs_of(self.model, tokens, sees, positions)
            before = [(layer.keys, layer.values) for layer in inputs[name].layers] if name in inputs else []
        else:
            masks = attention_masks(self.model, sees, positions, positions)
            inputs = {"input_ids": tokens, "attention_mask": masks, "position_ids": positions}
        inputs[name] = self.slots.reading(range(first, first + size), before)
        return self._last_logits(inputs, lengths - 1 + shift)

    def _read_on(self, texts: Sequence[Sequence[int]], starts: list[int], first: int) -> torch.Tensor:
        """Read texts from these places on; long ones in pieces, or memory would grow with the square."""
        while (longest := max(len(text) - start for text, start in zip(texts, starts, strict=True))) > READ_TOKENS:
            ends = [
                start + READ_TOKENS if len(text) - start == longest else start
                for text, start in zip(texts, starts, strict=True)
            ]
            for number, (text, start, end) in enumerate(zip(texts, starts, ends, strict=True)):
                if end > start:
                    self._go_on([text[start:end]], [start], first + number)
            starts = ends
        rest = [text[start:] for text, start in zip(texts, starts, strict=True)]
        return self._go_on(rest, starts, first)

    def _go_on(self, pieces: Sequence[Sequence[int]], starts: list[int], first: int) -> torch.Tensor:
        """Read on in the slots from `first` on, which hold so many tokens; logits as of `read`."""
        tokens, lengths = self._padded(pieces)
        self.slots.grow(max(start + len(piece) for start, piece in zip(starts, pieces, strict=True)))
        begin = torch.tensor(starts, device=self.device)
        columns = torch.arange(tokens.shape[1], device=self.device).expand(tokens.shape)
        # What pads the rows goes nowhere, and has the place of the text's last token.
        positions = begin[:, None] + torch.minimum(columns, lengths[:, None] - 1)
        keys = torch.arange(self.slots.length, device=self.device).expand(len(pieces), -1)
        masks = attention_masks(self.model, keys[:, None, :] <= positions[:, :, None], positions, keys)
        inputs = {"input_ids": tokens, "attention_mask": masks, "position_ids": positions}
        inputs[virtual.cache_name(self.model)] = self.slots.going_on(first, starts, lengths.tolist())
        return self._last_logits(inputs, lengths - 1)

    def _padded(self, texts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, longest) token ids and their (N,) lengths."""
        rows = [torch.tensor(text, device=self.device) for text in texts]
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.pad), lengths

    def _last_logits(self, inputs: dict[str, Any], columns: torch.Tensor) -> torch.Tensor:
        with head_only_at(self.model, torch.arange(len(columns), device=self.device), columns):
            logits: torch.Tensor = self.called(**inputs, use_cache=True).logits[0]
        return logits
