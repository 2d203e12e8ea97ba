"""The engine for any model that transformers loads, base or tuned, including adapters and virtual tokens.

It batches continuously with Meditune's own decoder: between any two steps, new prompts join the batch and finished
answers leave it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch

from meditune.engines.engine import (
    ALTERNATIVES,
    GenerationChunk,
    GenerationRequest,
    RunningGeneration,
    TokenLogprob,
    check_scorable,
)
from meditune.engines.sampling import ConstraintCompiler, TokenSampler, top_logprobs
from meditune.engines.scheduler import BatchingEngine, ScheduledRequest, add_tokens
from meditune.errors import ModelError
from meditune.models.forward import label_logits, predict, virtual_tokens
from meditune.models.generation import MIN_PREFIX_TOKENS, Decoder, PrefixCache, cached_tokens, shared_prefix
from meditune.models.inference import inference, tokens_per_pass
from meditune.models.load import LoadedModel, positions
from meditune.models.shared_prefix_batch import collate, join
from meditune.prompts import Encoded

SCORED_TOKENS = 1024
"""Maximum number of tokens that are scored in one pass, between two steps"""
UNKNOWN_CONTEXT = 2048
"""Assumed context length in tokens if the model's config doesn't specify it"""


class TransformersEngine(BatchingEngine):
    """A loaded model that continues many prompts together."""

    def __init__(self, loaded: LoadedModel, concurrency: int = 32) -> None:
        """Create the engine for at most `concurrency` answers at a time. Raises ModelError if it has no end token."""
        self.loaded = loaded
        ends = loaded.end_ids()
        self.ends, self.constraints = frozenset(ends), ConstraintCompiler(loaded.tokenizer, ends)
        self.most_tokens = cached_tokens(loaded.model)
        self.prefixes = PrefixCache()
        self.decoder = self._decoder()
        dtype = str(next(loaded.model.parameters()).dtype).removeprefix("torch.")
        context_tokens = (positions(loaded.model.config) or UNKNOWN_CONTEXT) - virtual_tokens(loaded.model)
        super().__init__(f"transformers {dtype}", loaded.tokenizer, context_tokens, concurrency)

    def start(self, request: GenerationRequest, deliver: Callable[[GenerationChunk], None]) -> RunningGeneration:
        """See engine.py."""
        self._check_tokens(request.prompt)
        return super().start(request, deliver)

    def score(self, prompt: Sequence[int], texts: Sequence[Sequence[int]]) -> list[list[TokenLogprob]]:
        """See engine.py. Running answers continue between groups of texts."""
        check_scorable(prompt, texts, self.context_tokens)
        for text in (prompt, *texts):
            self._check_tokens(text)
        scored: list[list[TokenLogprob]] = [[] for _ in texts]
        for numbers in _grouped(len(prompt), texts, tokens_per_pass(self.loaded.model, SCORED_TOKENS)):
            found = self._call(partial(self._score, prompt, [texts[one] for one in numbers]))
            for number, logprobs in zip(numbers, found, strict=True):
                scored[number] = logprobs
        return scored

    def _check_tokens(self, text: Sequence[int]) -> None:
        """Raise ModelError for a token without an embedding, with which a GPU could no longer be used."""
        size, largest = self.loaded.model.get_input_embeddings().num_embeddings, max(text, default=0)
        if largest >= size:
            raise ModelError(f"The text contains token {largest}, but this model knows only the tokens below {size}.")

    @contextmanager
    def _inside(self) -> Iterator[None]:
        with inference(self.loaded.model, small_batches=True):
            yield

    def _chosen(self) -> list[ScheduledRequest]:
        """Take the requests that have waited longest from the queue: as many as one pass can read and memory allows.

        A request that shares a prefix with one of these waits for the next pass, which won't need to read the prefix
        again.
        """
        taken: list[ScheduledRequest] = []
        longest = max((_most(answer.request) for answer in self.running), default=0)
        to_read = 0
        while self._waiting and len(self.running) + len(taken) < self.concurrency:
            request = self._waiting[0].request
            known = self.prefixes.longest(request.prompt)[0]
            longest, to_read = max(longest, _most(request)), max(to_read, len(request.prompt) - known)
            count = len(taken) + 1
            if len(self.running) + count > 1 and (len(self.running) + count) * longest > self.most_tokens:
                break
            if taken and (
                count * to_read > self.decoder.read_tokens
                or _shared_prefix_length(request, taken) >= known + MIN_PREFIX_TOKENS
            ):
                break
            taken.append(self._waiting.popleft())
        return taken

    def _join(self, answers: list[ScheduledRequest]) -> None:
        for answer in answers:
            answer.cached = self.prefixes.longest(answer.request.prompt)[0]
            answer.sampler = TokenSampler(answer.request, answer.constraint)
        logits = self.decoder.read([answer.request.prompt for answer in answers])
        self.running += answers
        add_tokens(logits, answers, self.ends)

    def _step(self) -> None:
        self._leave()
        if self.running:
            logits = self.decoder.step([answer.tokens[-1] for answer in self.running])
            add_tokens(logits, self.running, self.ends)
            self._leave()

    def _clear(self) -> None:
        super()._clear()
        self.decoder = self._decoder()

    def _decoder(self) -> Decoder:
        return Decoder(self.loaded.model, self.loaded.pad_id, 1, self.prefixes)

    def _score(self, prompt: Sequence[int], texts: Sequence[Sequence[int]]) -> list[list[TokenLogprob]]:
        """Return the log-probabilities of all texts, read in one pass."""
        row = join([Encoded(str(number), "answer", list(prompt), list(text)) for number, text in enumerate(texts)])
        hidden, logits = predict(self.loaded.model, collate([row], self.loaded.pad_id))
        found: list[list[TokenLogprob]] = [[] for _ in texts]
        for place, (number, token) in enumerate(zip(row.of, row.targets, strict=True)):
            found[number].append(self._logprob(hidden[place], logits[place], token))
        return found

    def _logprob(self, hidden: torch.Tensor, logits: torch.Tensor, token: int) -> TokenLogprob:
        if logits.dtype == torch.float32:
            return top_logprobs(logits, token, ALTERNATIVES)
        # In BF16, different tokens often have equal logits, so logits that are returned are computed again in FP32.
        values = logits.float()
        tokens = list(dict.fromkeys([token, *values.topk(ALTERNATIVES).indices.tolist()]))
        exact = label_logits(self.loaded.model, hidden, tokens)
        logprobs = (exact - values.logsumexp(dim=-1)).tolist()
        others = sorted(zip(tokens, logprobs, strict=True), key=lambda pair: -pair[1])[:ALTERNATIVES]
        return TokenLogprob(token, logprobs[0], dict(others))

    def _leave(self) -> None:
        """Remove finished and cancelled answers; their tokens stay in the prefix cache for later prompts."""
        for number in reversed(range(len(self.running))):
            answer = self.running[number]
            if answer.cancelled:
                answer.end("cancelled")
            if not answer.ended:
                continue
            if answer.failed:
                # If logits aren't finite, neither are keys and values, which the slot's next text would read.
                self.decoder.slots.erase(number)
            elif not self.decoder.virtual:
                read = [*answer.request.prompt, *answer.tokens][: self.decoder.lengths[number]]
                self.decoder.remember(number, read)
            self.decoder.drop(number)
            self.running[number] = self.running[-1]
            self.running.pop()
        if not self.running:
            self.decoder.slots.clear()


def _most(request: GenerationRequest) -> int:
    return len(request.prompt) + request.max_new_tokens


def _shared_prefix_length(request: GenerationRequest, others: Sequence[ScheduledRequest]) -> int:
    """Return the length of the longest prefix that a request's prompt shares with another prompt."""
    ids = np.asarray(request.prompt)
    return max(shared_prefix(ids, np.asarray(other.request.prompt)) for other in others)


def _grouped(prompt: int, texts: Sequence[Sequence[int]], most: int) -> list[list[int]]:
    """Return the indices of the texts in groups. Each group becomes one row.

    A row has at most `most` tokens, unless it contains a single text. `prompt` is the length of the prompt.
    """
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
