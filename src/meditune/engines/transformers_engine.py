"""The plain engine: any model that transformers loads, a base or a tuned one, adapters and virtual tokens included."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from meditune.engines.batching import Batching
from meditune.engines.checks import refuse_unscorable
from meditune.engines.engine import Job, Likely
from meditune.engines.sampling import likely
from meditune.engines.transformers_batch import TransformersBatch
from meditune.errors import ModelError
from meditune.models.context import positions
from meditune.models.forward import label_logits, predict
from meditune.models.inference import tokens_at_once
from meditune.models.load import LoadedModel
from meditune.models.rows import collate, join
from meditune.models.virtual import virtual_tokens
from meditune.prompts import Encoded

SCORED_TOKENS = 1024
"""Tokens that are scored in one pass, between two steps"""
OTHERS = 5
"""Likeliest tokens that are told of each place in a text that is scored"""
UNKNOWN_CONTEXT = 2048
"""Tokens where a model's config doesn't say how many it takes"""


class TransformersEngine(Batching[TransformersBatch]):
    """A loaded model that continues many prompts together."""

    def __init__(self, loaded: LoadedModel, at_once: int = 32) -> None:
        """`at_once` bounds the answers that are written together. Raises ModelError where nothing would end them."""
        self.loaded = loaded
        dtype = str(next(loaded.model.parameters()).dtype).removeprefix("torch.")
        most = positions(loaded.model.config) or UNKNOWN_CONTEXT
        context_tokens = most - virtual_tokens(loaded.model)
        batch = TransformersBatch(loaded, end_tokens(loaded), at_once)
        super().__init__(f"transformers {dtype}", loaded.tokenizer, context_tokens, batch)

    def score(self, prompt: Sequence[int], texts: Sequence[Sequence[int]]) -> list[list[Likely]]:
        """See engine.py. Of each place the five likeliest tokens are told, too."""
        refuse_unscorable(len(prompt), max(map(len, texts), default=0), self.context_tokens)
        scored: list[list[Likely]] = [[] for _ in texts]
        for numbers in _grouped(len(prompt), texts, tokens_at_once(self.loaded.model, SCORED_TOKENS)):
            found = self._worker.call(partial(self._scored, prompt, [texts[one] for one in numbers]))
            for number, likelihoods in zip(numbers, found, strict=True):
                scored[number] = likelihoods
        return scored

    def _refuse(self, job: Job) -> None:
        super()._refuse(job)
        if job.json_schema is not None:
            self._batch.schemas.answer(job.json_schema)

    def _scored(self, prompt: Sequence[int], texts: Sequence[Sequence[int]]) -> list[list[Likely]]:
        row = join([Encoded(str(number), "answer", list(prompt), list(text)) for number, text in enumerate(texts)])
        batch = collate([row], self.loaded.pad_id)
        hidden, logits = predict(self.loaded.model, batch)
        found: list[list[Likely]] = [[] for _ in texts]
        for place, (number, token) in enumerate(zip(row.of, row.targets, strict=True)):
            found[number].append(self._likely(hidden[place], logits[place], token))
        return found

    def _likely(self, hidden: torch.Tensor, logits: torch.Tensor, token: int) -> Likely:
        if logits.dtype == torch.float32 or getattr(self.loaded.model.config, "final_logit_softcapping", None):
            return likely(logits, token, OTHERS)
        # In BF16 the logits of different tokens often tie: those that are told are computed once more, in FP32.
        values = logits.float()
        told = list(dict.fromkeys([token, *values.topk(OTHERS).indices.tolist()]))
        exact = label_logits(self.loaded.model.get_output_embeddings(), hidden, told)
        logprobs = (exact - values.logsumexp(dim=-1)).tolist()
        others = sorted(zip(told, logprobs, strict=True), key=lambda pair: -pair[1])[:OTHERS]
        return Likely(token, logprobs[0], dict(others))


def end_tokens(loaded: LoadedModel) -> list[int]:
    """The tokens that end an answer: the tokenizer's, and those that the model's settings for writing name.

    Raises ModelError where there are none.
    """
    named = getattr(loaded.model.generation_config, "eos_token_id", None)
    named = named if isinstance(named, list) else [named]
    known = [token for token in (loaded.tokenizer.eos_token_id, *named) if token is not None]
    if not known:
        raise ModelError(f"{loaded.name} has no end-of-sequence token, so its answers would never end.")
    return list(dict.fromkeys(known))


def _grouped(prompt: int, texts: Sequence[Sequence[int]], most: int) -> list[list[int]]:
    """Numbers of texts that are read in one row after their prompt, with at most so many tokens or one text."""
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
