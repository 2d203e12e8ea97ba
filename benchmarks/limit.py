"""The speed of this machine's BF16 matrix products, the limit that training speeds are compared with."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

ROWS = 1024
"""Number of tokens in one chunk of training"""
SQUARE = 2048
ROUNDS, WARM_UP = 15, 3

Shape = tuple[int, int, int]
"""Rows, inputs and outputs of a matrix product"""


def shapes_of(config: Any) -> list[Shape]:
    """Return the shapes of a square product and of the model's own products: attention's, and the MLP's up and down."""
    hidden = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * hidden
    return [(SQUARE, SQUARE, SQUARE), (ROWS, hidden, hidden), (ROWS, hidden, inner), (ROWS, inner, hidden)]


def bf16_gflops(shapes: Sequence[Shape], clock: Callable[[], float] = time.perf_counter) -> dict[str, Any]:
    """Return the speeds of BF16 matrix products with all of torch's threads, in 10^9 operations per second.

    `best` is the fastest single product of any shape, `typical` the median of all products, and `by_shape` has both
    for each. Shapes take turns, since a shared machine's speed drifts.
    """
    import torch

    pairs = [
        (torch.randn(rows, inputs, dtype=torch.bfloat16), torch.randn(outputs, inputs, dtype=torch.bfloat16))
        for rows, inputs, outputs in shapes
    ]
    speeds: list[list[float]] = [[] for _ in shapes]
    with torch.inference_mode():
        for number in range(WARM_UP + ROUNDS):
            for (rows, inputs, outputs), (one, two), found in zip(shapes, pairs, speeds, strict=True):
                started = clock()
                torch.nn.functional.linear(one, two)
                seconds = clock() - started
                if number >= WARM_UP:
                    found.append(2 * rows * inputs * outputs / seconds / 1e9)
    return {
        "best": round(max(map(max, speeds))),
        "typical": round(statistics.median(speed for found in speeds for speed in found)),
        "by_shape": {
            " x ".join(map(str, shape)): {"best": round(max(found)), "typical": round(statistics.median(found))}
            for shape, found in zip(shapes, speeds, strict=True)
        },
        "threads": torch.get_num_threads(),
    }
