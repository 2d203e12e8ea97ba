import tomllib
from pathlib import Path

import pytest
import yaml

import meditune
from meditune.config import load_recipe as writing
from meditune.config import shipped
from meditune.config.data_options import PromptFormat
from meditune.config.load_recipe import load_recipe
from meditune.config.recipe import Recipe
from meditune.config.training_options import LoraSpec, ModelSpec
from meditune.data.sources import SOURCES
from meditune.models.catalogue import CATALOGUE

AWKWARD = [
    "no",
    "5e-5",
    "1_0",
    "null",
    "",
    "Question:",
    "a # b",
    "two\nlines",
    " led by a space",
    "é – 漢",
    "Réponse :\u00a0",
    "\u3000x",
    "'q'",
    "{x}",
]
DOCS = Path(__file__).parents[2] / "docs" / "reference" / "recipes.md"


@pytest.mark.parametrize("name", shipped())
def test_what_is_saved_loads_back_equal(name: str, tmp_path: Path) -> None:
    resolved = load_recipe(name, ["train.learning_rate=3e-7", "data.sources.0.fields={question: yes}"])
    for kept in (resolved, resolved.recipe):
        writing.save(kept, tmp_path / "recipe.yaml")
        assert load_recipe(str(tmp_path / "recipe.yaml")).recipe == resolved.recipe


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_text_survives(text: str, tmp_path: Path) -> None:
    recipe = Recipe(
        name=text or "x",
        description=text,
        prompt=PromptFormat(answer_cue=text or "x"),
        model=ModelSpec(lora=LoraSpec(targets=[text, "b"])),
    )
    writing.save(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(str(tmp_path / "recipe.yaml")).recipe == recipe


def test_other_yaml_readers_read_a_saved_recipe_alike(tmp_path: Path) -> None:
    recipe = load_recipe("quickstart", ["name=no", "description=12e03", "train.learning_rate=5e-5"]).recipe
    writing.save(recipe, tmp_path / "recipe.yaml")
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text(encoding="utf-8")) == recipe.model_dump(mode="json")


def test_show_has_every_value_and_its_origin(tmp_path: Path) -> None:
    text = writing.show(load_recipe("quickstart", ["train.epochs=9"]))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "epochs: 9.0 # --set" in lines
    assert "schedule: linear # default" in lines
    assert any(line.startswith("base: smollm2-135m # quickstart.yaml, line ") for line in lines)
    (tmp_path / "shown.yaml").write_text(text, encoding="utf-8")
    assert load_recipe(str(tmp_path / "shown.yaml")).recipe.train.epochs == 9.0


def test_the_reference_has_every_key_with_type_default_and_meaning() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert "| `train.learning_rate` | a number above 0 | `5.0e-05` | Peak learning rate. |" in text
    assert "| `name` | text that isn't empty | required | Name of the run in the report. |" in text
    assert "| `data.sources.N.limit` |" in text
    for name in shipped():
        assert f"| `{name}` |" in text


PROJECT = Path(__file__).parents[2]


def test_the_recipes_that_are_promised_ship() -> None:
    assert set(shipped()) >= {
        "quickstart",
        "distilgpt2",
        "gemma3-270m",
        "gpu-24gb",
        "gpu-80gb",
        "gpu-8gb",
        "laptop",
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
    assert {source.name for source in recipe.data.sources if not source.is_own} <= set(SOURCES)
    # A file that isn't a known source says where it comes from, because the error for a missing file names it.
    assert all(source.citation and source.licence for source in recipe.data.sources if source.is_own)
    assert shipped()[name].read_text(encoding="utf-8").startswith("# ")


def test_distilgpt2_trains_as_the_project_asks() -> None:
    recipe = load_recipe("distilgpt2").recipe
    train = recipe.train
    assert (train.batch_size, train.accumulation, train.epochs) == (8, 4, 3.0)
    assert train.learning_rate == 5e-5
    assert (train.decision_share, train.class_balance) == (None, 0.0)
    assert train.gradient_checkpointing
    assert recipe.prompt.max_tokens == 512
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
