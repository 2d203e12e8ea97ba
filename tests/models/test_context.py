"""What a model reads at most, and recipes that ask for more than that."""

import pytest
from transformers import AutoConfig, LlamaConfig

from meditune.config.load_recipe import load_recipe
from meditune.errors import RecipeError
from meditune.models.catalogue import CATALOGUE
from meditune.models.load import positions, refuse_unreadable
from tests import tiny


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_every_architecture_says_how_much_it_reads(architecture):
    assert positions(tiny.model(architecture).config) == 1024


@pytest.mark.parametrize(("name", "most"), [("distilgpt2", 1024), ("llama2-7b", 4096), ("smollm2-135m", 8192)])
def test_so_do_the_shapes_of_the_catalogue(name, most):
    assert positions(AutoConfig.for_model(**CATALOGUE[name].shape)) == most


def check(*settings, positions=1024, virtual=None):
    recipe = load_recipe("quickstart", settings).recipe
    refuse_unreadable("mine", LlamaConfig(max_position_embeddings=positions), recipe.prompt, recipe, virtual)


def test_the_key_to_lower_is_named():
    with pytest.raises(RecipeError, match=r"mine reads 1,024 tokens.*Lower prompt.max_tokens to at most 1024"):
        check("prompt.max_tokens=1025")
    check("prompt.max_tokens=1024")
    settings = ("prompt.max_tokens=1024", "prompt.answer_tokens=128", "evaluate.max_new_tokens=129")
    with pytest.raises(RecipeError, match=r"Lower evaluate.max_new_tokens to at most 128"):
        check(*settings)
    check(*settings[:2], "evaluate.max_new_tokens=128")


def test_virtual_tokens_take_room():
    settings = ("prompt.max_tokens=1010", "model.virtual_tokens=20", "model.top_layers=null")
    check(*settings)
    with pytest.raises(RecipeError, match=r"20 are virtual ones.*at most 1004"):
        check(*settings, "model.strategy=prompt")
    with pytest.raises(RecipeError, match=r"15 are virtual ones.*at most 1009"):
        check(*settings, virtual=15)
