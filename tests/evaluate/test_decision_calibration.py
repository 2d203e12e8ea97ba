"""What is fitted on dev: calibration and abstention.

Figures of confidence equal their definitions, computed another way.
"""

import math
import random

import numpy as np
import pytest
from sklearn.metrics import f1_score

from meditune.config.load_recipe import load_recipe
from meditune.config.recipe import EvaluateSpec
from meditune.data.example import DECISIONS
from meditune.errors import RecipeError
from meditune.evaluate.compare import compare
from meditune.evaluate.decision_calibration import MIN_ITEMS, abstention, answered_at, fit_calibration, threshold_for
from meditune.evaluate.metrics import METRICS, statistics_of, summarize
from meditune.evaluate.metrics.decision import (
    GROUPS,
    calibrated,
    calibration_error,
    probabilities,
    reliability,
    risk_area,
    risk_coverage,
)
from meditune.evaluate.predictions import Predictions
from meditune.statistics import wilson
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
    figures = summarize(Predictions(decision=rows))
    truth, said = [row["reference"] for row in rows], [row["prediction"] for row in rows]
    for label, expected in zip(DECISIONS, f1_score(truth, said, average=None, labels=DECISIONS), strict=True):
        assert figures[f"f1_{label}"] == pytest.approx(100 * expected, abs=1e-12)
    assert np.mean([figures[f"f1_{label}"] for label in DECISIONS]) == pytest.approx(figures["macro_f1"])


def test_a_class_without_reference_has_no_f1():
    rows = [row for row in decisions(1) if row["reference"] != "maybe"]
    figures = summarize(Predictions(decision=rows))
    assert {"f1_yes", "f1_no"} < figures.keys()
    assert "f1_maybe" not in figures


def test_brier_score_of_the_certain_and_the_clueless():
    certain = summarize(Predictions(decision=[sure(1 - 1e-12, True), sure(1 - 1e-12, False, 1)]))
    assert certain["brier"] == pytest.approx((0 + 2) / 2, abs=1e-9)
    assert summarize(Predictions(decision=[sure(1 / 3, True)]))["brier"] == pytest.approx(4 / 9 + 2 / 9)


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
    accuracy = summarize(Predictions(decision=rows))["accuracy"]
    assert len(thinned) == 20
    assert (thinned[-1]["coverage"], thinned[-1]["risk"]) == (1, pytest.approx(1 - accuracy / 100))


def test_all_of_them_are_compared_in_their_direction():
    weak, strong = (Predictions(decision=decisions(seed, skill=skill)) for seed, skill in ((1, 0.1), (2, 0.9)))
    result = compare(weak, strong, 500, 1)
    for name in ("f1_yes", "f1_no", "f1_maybe", "brier", "aurc"):
        assert result[name]["better"] is True, name
        assert (result[name]["delta"] > 0) == (METRICS[name].direction == "up"), name
    assert statistics_of(weak).keys() == result.keys()


WEIGHTS = (55, 34, 11)


def leaning(seed, count, lean=(0.0, 0.0, 0.0), heat=1.0):
    """Decisions of a model that knows the true probabilities, but for a leaning and too sharp or flat logits."""
    source = random.Random(seed)
    rows = []
    for index in range(count):
        strengths = [source.gammavariate(weight / 20, 1) + 1e-6 for weight in WEIGHTS]
        true = [strength / sum(strengths) for strength in strengths]
        logits = {
            label: heat * math.log(share) + extra for label, share, extra in zip(DECISIONS, true, lean, strict=True)
        }
        said = max(logits, key=logits.get)
        reference = source.choices(DECISIONS, weights=true)[0]
        rows.append({"id": str(index), "reference": reference, "prediction": said, "logits": logits})
    return rows


def corrected(method, lean=(0.0, 0.0, 0.0), heat=1.0):
    """Figures on 2,000 test items, and the fit on 400 dev items."""
    predictions = Predictions(decision=leaning("test", 2000, lean, heat), dev_decision=leaning("dev", 400, lean, heat))
    predictions.calibration = fit_calibration(predictions, EvaluateSpec(calibrate=method))
    return summarize(predictions), predictions.calibration[0]


