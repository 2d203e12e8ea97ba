"""Which weights a name means, at which revision, and number formats on hardware that isn't here.

What a model reads at most, and recipes that ask for more than that.
"""

import shutil

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoConfig, LlamaConfig

from meditune.config.load_recipe import load_recipe
from meditune.config.recipe import Recipe
from meditune.config.training_options import ModelSpec
from meditune.errors import ModelError, RecipeError
from meditune.files import read_json, write_json
from meditune.models import load, quantization
from meditune.models.adapters import make_trainable
from meditune.models.catalogue import ADAPTER_FILE, CATALOGUE
from meditune.models.load import positions, refuse_unreadable
from meditune.train.finetune import save_model
from tests import tiny


@pytest.mark.parametrize("units", [False, True], ids=["t4", "a100"])
def test_bf16_that_cuda_emulates_is_not_fast(monkeypatch, units):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or units)
    assert load.bf16_is_fast() == units
    assert load.number_format("auto") == (torch.bfloat16 if units else torch.float16)


def test_a_quantized_base_computes_in_the_given_format():
    pytest.importorskip("bitsandbytes")
    options = quantization.loading_options("nf4", torch.float16)
    assert options["quantization_config"].bnb_4bit_compute_dtype == torch.float16


def test_gemma_whose_states_are_too_large_for_fp16_gets_fp32():
    gemma, llama = tiny.model("gemma3").config, tiny.model("llama").config
    assert load.in_range(torch.float16, gemma) == torch.float32
    assert load.in_range(torch.bfloat16, gemma) == torch.bfloat16
    assert load.in_range(torch.float16, llama) == torch.float16


OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The hub's cache with two commits of one model, whose branch main stands at the newer one."""
    cache = tmp_path_factory.mktemp("hub")
    repository = cache / "models--clinic--tiny"
    for number, commit in enumerate((OLD, NEW)):
        folder = repository / "snapshots" / commit
        folder.parent.mkdir(parents=True, exist_ok=True)
        tiny.model("llama", seed=number).save_pretrained(folder)
        tiny.tokenizer().save_pretrained(folder)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(NEW)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield cache


def weights_of(name):
    """The first weights of a model, and the commit that they are of."""
    found = load.load(name, ModelSpec(dtype="float32"))
    return next(found.model.parameters()).detach(), found.commit


def test_a_revision_says_which_weights_are_read(hub):
    old, new = (next(tiny.model("llama", seed=number).parameters()) for number in range(2))
    for name, weights, commit in (
        ("clinic/tiny", new, NEW),
        (f"clinic/tiny@{OLD}", old, OLD),
        (ModelSpec(base="clinic/tiny", revision=OLD).reference, old, OLD),
        ("clinic/tiny@main", new, NEW),
    ):
        found, of = weights_of(name)
        assert of == commit
        assert torch.equal(found, weights)
    with pytest.raises(ModelError, match="could not be loaded"):
        load.load(f"clinic/tiny@{'c' * 40}")


def test_an_adapter_keeps_to_the_commit_that_it_was_trained_on(hub, tmp_path):
    recipe = Recipe(name="r", model=ModelSpec(base="clinic/tiny", revision=OLD, dtype="float32"))
    loaded = load.load(recipe.model.reference, recipe.model)
    facts = {"rows": 1, "epochs": 1.0, "steps": 1, "supervised_tokens": 1, "trainable_parameters": 1, "parameters": 1}
    adapter = tmp_path / "model"
    save_model(
        make_trainable(loaded.model, recipe.model, seed=1), loaded, recipe, facts | {"base_commit": OLD}, adapter
    )
    said = read_json(adapter / ADAPTER_FILE)
    assert (said["base_model_name_or_path"], said["revision"]) == ("clinic/tiny", OLD)
    assert f"read from `clinic/tiny@{OLD}`, commit `{OLD}`" in (adapter / "README.md").read_text()
    assert weights_of(str(adapter))[1] == OLD
    write_json(adapter / ADAPTER_FILE, said | {"revision": None})
    assert weights_of(str(adapter))[1] == NEW


def test_a_revision_belongs_to_a_model_of_the_hub(tmp_path):
    folder = tiny.save(tmp_path / "tiny")
    with pytest.raises(ModelError, match=r"needs a model on the hub, and .*tiny is a folder"):
        load.locate(f"{folder}@{OLD}")
    shutil.copytree(folder, tmp_path / "with@sign")
    assert load.locate(str(tmp_path / "with@sign")) == str(tmp_path / "with@sign")
    assert load.locate(f"gpt2@{OLD}") == f"openai-community/gpt2@{OLD}"
    for wrong in ({"base": "api:x", "revision": OLD}, {"base": f"a/b@{OLD}", "revision": OLD}, {"revision": "../x"}):
        with pytest.raises(ValidationError):
            ModelSpec(**wrong)


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
    with pytest.raises(RecipeError, match=r"mine reads at most 1,024 tokens.*Lower prompt.max_tokens to at most 1024"):
        check("prompt.max_tokens=1025")
    check("prompt.max_tokens=1024")
    settings = ("prompt.max_tokens=1024", "prompt.answer_tokens=128", "evaluate.max_new_tokens=129")
    with pytest.raises(RecipeError, match=r"Lower evaluate.max_new_tokens to at most 128"):
        check(*settings)
    check(*settings[:2], "evaluate.max_new_tokens=128")


def test_virtual_tokens_take_room():
    settings = ("prompt.max_tokens=1010", "model.virtual_tokens=20", "model.top_layers=null")
    check(*settings)
    with pytest.raises(RecipeError, match=r"20 are virtual.*at most 1004"):
        check(*settings, "model.strategy=prompt")
    with pytest.raises(RecipeError, match=r"15 are virtual.*at most 1009"):
        check(*settings, virtual=15)
