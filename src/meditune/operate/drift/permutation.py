"""Maximum mean discrepancy of a block of requests from all before it, with an exact p-value.

The kernel is Gaussian with the median distance as its width (Gretton et al., "A Kernel Two-Sample Test", JMLR 2012),
through random Fourier features (Rahimi and Recht, "Random Features for Large-Scale Kernel Machines", 2007), so a block
costs the same however many requests were before. The p-value is the block's rank among random blocks of everything
that came so far, the block itself included: exact under exchangeability, and independent of earlier blocks' p-values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]

BLOCK = 25
PERMUTATIONS = 499
FEATURES = 128


@dataclass(frozen=True)
class Kernel:
    """A Gaussian kernel as features."""

    weights: Vectors
    """(size, FEATURES)"""
    phases: Vectors
    """(FEATURES,)"""

    def features(self, vectors: Vectors) -> Vectors:
        """(n, FEATURES) features of vectors (n, size), whose dot products approach the kernel."""
        found: Vectors = np.sqrt(2 / FEATURES, dtype=np.float32) * np.cos(vectors @ self.weights + self.phases)
        return found


def kernel(vectors: Vectors, rng: np.random.Generator) -> Kernel:
    """The kernel whose width is the median distance of these vectors (n, size)."""
    first, second = rng.integers(len(vectors), size=(2, 2000))
    distances = np.linalg.norm(vectors[first] - vectors[second], axis=1)
    width = float(np.median(distances[distances > 0])) if np.any(distances > 0) else 1.0
    weights = rng.normal(scale=1 / width, size=(vectors.shape[1], FEATURES)).astype(np.float32)
    return Kernel(weights, rng.uniform(0, 2 * np.pi, FEATURES).astype(np.float32))


def block_test(pool: Vectors, block: Vectors, rng: np.random.Generator) -> tuple[float, float]:
    """The p-value of a block's features (b, FEATURES) among random blocks of pool and block, and its squared MMD.

    The squared MMD has its mean over the random blocks taken off, so it is about 0 without drift.
    """
    everything = np.concatenate([pool, block])
    centre = everything.mean(axis=0)
    chosen = _distinct(len(everything), len(block), rng)
    distances = ((everything[chosen].mean(axis=1) - centre) ** 2).sum(axis=1)
    own = float(((block.mean(axis=0) - centre) ** 2).sum())
    larger, ties = int((distances > own).sum()), int((distances == own).sum())
    p = (larger + rng.random() * (1 + ties)) / (PERMUTATIONS + 1)
    return p, own - float(distances.mean())


def _distinct(count: int, size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(PERMUTATIONS, size) rows of distinct numbers below count: drawn with repetition, rows with any drawn again."""
    found = rng.integers(count, size=(PERMUTATIONS, size))
    while True:
        ordered = np.sort(found, axis=1)
        repeated = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
        if not repeated.any():
            return found
        found[repeated] = rng.integers(count, size=(int(repeated.sum()), size))
