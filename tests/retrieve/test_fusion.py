"""Fusion and marginal relevance, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from meditune.retrieve.hybrid_search import marginal_relevance, reciprocal_rank


def test_ranks_add_up_with_their_weights() -> None:
    scores = reciprocal_rank({"a": [7, 8], "b": [8, 9]}, {"a": 1.0, "b": 0.5})
    assert list(scores) == [8, 7, 9]
    assert scores[8] == pytest.approx(1 / 62 + 0.5 / 61)
    assert scores[9] == pytest.approx(0.5 / 62)


def test_a_twin_gives_way_to_something_else() -> None:
    vectors = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert marginal_relevance([3.0, 2.9, 1.0], vectors, 3, 0.0) == [0, 1, 2]
    assert marginal_relevance([3.0, 2.9, 1.0], vectors, 2, 0.6) == [0, 2]
    assert marginal_relevance([], vectors[:0], 3, 0.5) == []
    assert marginal_relevance([1.0, 1.0], vectors[:2], 5, 0.5) == [0, 1]
