"""A checkpoint is taken up by the settings that made it, also where the recipe has got new options since.

Which tuned models can be tuned further.
"""

from pathlib import Path

import pytest
import torch
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig

from meditune.config.recipe import Recipe
from meditune.errors import MedituneError, ModelError
from meditune.files import read_json, write_json
from meditune.train import checkpoint
from meditune.train.trainer import Step
from meditune.train.training_plan import check_start


@pytest.fixture
def place(tmp_path):
    found = tmp_path / "checkpoint"
    checkpoint.write(found, [], {"master.0": torch.ones(2)}, Recipe(name="run"), sharded=False)
    return found


def changed(place, change):
    state = read_json(place / "state.json")
    change(state["recipe"])
    write_json(place / "state.json", state)


def test_an_option_that_came_later_had_its_default(place):
    changed(place, lambda recipe: (recipe["train"].pop("average_last"), recipe["model"].pop("prune")))
    model = torch.nn.Linear(1, 1)
    log, tensors = checkpoint.read(place, model, Recipe(name="run"))
    assert log == []
    assert torch.equal(tensors["master.0"], torch.ones(2))
    with pytest.raises(MedituneError, match="other training settings"):
        checkpoint.read(place, model, Recipe(name="run", train={"average_last": 0.5}))


def test_a_removed_option_had_its_default(place):
    old = {"preference": {"source": "corrupted", "rated": {"margin": 1.0}}, "ewc": {"samples": 64}}
    changed(place, lambda recipe: (recipe["train"].update(old), recipe["data"]["quality"].update(alike=0.7)))
    changed(place, lambda recipe: recipe["data"]["quality"].pop("near_duplicate_similarity"))
    assert checkpoint.read(place, torch.nn.Linear(1, 1), Recipe(name="run"))


@pytest.mark.parametrize("train", [{"epochs": 7.0}, {"ewc": {"samples": 9}}, {"an_unknown_option": 1}])
def test_other_settings_are_refused(place, train):
    changed(place, lambda recipe: recipe["train"].update(train))
    with pytest.raises(MedituneError, match="other training settings"):
        checkpoint.read(place, torch.nn.Linear(1, 1), Recipe(name="run"))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc")
def test_what_was_read_doesnt_hold_the_file(place):
    """A network disk can't remove the folder of a file that is mapped, and the next checkpoint takes its place."""
    _, tensors = checkpoint.read(place, torch.nn.Linear(1, 1), Recipe(name="run"))
    assert tensors
    assert str(place) not in Path("/proc/self/maps").read_text(encoding="utf-8")


def test_the_tokens_of_finished_steps_are_known(tmp_path):
    place = tmp_path / "checkpoint"
    assert checkpoint.tokens_read(place) == 0
    steps = [Step(number, 0.1, 1.0, 1e-4, 1.0, 100 * number, 10, 1.0) for number in (1, 2)]
    checkpoint.write(place, steps, {"master.0": torch.ones(2)}, Recipe(name="run"), sharded=False)
    assert checkpoint.tokens_read(place) == 300


@pytest.mark.parametrize("kind", [PrefixTuningConfig, PromptTuningConfig, PromptEncoderConfig])
def test_virtual_tokens_of_any_kind_cant_be_tuned_further(kind, tmp_path):
    kind(task_type="CAUSAL_LM", num_virtual_tokens=3).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"is an adapter of virtual tokens"):
        check_start(Recipe(name="further", model={"base": str(tmp_path)}))
