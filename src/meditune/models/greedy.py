"""Greedy decoding of many texts at once: each ends when it ends, and makes room for the next (decoder.py)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from meditune.models.decoder import READ_TOKENS, Decoder


class NotFiniteError(ArithmeticError):
    """Logits that are infinite or no numbers, after the prompt of this number."""

    def __init__(self, prompt: int) -> None:
        self.prompt = prompt
        super().__init__(f"prompt {prompt}")


class Greedy:
    """Continues prompts, at most `at_once` at a time, longest first.

    With `once`, no sequence of so many tokens is written twice in one text (Paulus et al. 2017, arXiv:1705.04304); what
    stands in the prompt may be.
    """

    def __init__(
        self,
        model: Any,
        prompts: Sequence[list[int]],
        more: int,
        end: int | None,
        pad: int,
        at_once: int,
        once: int | None = None,
    ) -> None:
        self.prompts, self.more, self.end, self.once = prompts, more, end, once
        self.waiting = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        self.at_once = min(at_once, len(prompts))
        self.decoder = Decoder(model, pad, self.at_once)
        self.written: list[tuple[int, list[int]]] = []
        """Of each text in the decoder: the prompt's number, and the tokens after it"""

    def texts(self) -> Iterator[tuple[int, list[int]]]:
        """Each prompt's number with the likeliest next tokens, without the end token, as they are finished.

        Raises NotFiniteError where a model's logits aren't finite.
        """
        while self.waiting or self.written:
            if self.waiting and self._has_room():
                self._read()
            else:
                self._add(self.decoder.step([tokens[-1] for _, tokens in self.written]), 0)
            yield from self._finished()

    def _has_room(self) -> bool:
        """Whether so many slots are free that reading new prompts is worth a pass."""
        free = self.at_once - len(self.written)
        if not free or not self.written or free >= len(self.waiting):
            return bool(free)
        return free * len(self.prompts[self.waiting[-1]]) >= READ_TOKENS // 2

    def _read(self) -> None:
        free = self.at_once - len(self.written)
        fitting = max(1, READ_TOKENS // len(self.prompts[self.waiting[-1]]))
        chosen = [self.waiting.pop() for _ in range(min(free, fitting, len(self.waiting)))]
        first = len(self.written)
        self.written += [(index, []) for index in chosen]
        self._add(self.decoder.read([self.prompts[index] for index in chosen]), first)

    def _add(self, logits: torch.Tensor, first: int) -> None:
        """The likeliest token of each row of logits, to the slots from `first` on."""
        if self.once:
            for row, (_, written) in zip(logits, self.written[first:], strict=True):
                row[_said_after(written, self.once)] = -torch.inf
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
            self.decoder.drop(slot)
            self.written[slot] = self.written[-1]
            self.written.pop()
            yield index, tokens[:-1] if ended else tokens


def _said_after(written: list[int], length: int) -> list[int]:
    """The tokens that followed before what now stands at the end, in sequences of this length."""
    last = written[len(written) - length + 1 :]
    return [
        written[place + length - 1]
        for place in range(len(written) - length + 1)
        if written[place : place + length - 1] == last
    ]
