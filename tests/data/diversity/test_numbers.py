"""Effective numbers and distances, against what can be computed by hand."""

import math

import pytest

from meditune.data.diversity.coverage import distance, rarefied, shannon, simpson


def test_equal_groups_count_fully_and_a_tiny_one_hardly():
    assert shannon({"a": 5, "b": 5, "c": 5}) == pytest.approx(3)
    assert simpson({"a": 5, "b": 5, "c": 5}) == pytest.approx(3)
    assert shannon({"a": 3, "b": 1}) == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))
    assert simpson({"a": 3, "b": 1}) == pytest.approx(1 / (0.75**2 + 0.25**2))
    assert 1 < simpson({"a": 999, "b": 1}) < shannon({"a": 999, "b": 1}) < 1.01
    assert shannon({}) == simpson({}) == 0


def test_a_smaller_draw_shows_fewer_groups():
    counts = {str(number): 2 for number in range(200)}
    whole, part = shannon(counts), rarefied(counts, 0.1, seed=1)
    assert part < 41 < whole
    assert part == rarefied(counts, 0.1, seed=1)
    assert rarefied(counts, 1.0, seed=1) == whole


def test_the_distance_is_the_share_that_must_change():
    assert distance({"a": 1, "b": 1}, {"a": 50, "b": 50}) == 0
    assert distance({"a": 1}, {"b": 7}) == 1
    assert distance({"a": 8, "b": 2}, {"a": 5, "b": 5}) == pytest.approx(0.3)
    assert distance({}, {"a": 1}) == 1
