"""Continuous batching on this package's own decoder: prompts join and answers leave between any two steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from meditune.engines.answer import Answer
from meditune.engines.choices import Choices
from meditune.engines.engine import Job
from meditune.engines.json_answers import JsonAnswer, Schemas
from meditune.engines.sampling import Wish, generator_of, next_tokens
from meditune.errors import ModelError
from meditune.models.continuing import cached_tokens
from meditune.models.decoder import READ_TOKENS, Decoder
from meditune.models.inference import inference
from meditune.models.load import LoadedModel
from meditune.models.prefixes import WORTH, Prefixes, shared


class TransformersBatch:
    """Up to `at_once` answers of a loaded model, fewer where they are long (worker.py calls it)."""

    def __init__(self, loaded: LoadedModel, ends: Sequence[int], at_once: int) -> None:
        self.loaded, self.ends, self.at_once = loaded, frozenset(ends), at_once
        self.most_tokens = cached_tokens(loaded.model)
        self.running: list[Answer] = []
        self._wishes: list[tuple[torch.Generator | None, Choices | JsonAnswer | None]] = []
        self.schemas = Schemas(loaded.tokenizer, ends)
        self.prefixes = Prefixes()
        self.decoder = self._decoder()

    @contextmanager
    def inside(self) -> Iterator[None]:
        """No gradients, and the faster products."""
        with inference(self.loaded.model, few_rows=True):
            yield

    def chosen(self, waiting: deque[Answer]) -> list[Answer]:
        """Those that have waited longest, as many as one pass reads and as there is memory for.

        One that begins like another of them waits for the next pass, which needn't read that beginning again.
        """
        taken: list[Answer] = []
        longest = max((_most(answer.job) for answer in self.running), default=0)
        to_read = 0
        while waiting and len(self.running) + len(taken) < self.at_once:
            job = waiting[0].job
            known = self.prefixes.longest(job.prompt)[0]
            longest, to_read = max(longest, _most(job)), max(to_read, len(job.prompt) - known)
            count = len(taken) + 1
            if len(self.running) + count > 1 and (len(self.running) + count) * longest > self.most_tokens:
                break
            if taken and (count * to_read > READ_TOKENS or _alike(job, taken) >= known + WORTH):
                break
            taken.append(waiting.popleft())
        return taken

    def join(self, answers: list[Answer]) -> None:
        """Read prompts and choose the first tokens."""
        first = len(self.running)
        for answer in answers:
            answer.cached = self.prefixes.longest(answer.job.prompt)[0]
        logits = self.decoder.read([answer.job.prompt for answer in answers])
        self.running += answers
        for answer in answers:
            self._wishes.append((generator_of(answer.job), self._held_to(answer.job)))
        self._add(logits, first)

    def step(self) -> None:
        """One more token of every answer."""
        self._leave()
        if self.running:
            self._add(self.decoder.step([answer.tokens[-1] for answer in self.running]), 0)
            self._leave()

    def clear(self) -> None:
        """Forget everything that runs."""
        self.running, self._wishes = [], []
        self.decoder = self._decoder()

    def _decoder(self) -> Decoder:
        return Decoder(self.loaded.model, self.loaded.pad_id, 1, self.prefixes)

    def _held_to(self, job: Job) -> Choices | JsonAnswer | None:
        if job.json_schema is not None:
            return self.schemas.answer(job.json_schema)
        return Choices(self.loaded.tokenizer, job.choices, min(self.ends)) if job.choices else None

    def _add(self, logits: torch.Tensor, first: int) -> None:
        wishes = [
            Wish(answer.job, generator, held.allowed() if held else None)
            for answer, (generator, held) in zip(self.running[first:], self._wishes[first:], strict=True)
        ]
        for number, found in enumerate(next_tokens(logits, wishes), first):
            answer, held = self.running[number], self._wishes[number][1]
            if found is None:
                answer.fail(ModelError(f"{self.loaded.name} gives numbers that aren't finite on this prompt."))
                continue
            token, likely = found
            if token in self.ends:
                answer.end()
                continue
            answer.take(token, likely)
            if held:
                held.take(token)
                if held.complete:
                    answer.end()

    def _leave(self) -> None:
        """Let go of what has ended or was cancelled; what was read of it may be the beginning of another prompt."""
        for number in reversed(range(len(self.running))):
            answer = self.running[number]
            if answer.cancelled:
                answer.end("cancelled")
            if not answer.ended:
                continue
            if not self.decoder.virtual:
                read = [*answer.job.prompt, *answer.tokens][: self.decoder.lengths[number]]
                self.decoder.remember(number, read)
            self.decoder.drop(number)
            self.running[number], self._wishes[number] = self.running[-1], self._wishes[-1]
            self.running.pop()
            self._wishes.pop()
        if not self.running:
            self.decoder.slots.clear()


def _most(job: Job) -> int:
    return len(job.prompt) + job.max_new_tokens


def _alike(job: Job, others: Sequence[Answer]) -> int:
    """The most tokens with which this prompt begins like one of the others."""
    ids = np.asarray(job.prompt)
    return max(shared(ids, np.asarray(other.job.prompt)) for other in others)
