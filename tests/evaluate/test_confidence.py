"""Figures of confidence equal their definitions, computed another way."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from meditune.data.example import DECISIONS
from meditune.evaluate.compare import compare
from meditune.evaluate.metrics import METRICS, statistics_of, summarise
from meditune.evaluate.metrics.confidence import (
    GROUPS,
    calibration_error,
    probabilities,
    reliability,
    risk_area,
    risk_coverage,
)
from meditune.evaluate.predictions import Predictions
from tests.evaluate.test_metrics import decisions


def sure(confidence, right, number=0):
    """One decision for yes with a confidence."""
    rest = np.log((1 - confidence) / 2)
    logits = {"yes": float(np.log(confidence)), "no": float(rest), "maybe": float(rest)}
    return {"id": str(number), "reference": "yes" if right else "no", "prediction": "yes", "logits": logits}


def numbered(*pairs):
    return [sure(confidence, right, number) for number, (confidence, right) in enumerate(pairs)]


def area_by_definition(rows):
    """The mean over items of the share wrong among those at least as sure."""
    confidence = np.array([max(probabilities(row["logits"]).values()) for row in rows])
    wrong = np.array([row["reference"] != row["prediction"] for row in rows])
    return np.mean([wrong[confidence >= own].mean() for own in confidence])


def test_class_f1_equals_scikit_learns():
    rows = decisions(1)
    figures = summarise(Predictions(decision=rows))
    truth, said = [row["reference"] for row in rows], [row["prediction"] for row in rows]
    for label, expected in zip(DECISIONS, f1_score(truth, said, average=None, labels=DECISIONS), strict=True):
        assert figures[f"f1_{label}"] == pytest.approx(100 * expected, abs=1e-12)
    assert np.mean([figures[f"f1_{label}"] for label in DECISIONS]) == pytest.approx(figures["macro_f1"])


def test_a_class_without_reference_has_no_f1():
    rows = [row for row in decisions(1) if row["reference"] != "maybe"]
    figures = summarise(Predictions(decision=rows))
    assert {"f1_yes", "f1_no"} < figures.keys()
    assert "f1_maybe" not in figures


def test_brier_score_of_the_certain_and_the_clueless():
    certain = summarise(Predictions(decision=[sure(1 - 1e-12, True), sure(1 - 1e-12, False, 1)]))
    assert certain["brier"] == pytest.approx((0 + 2) / 2, abs=1e-9)
    assert summarise(Predictions(decision=[sure(1 / 3, True)]))["brier"] == pytest.approx(4 / 9 + 2 / 9)


def test_the_risk_coverage_area_equals_its_definition_on_all_items_and_on_a_draw():
    rows = decisions(1)
    statistics = risk_area(rows)
    assert statistics.value() == pytest.approx(area_by_definition(rows))
    drawn = np.random.default_rng(3).integers(len(rows), size=len(rows))
    assert float(statistics.figure(statistics.items[drawn].sum(axis=0))) == pytest.approx(
        area_by_definition([rows[index] for index in drawn])
    )


def test_the_area_knows_whether_the_sure_ones_are_right():
    good = numbered((0.9, True), (0.8, True), (0.7, False), (0.6, False))
    bad = numbered((0.9, False), (0.8, False), (0.7, True), (0.6, True))
    assert risk_area(good).value() == pytest.approx((0 + 0 + 1 / 3 + 1 / 2) / 4)
    assert risk_area(bad).value() == pytest.approx((1 + 1 + 2 / 3 + 1 / 2) / 4)
    same = numbered((0.8, True), (0.8, False), (0.8, False), (0.8, True))
    assert risk_area(same).value() == risk_area(same[::-1]).value() == 0.5, "ties have no order"


def test_many_items_take_no_more_room_and_give_nearly_the_same():
    rows = decisions(2, count=3 * GROUPS)
    statistics = risk_area(rows)
    assert statistics.items.shape == (3 * GROUPS, 2 * GROUPS)
    assert statistics.value() == pytest.approx(area_by_definition(rows), abs=0.002)


def test_reliability_shows_the_bins_behind_the_calibration_error():
    rows = decisions(1)
    bins = reliability(rows)
    assert sum(each["items"] for each in bins) == len(rows)
    assert all(each["from"] <= each["confidence"] <= each["to"] for each in bins)
    gaps = sum(each["items"] * abs(each["confidence"] - each["right"]) for each in bins) / len(rows)
    assert gaps == pytest.approx(calibration_error(rows).value())


def test_the_curve_runs_from_the_surest_to_all_in_few_points():
    points = risk_coverage(numbered((0.9, True), (0.8, False), (0.8, True), (0.7, False)))
    assert [(each["coverage"], each["risk"]) for each in points] == [(0.25, 0), (0.75, pytest.approx(1 / 3)), (1, 0.5)]
    assert [each["threshold"] for each in points] == pytest.approx([0.9, 0.8, 0.7])
    rows = decisions(1)
    thinned = risk_coverage(rows, points=20)
    accuracy = summarise(Predictions(decision=rows))["accuracy"]
    assert len(thinned) == 20
    assert (thinned[-1]["coverage"], thinned[-1]["risk"]) == (1, pytest.approx(1 - accuracy / 100))


def test_all_of_them_are_compared_in_their_direction():
    weak, strong = (Predictions(decision=decisions(seed, skill=skill)) for seed, skill in ((1, 0.1), (2, 0.9)))
    result = compare(weak, strong, 500, 1)
    for name in ("f1_yes", "f1_no", "f1_maybe", "brier", "aurc"):
        assert result[name]["better"] is True, name
        assert (result[name]["delta"] > 0) == (METRICS[name].direction == "up"), name
    assert statistics_of(weak).keys() == result.keys()