@pytest.mark.parametrize("heat", [0.4, 3.0])
def test_temperature_undoes_wrong_sharpness_and_changes_no_decision(heat):
    figures, fit = corrected("temperature", heat=heat)
    assert fit["temperature"] == pytest.approx(heat, rel=0.15)
    assert fit["items"] == 400
    assert figures["calibrated_ece"] < 0.04 < figures["ece"]
    assert figures["calibrated_accuracy"] == figures["accuracy"]
    assert figures["calibrated_macro_f1"] == figures["macro_f1"]


@pytest.mark.parametrize("said", ["no", None])
def test_temperature_keeps_the_label_in_the_text_if_the_likelihoods_are_equal(said):
    row = {"id": "0", "reference": "yes", "prediction": said, "logits": dict.fromkeys(DECISIONS, -9.5)}
    fit = {"temperature": 2.0, "bias": dict.fromkeys(DECISIONS, 0.0)}
    assert [each["prediction"] for each in calibrated([row], fit)] == [said]


def test_bias_corrected_temperature_scaling_undoes_wrong_sharpness_and_a_leaning():
    figures, fit = corrected("bcts", lean=(-1.5, 2.0, 0.0), heat=2.0)
    assert fit["temperature"] == pytest.approx(2.0, rel=0.2)
    assert fit["bias"]["yes"] == 0
    assert fit["bias"]["no"] == pytest.approx(-3.5 / 2, abs=0.4)
    assert figures["calibrated_ece"] < 0.04 < figures["ece"]
    assert figures["calibrated_accuracy"] > figures["accuracy"] + 5


def test_prior_calibration_undoes_a_leaning():
    figures, fit = corrected("prior", lean=(-1.5, 2.0, 0.0))
    assert figures["calibrated_accuracy"] > figures["accuracy"] + 5
    assert figures["calibrated_macro_f1"] > figures["macro_f1"] + 5
    assert fit["bias"]["yes"] > fit["bias"]["no"]
    assert fit["temperature"] == 1


def test_batch_calibration_makes_the_labels_equally_likely_on_dev():
    dev = leaning("dev", 400, lean=(1.0, 0.0, 0.0))
    (fit,) = fit_calibration(Predictions(dev_decision=dev), EvaluateSpec(calibrate="batch"))
    before = [probabilities(row["logits"]) for row in dev]
    for label in DECISIONS:
        mean = sum(each[label] for each in before) / len(dev)
        assert fit["bias"][label] == pytest.approx(-math.log(mean))
    counts = [sum(row["prediction"] == label for row in calibrated(dev, fit)) for label in DECISIONS]
    assert max(counts) < 2.5 * min(counts)
    assert max(counts) < max(sum(row["prediction"] == label for row in dev) for label in DECISIONS)


def test_the_fit_never_sees_the_test():
    dev = leaning("dev", 50)
    fits = [
        fit_calibration(Predictions(decision=leaning(seed, 100, lean=(3.0, 0, 0)), dev_decision=dev), spec)
        for seed in ("one", "two")
        for spec in [EvaluateSpec(calibrate="prior")]
    ]
    assert fits[0] == fits[1] == fit_calibration(Predictions(dev_decision=dev), EvaluateSpec(calibrate="prior"))


def test_a_label_that_dev_lacks_isnt_ruled_out():
    dev = [row for row in leaning("dev", 100) if row["reference"] != "maybe"]
    for method in ("prior", "batch", "temperature", "bcts"):
        (fit,) = fit_calibration(Predictions(dev_decision=dev), EvaluateSpec(calibrate=method))
        assert all(math.isfinite(value) for value in (fit["temperature"], *fit["bias"].values()))


def test_the_raw_figures_stay_as_they_were():
    rows = leaning("test", 200, lean=(1.0, 0, 0))
    figures, _ = corrected("prior", lean=(1.0, 0, 0))
    assert (
        summarize(Predictions(decision=rows)).items()
        <= summarize(Predictions(decision=rows, dev_decision=leaning("dev", 50), calibration=[_neutral()])).items()
    )
    assert {"accuracy", "macro_f1", "ece"} < figures.keys()


