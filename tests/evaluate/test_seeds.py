"""Several seeds as a distribution of before and after."""

import json

import pytest

from meditune.errors import DataError
from meditune.evaluate.seeds import over_seeds
from meditune.recipes import writing
from meditune.recipes.loading import load_recipe


def finished(folder, seed, accuracy, perplexity, *settings):
    folder.mkdir()
    recipe = load_recipe("quickstart", [f"seed={seed}", *settings])
    (folder / "recipe.yaml").write_text(writing.show(recipe), encoding="utf-8")
    report = {"seed": seed, "base": {"accuracy": 40.0, "perplexity": 16.0}}
    report["tuned"] = {"accuracy": 40.0 + accuracy, "perplexity": 16.0 + perplexity}
    report["comparison"] = {"accuracy": {"delta": accuracy}, "perplexity": {"delta": perplexity}}
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    return folder


def test_the_spread_over_seeds_is_students(tmp_path):
    runs = [finished(tmp_path / str(seed), seed, *gain) for seed, gain in ((1, (10, -2)), (2, (14, 1)), (3, (12, -5)))]
    found = over_seeds(runs)
    accuracy, perplexity = found["metrics"]["accuracy"], found["metrics"]["perplexity"]
    assert found["seeds"] == [1, 2, 3]
    assert (accuracy["mean"], accuracy["sd"], accuracy["range"]) == (12.0, 2.0, [10.0, 14.0])
    assert accuracy["ci95"] == pytest.approx([12 - 4.303 * 2 / 3**0.5, 12 + 4.303 * 2 / 3**0.5], abs=0.01)
    assert (accuracy["better"], accuracy["agree"]) == (True, 3)
    assert (perplexity["better"], perplexity["agree"]) == (None, 2)


def test_runs_that_differ_in_more_than_their_seed_are_refused(tmp_path):
    one = finished(tmp_path / "1", 1, 1, 1)
    with pytest.raises(DataError, match=r"differ in more than their seed: train\.epochs"):
        over_seeds([one, finished(tmp_path / "2", 2, 1, 1, "train.epochs=1")])
    with pytest.raises(DataError, match="same seed"):
        over_seeds([one, finished(tmp_path / "3", 1, 1, 1)])
    with pytest.raises(DataError, match="two or more"):
        over_seeds([one])
