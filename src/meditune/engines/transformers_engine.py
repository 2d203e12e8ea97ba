"""The engine for any model that transformers loads, base or tuned, including adapters and virtual tokens.

It batches continuously with Meditune's own decoder: prompts join and answers leave between any two steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch

from meditune.engines.engine import GenerationRequest, TokenLogprob, check_scorable
from meditune.engines.sampling import SamplingParams, random_generator, sample_next_tokens, top_logprobs
from meditune.engines.scheduler import BatchingEngine, ScheduledRequest
from meditune.engines.structured_output import ChoiceConstraint, JsonConstraint, SchemaCompiler
from meditune.errors import ModelError
from meditune.models.forward import label_logits, predict, virtual_tokens
from meditune.models.generation import READ_TOKENS, Decoder, cached_tokens
from meditune.models.inference import inference, tokens_at_once
from meditune.models.kv_cache import WORTH, PrefixCache, shared_prefix
from meditune.models.load import LoadedModel, positions
from meditune.models.shared_prefix_batch import collate, join
from meditune.prompts import Encoded


class TransformersBatch:
    """A batch of up to `at_once` answers of a loaded model, fewer if they are long (called by scheduler.py)."""

    def __init__(self, loaded: LoadedModel, ends: Sequence[int], at_once: int) -> None:
        self.loaded, self.ends, self.at_once = loaded, frozenset(ends), at_once
        self.most_tokens = cached_tokens(loaded.model)
        self.running: list[ScheduledRequest] = []
        self._wishes: list[tuple[torch.Generator | None, ChoiceConstraint | JsonConstraint | None]] = []
        self.schemas = SchemaCompiler(loaded.tokenizer, ends)
        self.prefixes = PrefixCache()
        self.decoder = self._decoder()

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Disable gradients and use the faster products."""
        with inference(self.loaded.model, few_rows=True):
            yield

    def chosen(self, waiting: deque[ScheduledRequest]) -> list[ScheduledRequest]:
        """Take the requests that have waited longest, as many as one pass can read and memory allows.

        A request that shares a prefix with one of them waits for the next pass, which doesn't read that prefix again.
        """
        taken: list[ScheduledRequest] = []
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

    def join(self, answers: list[ScheduledRequest]) -> None:
        """Read the prompts and choose the first tokens."""
        first = len(self.running)
        for answer in answers:
            answer.cached = self.prefixes.longest(answer.job.prompt)[0]
        logits = self.decoder.read([answer.job.prompt for answer in answers])
        self.running += answers
        for answer in answers:
            self._wishes.append((random_generator(answer.job), self._held_to(answer.job)))
        self._add(logits, first)

    def step(self) -> None:
        """Add one token to every answer."""
        self._leave()
        if self.running:
            self._add(self.decoder.step([answer.tokens[-1] for answer in self.running]), 0)
            self._leave()

    def clear(self) -> None:
        """Drop all running answers."""
        self.running, self._wishes = [], []
        self.decoder = self._decoder()

    def _decoder(self) -> Decoder:
        return Decoder(self.loaded.model, self.loaded.pad_id, 1, self.prefixes)

    def _held_to(self, job: GenerationRequest) -> ChoiceConstraint | JsonConstraint | None:
        if job.json_schema is not None:
            return self.schemas.answer(job.json_schema)
        return ChoiceConstraint(self.loaded.tokenizer, job.choices, min(self.ends)) if job.choices else None

    def _add(self, logits: torch.Tensor, first: int) -> None:
        wishes = [
            SamplingParams(answer.job, generator, held.allowed() if held else None)
            for answer, (generator, held) in zip(self.running[first:], self._wishes[first:], strict=True)
        ]
        for number, found in enumerate(sample_next_tokens(logits, wishes), first):
            answer, held = self.running[number], self._wishes[number][1]
            if found is None:
                answer.fail(ModelError(f"{self.loaded.name} gives logits that aren't finite for this prompt."))
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
        """Remove finished and cancelled answers; their tokens stay in the prefix cache for later prompts."""
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


def _most(job: GenerationRequest) -> int:
    return len(job.prompt) + job.max_new_tokens


def _alike(job: GenerationRequest, others: Sequence[ScheduledRequest]) -> int:
    """Return the length of the longest prefix that this prompt shares with one of the others."""
    ids = np.asarray(job.prompt)
    return max(shared_prefix(ids, np.asarray(other.job.prompt)) for other in others)


