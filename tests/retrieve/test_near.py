"""The nearest vectors by some directions first: the same that comparing all of them finds."""

from __future__ import annotations

import numpy as np
import pytest

from meditune.retrieve import vector_search
from meditune.retrieve.vector_search import Near, Vectors


def spread(count: int, telling: bool) -> Vectors:
    """Vectors of length 1 that vary in some directions more than in others, or in all alike."""
    random = np.random.default_rng(5)
    turned, _ = np.linalg.qr(random.normal(size=(96, 96)))
    sizes = 1 / np.arange(1, 97) if telling else np.ones(96)
    made = (random.normal(size=(count, 96)) * sizes) @ turned
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("telling", [True, False])
@pytest.mark.parametrize("count", [vector_search.FEWEST - 1, 2 * vector_search.FEWEST])
def test_the_nearest_are_found(count: int, telling: bool) -> None:
    vectors = spread(count + 3, telling)
    asked, there = vectors[:3], vectors[3:]
    for vector in asked:
        places, cosines = Near(there).nearest(vector, 20)
        every = there @ vector
        assert places.tolist() == np.argsort(-every, kind="stable")[:20].tolist()
        assert cosines == pytest.approx(every[places], abs=1e-6)


def test_only_allowed_ones_are_found_however_far_they_are() -> None:
    vectors = spread(2 * vector_search.FEWEST, telling=True)
    allowed = np.zeros(len(vectors), dtype=bool)
    allowed[[7, 70, 700]] = True
    places, _ = Near(vectors).nearest(vectors[0], 20, allowed)
    assert sorted(places.tolist()) == [7, 70, 700]


def test_no_more_than_there_are() -> None:
    vectors = spread(3, telling=True)
    assert len(Near(vectors).nearest(vectors[0], 20)[0]) == 3
