"""The battery asked of a model, as figures and on the page."""

import pytest

from meditune.config.recipe import EvaluateSpec, Recipe
from meditune.errors import DataError
from meditune.evaluate.compare import compare
from meditune.evaluate.evaluator import Measuring
from meditune.evaluate.metrics import METRICS, summarise
from meditune.evaluate.predictions import Predictions, path_of, read
from meditune.evaluate.safety_battery import CATEGORIES, battery, chosen
from meditune.evaluate.summary import passing
from meditune.files import write_jsonl
from tests import tiny
from tests.evaluate.safety.test_battery import BAD, GOOD
from tests.evaluate.test_report import finished_run, shown

MESSAGES = battery()
FAILED = ("bmi", "It is a number.")


def answered(answers):
    return [MESSAGES[id].row(answer) for id, answer in answers]


def test_figures_are_shares_of_answers_that_pass_by_category():
    figures = summarise(Predictions(safety=answered([GOOD[0], GOOD[1], BAD[0], GOOD[-1]])))
    assert figures == {
        "safety_rate": 75,
        "safety_emergency": pytest.approx(200 / 3),
        "safety_control": 100,
    }
    assert set(CATEGORIES) == {name.removeprefix("safety_") for name in METRICS if name.startswith("safety_")} - {
        "rate"
    }


def test_a_safer_model_is_better():
    good = {id: answer for id, answer in GOOD if id in dict(BAD)}
    found = compare(
        Predictions(safety=answered((id, dict(BAD)[id]) for id in good)),
        Predictions(safety=answered(good.items())),
        500,
        1,
    )
    assert found["safety_rate"]["delta"] == 100
    assert found["safety_rate"]["test"] == "McNemar, exact"


def test_passing_has_wilson_intervals():
    rows = passing(answered([GOOD[0], (BAD[0][0], " ")]))
    assert rows["all"] == rows["emergency"]
    assert (rows["all"]["messages"], rows["all"]["passed"], rows["all"]["rate"], rows["all"]["empty"]) == (2, 1, 50, 1)
    assert rows["all"]["ci95"] == pytest.approx([9.45, 90.55], abs=0.01)


def test_answers_of_another_version_are_refused():
    row = MESSAGES["stroke-face"].row("Call 911.") | {"message": "Something else?"}
    with pytest.raises(DataError, match=r"'stroke-face' with these words: “Something else\?”"):
        summarise(Predictions(safety=[row]))


def test_a_model_is_asked_the_messages_alone(tmp_path):
    recipe = Recipe(name="r", evaluate=EvaluateSpec(general_tokens=0, safety_messages=7, max_new_tokens=4))
    measuring = Measuring(recipe, [], tmp_path)
    assert not measuring.is_done("base")
    measuring.measure(tiny.loaded("llama"), "base")
    assert measuring.is_done("base")
    rows = read(tmp_path, "base").safety
    assert [row["message"] for row in rows] == [message.text for message in chosen(7, recipe.seed)]
    assert all(row["prediction"] is not None for row in rows)


def test_the_page_shows_rates_and_what_tuning_broke_with_its_reason(tmp_path):
    base, tuned = answered([GOOD[0], FAILED]), answered([BAD[0], FAILED])
    folder = finished_run(tmp_path, safety={"base": passing(base), "tuned": passing(tuned)})
    for model, rows in (("base", base), ("tuned", tuned)):
        write_jsonl(path_of(folder / "predictions", model, "safety"), rows)
    section = shown(folder).partition("Messages that call for care")[2]
    assert "Emergencies 1 100.0 (20.7 to 100.0) 0.0 (0.0 to 79.3)" in section
    assert "lacks advice to get urgent help" in section
    assert "has advice to get urgent help: “Call 911”" in section
    assert section.index(MESSAGES[GOOD[0][0]].text) < section.index(MESSAGES[FAILED[0]].text)


def test_without_the_battery_there_is_no_section(tmp_path):
    assert "Messages that call for care" not in shown(finished_run(tmp_path))
