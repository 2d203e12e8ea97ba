import tomllib
from pathlib import Path

import pytest

import meditune
from meditune.config import shipped
from meditune.config.load_recipe import load_recipe
from meditune.data.sources import SOURCES
from meditune.models.catalogue import CATALOGUE

PROJECT = Path(__file__).parents[2]


def test_the_recipes_that_are_promised_ship() -> None:
    assert set(shipped()) >= {
        "quickstart",
        "distilgpt2",
        "gemma3-270m",
        "llama2-7b",
        "mistral-7b",
        "patient-friendly",
        "patient-gemma3",
        "preference",
    }


@pytest.mark.parametrize("name", shipped())
def test_each_names_things_that_exist_and_says_what_it_is_for(name: str) -> None:
    recipe = load_recipe(name).recipe
    assert recipe.name == name
    assert recipe.description
    tuned = recipe.model.base.removeprefix("./runs/")
    assert tuned in shipped() or not CATALOGUE[recipe.model.base].api
    assert {source.name for source in recipe.data.sources} <= set(SOURCES)
    assert shipped()[name].read_text(encoding="utf-8").startswith("# ")


def test_distilgpt2_trains_as_the_project_asks() -> None:
    recipe = load_recipe("distilgpt2").recipe
    train = recipe.train
    assert (train.batch_size, train.accumulation, train.epochs) == (8, 4, 3.0)
    assert (train.learning_rate, train.weight_decay) == (5e-5, 0.01)
    assert (train.decision_share, train.class_balance) == (None, 0.0)
    assert train.gradient_checkpointing
    assert recipe.prompt.max_tokens == 512
    assert recipe.model.strategy == "lora"


@pytest.mark.parametrize("name", ["llama2-7b", "mistral-7b"])
def test_large_models_save_memory(name: str) -> None:
    recipe = load_recipe(name).recipe
    assert recipe.train.gradient_checkpointing
    assert recipe.model.strategy == "lora"


def test_patients_get_explanations_and_no_decisions() -> None:
    recipe = load_recipe("patient-friendly").recipe
    assert recipe.train.tasks == ["answer"]
    assert recipe.prompt.answer_cue == "Explanation:"


def test_the_wheel_takes_them_along() -> None:
    build = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    (package,) = build["targets"]["wheel"]["packages"]
    assert Path(meditune.__file__).parent == PROJECT / package
    assert "exclude" not in build["targets"]["wheel"]
    ignored = (PROJECT / ".gitignore").read_text(encoding="utf-8").split()  # hatchling leaves these out
    for path in shipped().values():
        assert (PROJECT / package) in path.parents
        assert not any(path.match(pattern.rstrip("/")) or pattern.rstrip("/") in path.parts for pattern in ignored)
