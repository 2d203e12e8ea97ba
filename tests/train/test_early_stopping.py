"""Measuring on the dev split while training: early stopping, and keeping the best state."""

import json
from contextlib import redirect_stderr
from io import StringIO

import pytest

from meditune.config.recipe import Recipe
from meditune.config.training_options import DevSpec
from meditune.errors import DataError
from meditune.evaluate.decision_calibration import dev_measure
from meditune.train.early_stopping import DevMonitor, dev_loss
from tests import tiny
from tests.commands import jsonl, meditune, read_rows, rows, stopped_after
from tests.models.test_forward import EXAMPLES

STEPS = {
    **{"train__batch_size": 4, "train__checkpoint_steps": 3, "train__epochs": 4, "data__dev_share": 0.27},
    **{"train__schedule": "constant", "model__dtype": "float32", "train__average_last": 0},
}
"""24 rows are left, so that each step has four, in a shorter training too, and does the same there."""
OFTEN = {"train__dev__every_steps": 2}


def trained(place, name, **changes):
    return meditune("train", "quickstart", "-o", place.folder / name, *place.settings(**(STEPS | changes)))


def facts(place, name):
    return json.loads((place.folder / name / "model" / "training.json").read_text(encoding="utf-8"))


def figures(place, name):
    log = read_rows(place.folder / name / "training.jsonl")
    return {step["step"]: step["dev"] for step in log if step["dev"] is not None}


@pytest.fixture(scope="module")
def plain(place):
    """A training that measures nothing."""
    trained(place, "plain").ok()
    return "plain"


def test_the_best_state_is_kept(place, plain):
    """It is what a training of that many steps gives."""
    result = trained(place, "best", train__dev__keep_best=True, train__dev__metric="accuracy", **OFTEN).ok()
    measured, dev = figures(place, "best"), facts(place, "best")["dev"]
    steps = facts(place, "best")["steps"]
    assert list(measured) == [*range(2, steps, 2), steps]
    best = max(measured.values())
    first = min(step for step, figure in measured.items() if figure == best)
    assert dev == {
        **{"metric": "accuracy", "examples": dev["examples"], "best": best, "best_step": first},
        **{"kept": True, "stopped_early": False},
    }
    assert first < steps
    assert f"best state: accuracy {best:.4g} after step {first}." in result.err
    card = (place.folder / "best" / "model" / "README.md").read_text(encoding="utf-8")
    assert f"from step {first}, after which accuracy on the dev split was best" in card
    assert place.adapter("best") != place.adapter(plain)
    trained(place, "shorter", train__epochs=4 * first / steps).ok()
    assert place.adapter("shorter") == place.adapter("best")


def test_measuring_changes_nothing(place, plain):
    trained(place, "measured", train__dev__patience=100, **OFTEN).ok()
    assert place.adapter("measured") == place.adapter(plain)
    assert facts(place, "measured")["dev"]["kept"] is False
    assert "dev" not in facts(place, plain)
    assert not figures(place, plain)
    first, *_, last = figures(place, "measured").values()
    assert last < first


def test_training_ends_early(place, plain):
    result = trained(
        place, "early", train__dev__patience=2, train__dev__metric="macro_f1", train__epochs=10, **OFTEN
    ).ok()
    measured, found = figures(place, "early"), facts(place, "early")
    assert found["dev"]["stopped_early"] is True
    assert found["steps"] == max(measured) == found["dev"]["best_step"] + 4
    assert found["epochs"] < 10
    assert "Training stopped early: 2 measurements in a row were no better than macro_f1" in result.err


