"""Distances between questions by their vectors: how new one is, and which ones cover all others."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
"""(n, size), each of length 1"""
Array = NDArray[np.float64]
NEAREST = 5
PIECE = 4096


def nearest(vectors: Vectors, known: Vectors, skip_itself: bool = False) -> tuple[Array, Array]:
    """(n,) one less the mean cosine to the NEAREST known ones, and (n,) the cosine to the nearest.

    With `skip_itself` the vectors are the known ones, and none is its own neighbour.
    """
    count = min(NEAREST, len(known) - skip_itself)
    far, close = np.ones(len(vectors)), np.zeros(len(vectors))
    if count < 1:
        return far, close
    for start in range(0, len(vectors), PIECE):
        cosines = vectors[start : start + PIECE] @ known.T
        if skip_itself:
            rows = np.arange(len(cosines))
            cosines[rows, start + rows] = -np.inf
        top = np.partition(cosines, cosines.shape[1] - count, axis=1)[:, -count:]
        far[start : start + PIECE] = 1 - top.mean(axis=1)
        close[start : start + PIECE] = top.max(axis=1)
    return far, close


def novelty(vectors: Vectors, known: Vectors) -> tuple[Array, Array]:
    """(n,) the share of the known ones that are nearer to the others than each vector is, and (n,) its best cosine."""
    own = np.sort(nearest(known, known, skip_itself=True)[0])
    far, close = nearest(vectors, known)
    return np.searchsorted(own, far) / len(own), close


def gaps(vectors: Vectors, known: Vectors | None) -> Array:
    """(n,) one less the cosine to the nearest known one; 1, as of questions without anything in common, without any."""
    found = np.ones(len(vectors))
    if known is None:
        return found
    for start in range(0, len(known), PIECE):
        found = np.minimum(found, 1 - (vectors @ known[start : start + PIECE].T).max(axis=1))
    return found
