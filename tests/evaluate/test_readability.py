"""Patient-friendliness of answers, as figures of a model."""

import json
import statistics

import pytest

from meditune.evaluate.compare import compare
from meditune.evaluate.metrics import METRICS, summarise
from meditune.evaluate.metrics.readability import measured, spread
from meditune.evaluate.predictions import Predictions
from meditune.readability import smog

NAMES = ("grade_gap", "smog", "sentence_length", "rare_words", "unexplained_terms")
PLAIN = "You may have a cold. Drink water and rest at home. Call your doctor if the fever does not go away."
HARD = (
    "Perioperative thromboprophylaxis with enoxaparin attenuated postoperative thromboembolic complications following "
    "cholecystectomy in hypercoagulable populations, notwithstanding concomitant thrombocytopenia."
)


def written(*texts):
    return Predictions(answer=[{"id": str(n), "reference": "x", "prediction": text} for n, text in enumerate(texts)])


def test_hard_text_is_worse_by_every_figure():
    found = compare(written(*[PLAIN] * 8), written(*[HARD] * 8), 200, 1)
    assert {name: found[name]["better"] for name in NAMES} == dict.fromkeys(NAMES, False)
    assert all(METRICS[name].direction == "down" for name in NAMES)


def test_figures_are_of_all_answers_together():
    figures = summarise(written("Rest now. Drink a lot of water today.", "Nephrolithiasis hurts."))
    assert figures["sentence_length"] == pytest.approx(10 / 3)
    assert figures["rare_words"] == pytest.approx(10)
    assert figures["unexplained_terms"] == pytest.approx(10)
    assert figures["smog"] == pytest.approx(smog(1, 3))


def test_an_answer_as_easy_as_asked_for_has_no_gap():
    text = (
        "Your doctor may give you a medicine that makes the blood flow better, and you may have to take it every day."
    )
    assert 6 <= measured(text)["grade"] <= 8
    assert summarise(written(text))["grade_gap"] == 0
    assert spread([text, PLAIN, HARD, ""])["inside"] == pytest.approx(100 / 3)


def test_too_easy_is_a_gap_as_well():
    assert summarise(written("No. Yes. It is."))["grade_gap"] > 6


def test_empty_answers_have_no_part_in_the_figures_and_are_counted():
    some, others = written(PLAIN, HARD), written(PLAIN, HARD, "")
    assert {name: summarise(others)[name] for name in NAMES} == {name: summarise(some)[name] for name in NAMES}
    assert spread([PLAIN, "", "..."])["empty"] == 2
    assert spread(["", ""]) == {"texts": 2, "empty": 2}


def test_a_model_that_mostly_says_nothing_has_no_figures():
    assert not set(NAMES) & summarise(written(PLAIN, "", "")).keys()


@pytest.mark.real
def test_medians_of_real_texts(real_data):
    """As docs/metrics.md says."""
    items = json.loads((real_data / "pubmedqa" / "ori_pqal.json").read_text(encoding="utf-8"))
    found = [measured(item["LONG_ANSWER"])["grade"] for item in items.values()]
    assert statistics.median(found) == pytest.approx(16.8, abs=0.1)