def test_one_measurement_an_epoch_is_the_default(place):
    trained(place, "epochs", train__dev__patience=9, train__epochs=2.5).ok()
    steps = [step["epoch"] for step in read_rows(place.folder / "epochs" / "training.jsonl")]
    whole = facts(place, "epochs")["rows"]
    assert list(figures(place, "epochs")) == [-(-whole // 4), 2 * -(-whole // 4), len(steps)]


@pytest.mark.parametrize("stop", [5, 8, 10])
def test_a_stopped_run_keeps_the_same_best_state(place, stop):
    """Also where the best state lies before the checkpoint, and with patience counted across the stop."""
    watched = {"train__dev__keep_best": True, "train__dev__metric": "accuracy", "train__dev__patience": 5} | OFTEN
    whole, stopped = "whole", f"stopped-{stop}"
    if not (place.folder / whole).exists():
        trained(place, whole, **watched).ok()
    assert max(figures(place, whole)) > stop
    with stopped_after(stop):
        assert trained(place, stopped, **watched).code == 130
    resumed = trained(place, stopped, **watched)
    assert "Resuming training after step" in resumed.err
    assert place.adapter(stopped) == place.adapter(whole)
    assert figures(place, stopped) == figures(place, whole)
    assert facts(place, stopped)["dev"] == facts(place, whole)["dev"]


@pytest.mark.parametrize("metric", ["perplexity", "accuracy", "macro_f1"])
def test_the_last_figure_is_what_evaluating_on_dev_gives(place, metric):
    name = f"last-{metric}"
    trained(place, name, train__dev__metric=metric, train__dev__patience=99, train__epochs=2).ok()
    words = ["--recipe", place.folder / name / "recipe.yaml", "--set", "evaluate.split=dev"]
    meditune("evaluate", place.folder / name, "-o", place.folder / f"{name}-again", *words).ok()
    again = json.loads((place.folder / f"{name}-again" / "evaluation.json").read_text(encoding="utf-8"))
    assert list(figures(place, name).values())[-1] == pytest.approx(again["figures"][metric], rel=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"model__strategy": "prefix", "model__top_layers": "null", "train__learning_rate": 0.1},
        {"model__strategy": "full", "train__learning_rate": 1e-3},
        {"train__gradient_checkpointing": True, "model__lora__dropout": 0.2},
    ],
    ids=["prefix", "full", "checkpointing"],
)
@pytest.mark.parametrize("metric", ["loss", "perplexity"])
def test_other_strategies_are_measured_too(place, changes, metric, request):
    watched = {"train__dev__metric": metric, "train__dev__keep_best": True, "train__epochs": 2}
    name = request.node.callspec.id
    trained(place, name, **watched, **changes).ok()
    assert facts(place, name)["dev"]["best"] == min(figures(place, name).values())


def test_a_metric_that_the_dev_split_cant_tell_is_refused_before_anything_is_computed(place, tmp_path):
    path = jsonl(tmp_path / "own.jsonl", rows(30, decision=""))
    words = place.own(path, train__dev__metric="accuracy", train__dev__keep_best=True, train__average_last=0)
    result = meditune("run", "quickstart", "-o", tmp_path / "run", *words)
    result.refused(3, "train.dev.metric accuracy needs a decision", "data.dev_share")
    assert not (tmp_path / "run" / "predictions").exists()


@pytest.mark.parametrize("metric", ["loss", "perplexity", "accuracy"])
def test_dev_questions_longer_than_the_budget_are_left_out_and_counted(metric):
    settings = {"metric": metric, "keep_best": True}
    recipe = Recipe.model_validate(
        {"name": "dev", "prompt": {"max_tokens": 64, "answer_tokens": 16}, "train": {"dev": settings}}
    )
    loaded, long = tiny.loaded(), EXAMPLES[0].model_copy(update={"id": "long", "question": "Does it help? " * 99})

    def measure(examples):
        if metric == "loss":
            return dev_loss(examples, loaded.encoder(recipe.prompt), recipe)(loaded)
        return dev_measure(loaded, examples, recipe)(loaded)

    with redirect_stderr(StringIO()) as printed:
        assert measure([EXAMPLES[1], long]) == measure([EXAMPLES[1]])
    assert "1 of 2 dev examples don't fit into the prompt" in printed.getvalue()
    with pytest.raises(DataError, match=r"None of the 1 dev examples .*prompt\.max_tokens=64"):
        measure([long])


def test_a_figure_that_only_equals_the_best_is_no_improvement():
    watch = DevMonitor(DevSpec(metric="accuracy", patience=2), lambda: 0.0, 1, {1: 50.0, 2: 50.0})
    assert (watch.best_step, watch.since, watch.is_over) == (1, 1, False)
    assert DevMonitor(DevSpec(patience=1), lambda: 0.0, 1, {1: 2.0, 2: float("nan")}).is_over
