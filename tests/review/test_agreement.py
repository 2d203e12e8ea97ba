"""Agreement as published, as scikit-learn has it, and where it isn't defined."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from meditune.review.agreement import cohen, counted, fleiss, krippendorff

N = np.nan
KRIPPENDORFF = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, N, N, N],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, N, 3],
        [N, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, N],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, N],
    ]
).T
"""Krippendorff 2011, section C: twelve units, four observers, missing data."""
FLEISS = np.array(
    [
        *([0, 0, 0, 6, 0], [0, 3, 0, 0, 3], [0, 1, 4, 0, 1], [0, 0, 0, 0, 6], [0, 3, 0, 3, 0], [2, 0, 4, 0, 0]),
        *([0, 0, 4, 0, 2], [2, 0, 3, 1, 0], [2, 0, 0, 4, 0], [0, 0, 0, 0, 6], [1, 0, 0, 5, 0], [1, 1, 0, 4, 0]),
        *([0, 3, 3, 0, 0], [1, 0, 0, 5, 0], [0, 2, 0, 3, 1], [0, 0, 5, 0, 1], [3, 0, 0, 1, 2], [5, 1, 0, 0, 0]),
        *([0, 2, 0, 4, 0], [1, 0, 2, 0, 3], [0, 0, 0, 0, 6], [0, 1, 0, 5, 0], [0, 2, 0, 1, 3], [2, 0, 0, 4, 0]),
        *([1, 0, 0, 4, 1], [0, 5, 0, 1, 0], [4, 0, 0, 0, 2], [0, 2, 0, 4, 0], [1, 0, 5, 0, 0], [0, 0, 0, 0, 6]),
    ]
)
"""Fleiss 1971, table 1: thirty patients, six psychiatrists each; columns add up to 26, 26, 30, 55, 43."""


@pytest.mark.parametrize(("level", "published"), [("nominal", 0.743), ("ordinal", 0.815)])
def test_alpha_is_krippendorffs(level, published):
    found = krippendorff(KRIPPENDORFF, 5, level)
    assert found["value"] == pytest.approx(published, abs=0.0005)
    assert found["items"] == 11, "the last unit has one rating only"
    low, high = found["ci95"]
    assert low < found["value"] < high <= 1


def test_alpha_of_two_observers_is_krippendorffs():
    """Krippendorff 2011, section A: binary data of two observers, alpha 0.095."""
    meg = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0]
    owen = [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    found = krippendorff(np.array([meg, owen]).T + 1, 2, "nominal")
    assert found["value"] == pytest.approx(0.095, abs=0.0005)


def test_kappa_is_fleiss():
    assert FLEISS.sum(axis=0).tolist() == [26, 26, 30, 55, 43]
    found = fleiss(FLEISS)
    assert found["value"] == pytest.approx(0.430, abs=0.0005)
    assert found["ci95"][0] < 0.430 < found["ci95"][1]


@pytest.mark.parametrize(("ours", "theirs"), [("nominal", None), ("ordinal", "linear")])
def test_kappa_is_scikit_learns(ours, theirs):
    source = np.random.default_rng(1)
    first = source.integers(1, 5, 200)
    second = np.where(source.random(200) < 0.6, first, source.integers(1, 5, 200))
    found = cohen(np.column_stack([first, second]), 4, ours)
    assert found["value"] == pytest.approx(cohen_kappa_score(first, second, weights=theirs))


def test_kappa_leaves_out_what_one_rater_left_out():
    found = cohen([[1, 1], [2, N], [N, 1], [2, 2], [1, 2]], 2)
    assert found["items"] == 3
    assert found["value"] == pytest.approx(cohen_kappa_score([1, 2, 1], [1, 2, 2]))


def test_intervals_cover_the_truth_and_narrow_with_more_units():
    """Two raters who agree on 80 % of two equally frequent options: kappa 0.6."""
    source = np.random.default_rng(2)
    inside, width = 0, {}
    for number in range(100):
        first = source.integers(1, 3, 100)
        second = np.where(source.random(100) < 0.8, first, 3 - first)
        low, high = cohen(np.column_stack([first, second]), 2, seed=number)["ci95"]
        inside += low <= 0.6 <= high
        width[100] = high - low
    assert 88 <= inside <= 100
    first = source.integers(1, 3, 1600)
    low, high = cohen(np.column_stack([first, np.where(source.random(1600) < 0.8, first, 3 - first)]), 2)["ci95"]
    assert high - low == pytest.approx(width[100] / 4, rel=0.35)


def test_units_of_one_cluster_are_drawn_together():
    source = np.random.default_rng(4)
    few = source.integers(1, 4, (20, 3)).astype(float)
    many = np.repeat(few, 10, axis=0)
    alone, together = krippendorff(few, 3, "ordinal"), krippendorff(many, 3, "ordinal", list(np.repeat(range(20), 10)))
    apart = krippendorff(many, 3, "ordinal")
    spans = [each["ci95"][1] - each["ci95"][0] for each in (alone, together, apart)]
    assert spans[1] == pytest.approx(spans[0], rel=0.1)
    assert spans[2] < spans[0] / 2


def test_undefined_is_none_and_not_nought_or_one():
    assert krippendorff([[1, 1], [1, 1]], 3, "nominal")["value"] is None, "no disagreement was possible"
    assert krippendorff([[1, N], [N, 2]], 3, "ordinal")["value"] is None
    assert cohen([[1, 1], [1, 1]], 2)["value"] is None
    assert fleiss(np.zeros((0, 3)))["value"] is None
    assert fleiss([[3, 0], [3, 0]])["value"] is None
    only = krippendorff([[1, 2]], 2, "nominal")
    assert only["ci95"] is None, "one unit gives no interval"
    with pytest.raises(ValueError, match="same number of raters"):
        fleiss([[3, 0], [2, 0]])


def test_whole_disagreement_is_negative_and_whole_agreement_one():
    assert krippendorff([[1, 2], [2, 1]], 2, "nominal")["value"] < 0
    assert krippendorff([[1, 1], [2, 2]], 2, "ordinal")["value"] == pytest.approx(1)
    assert counted([[1, 2, N], [2, 2, 2]], 2).tolist() == [[1, 1], [0, 3]]
