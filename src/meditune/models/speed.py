"""How fast a model reads."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch

from meditune.models.load import LoadedModel
from meditune.models.rows import Row, by_length

SECONDS, LEAST, MOST = 3.0, 5, 10
"""It is measured for so long, with at least and at most so many passes."""


def forward_tokens_per_s(loaded: LoadedModel, rows: Sequence[Row], batch_tokens: int) -> float:
    """Tokens a second (padding not counted) in a forward pass over one batch of the rows: the median of several."""
    chosen = [rows[index] for index in by_length(rows, batch_tokens)[0]]
    tokens = sum(len(row) for row in chosen)
    seconds: list[float] = []
    with torch.inference_mode():
        loaded.frozen.predict(loaded.model, chosen, loaded.pad_id)
        while len(seconds) < LEAST or (sum(seconds) < SECONDS and len(seconds) < MOST):
            started = time.perf_counter()
            loaded.frozen.predict(loaded.model, chosen, loaded.pad_id)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
    return tokens / statistics.median(seconds)