SCORED_TOKENS = 1024
"""The most tokens that are scored in one pass, between two steps"""
OTHERS = 5
"""Number of most likely tokens returned for each position of a scored text"""
UNKNOWN_CONTEXT = 2048
"""Assumed context length in tokens if the model's config doesn't give it"""


class TransformersEngine(BatchingEngine[TransformersBatch]):
    """A loaded model that continues many prompts together."""

    def __init__(self, loaded: LoadedModel, at_once: int = 32) -> None:
        """Create the engine for at most `at_once` answers at a time. Raises ModelError without an end token."""
        self.loaded = loaded
        dtype = str(next(loaded.model.parameters()).dtype).removeprefix("torch.")
        most = positions(loaded.model.config) or UNKNOWN_CONTEXT
        context_tokens = most - virtual_tokens(loaded.model)
        batch = TransformersBatch(loaded, end_tokens(loaded), at_once)
        super().__init__(f"transformers {dtype}", loaded.tokenizer, context_tokens, batch)

    def score(self, prompt: Sequence[int], texts: Sequence[Sequence[int]]) -> list[list[TokenLogprob]]:
        """See engine.py. The five most likely tokens of each position are returned, too."""
        check_scorable(len(prompt), max(map(len, texts), default=0), self.context_tokens)
        scored: list[list[TokenLogprob]] = [[] for _ in texts]
        for numbers in _grouped(len(prompt), texts, tokens_at_once(self.loaded.model, SCORED_TOKENS)):
            found = self._worker.call(partial(self._scored, prompt, [texts[one] for one in numbers]))
            for number, likelihoods in zip(numbers, found, strict=True):
                scored[number] = likelihoods
        return scored

    def _refuse(self, job: GenerationRequest) -> None:
        super()._refuse(job)
        if job.json_schema is not None:
            self._batch.schemas.answer(job.json_schema)

    def _scored(self, prompt: Sequence[int], texts: Sequence[Sequence[int]]) -> list[list[TokenLogprob]]:
        row = join([Encoded(str(number), "answer", list(prompt), list(text)) for number, text in enumerate(texts)])
        batch = collate([row], self.loaded.pad_id)
        hidden, logits = predict(self.loaded.model, batch)
        found: list[list[TokenLogprob]] = [[] for _ in texts]
        for place, (number, token) in enumerate(zip(row.of, row.targets, strict=True)):
            found[number].append(self._likely(hidden[place], logits[place], token))
        return found

    def _likely(self, hidden: torch.Tensor, logits: torch.Tensor, token: int) -> TokenLogprob:
        if logits.dtype == torch.float32 or getattr(self.loaded.model.config, "final_logit_softcapping", None):
            return top_logprobs(logits, token, OTHERS)
        # In BF16 the logits of different tokens are often equal: those that are returned are computed again in FP32.
        values = logits.float()
        tokens = list(dict.fromkeys([token, *values.topk(OTHERS).indices.tolist()]))
        exact = label_logits(self.loaded.model.get_output_embeddings(), hidden, tokens)
        logprobs = (exact - values.logsumexp(dim=-1)).tolist()
        others = sorted(zip(tokens, logprobs, strict=True), key=lambda pair: -pair[1])[:OTHERS]
        return TokenLogprob(token, logprobs[0], dict(others))


def end_tokens(loaded: LoadedModel) -> list[int]:
    """Return the tokens that end an answer: the tokenizer's, and those in the model's generation config.

    Raises ModelError if there are none.
    """
    named = getattr(loaded.model.generation_config, "eos_token_id", None)
    named = named if isinstance(named, list) else [named]
    known = [token for token in (loaded.tokenizer.eos_token_id, *named) if token is not None]
    if not known:
        raise ModelError(f"{loaded.name} has no end-of-sequence token, so its answers would never end.")
    return list(dict.fromkeys(known))


def _grouped(prompt: int, texts: Sequence[Sequence[int]], most: int) -> list[list[int]]:
    """Return the numbers of the texts in groups for one row each, with at most `most` tokens or a single text."""
    groups: list[list[int]] = []
    room = 0
    for number, text in enumerate(texts):
        if not text:
            continue
        if not groups or len(text) > room:
            groups.append([])
            room = most - prompt
        groups[-1].append(number)
        room -= len(text)
    return groups