def _neutral():
    return {"id": "x", "method": "prior", "temperature": 1.0, "bias": dict.fromkeys(DECISIONS, 0.0), "items": 1}


@pytest.mark.parametrize("lacking", ["dev", "test"])
def test_words_alone_cant_be_calibrated(lacking):
    test, dev = leaning("test", 20), leaning("dev", 20)
    for row in dev if lacking == "dev" else test:
        del row["logits"]
    predictions = Predictions(decision=test, dev_decision=dev)
    assert fit_calibration(predictions, EvaluateSpec(calibrate="prior")) is None
    assert abstention(predictions, 0.8) is None


def test_nothing_is_fitted_unasked():
    assert fit_calibration(Predictions(dev_decision=leaning("dev", 50)), EvaluateSpec()) is None
    assert fit_calibration(Predictions(), EvaluateSpec(calibrate="prior")) is None


# Abstention.


def test_the_threshold_keeps_as_many_as_the_target_allows():
    rows = numbered(*((0.95 - index / 100, index < 16) for index in range(20)))
    assert answered_at(rows, threshold_for(rows, 0.8))["kept"] == 20
    assert answered_at(rows, threshold_for(rows, 0.9))["kept"] == 17
    assert answered_at(rows, threshold_for(rows, 1.0))["kept"] == 16


def test_none_reaches_a_target_that_a_lucky_few_would():
    rows = numbered(*((0.95 - index / 100, index < MIN_ITEMS - 1) for index in range(30)))
    assert threshold_for(rows, 1.0) is None
    found = abstention(Predictions(decision=rows, dev_decision=rows), 1.0)
    assert found == {"raw": {"threshold": None, "dev": None, "test": None}}


def test_what_the_threshold_gives_is_counted_on_the_test():
    dev = numbered(*((0.95, True) for _ in range(12)), *((0.5, False) for _ in range(12)))
    test = numbered(*((0.96, True),) * 6, *((0.97, False),) * 2, *((0.6, True),) * 12)
    found = abstention(Predictions(decision=test, dev_decision=dev), 0.9)["raw"]
    assert found["threshold"] == pytest.approx(0.95)
    assert (found["dev"]["kept"], found["dev"]["accuracy"]) == (12, 100)
    assert (found["test"]["kept"], found["test"]["of"], found["test"]["coverage"]) == (8, 20, 40)
    assert found["test"]["accuracy"] == 75
    assert found["test"]["ci95"] == pytest.approx([40.9, 92.9], abs=0.05)
    unsure = abstention(Predictions(decision=test[8:], dev_decision=dev), 0.9)["raw"]["test"]
    assert (unsure["kept"], unsure["accuracy"], unsure["ci95"]) == (0, None, None)


def test_calibrated_confidence_gets_a_threshold_of_its_own():
    test, dev = leaning("test", 300, heat=3.0), leaning("dev", 300, heat=3.0)
    predictions = Predictions(decision=test, dev_decision=dev)
    predictions.calibration = fit_calibration(predictions, EvaluateSpec(calibrate="temperature"))
    found = abstention(predictions, 0.8)
    assert found["calibrated"]["threshold"] < found["raw"]["threshold"]


def test_wilson_equals_published_figures():
    """Newcombe 1998, Statistics in Medicine 17, table I: 81 of 263 and 0 of 20."""
    assert wilson(81, 263) == pytest.approx([25.53, 36.62], abs=0.01)
    assert wilson(0, 20) == pytest.approx([0, 16.11], abs=0.01)


@pytest.mark.parametrize("option", ["evaluate.calibrate=prior", "evaluate.abstain_target=0.8"])
def test_what_is_fitted_on_dev_isnt_measured_on_dev(option):
    with pytest.raises(RecipeError, match="fitted on dev"):
        load_recipe("quickstart", [option, "evaluate.split=dev"])
