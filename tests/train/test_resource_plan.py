"""Predictions of memory and speed against what is really there.

What the rehearsal counts doesn't depend on how a LoRA layer is computed.
"""

import json
import subprocess
import sys
from contextlib import nullcontext
from typing import Any, get_args

import pytest
import torch
from transformers import AutoConfig

from meditune.config.load_recipe import load_recipe
from meditune.config.training_options import ModelSpec, Strategy
from meditune.errors import RecipeError
from meditune.models.adapters import make_trainable, parameter_counts
from meditune.models.catalogue import CATALOGUE
from meditune.models.inference import register
from meditune.train import resource_plan
from meditune.train.hardware_target import config_of, gpu_named, on_meta, weight_bytes
from meditune.train.resource_plan import peak_of, plan, rehearse_batch
from tests import tiny
from tests.commands import meditune

MEDIUM = {
    "model_type": "llama",
    "vocab_size": 16_000,
    "hidden_size": 512,
    "num_hidden_layers": 10,
    "intermediate_size": 1376,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
}
SMALL_ROWS = ["train.epochs=1", "train.batch_size=8", "train.micro_batch_tokens=1024", "prompt.max_tokens=256"]


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("strategy", get_args(Strategy))
def test_parameters_and_bytes_are_those_of_the_real_model(architecture: str, strategy: Strategy) -> None:
    spec = ModelSpec(strategy=strategy)
    real = make_trainable(tiny.model(architecture), spec, 0)
    planned = on_meta(tiny.model(architecture).config, spec, torch.float32, register())
    assert parameter_counts(planned) == parameter_counts(real)
    assert weight_bytes(planned, "none") == weight_bytes(real, "none")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("smollm2-135m", 134_515_008),
        ("gemma3-270m", 268_098_176),
        ("qwen2.5-coder-0.5b", 494_032_768),
        ("qwen2.5-coder-1.5b", 1_543_714_304),
        ("distilgpt2", 81_912_576),
        ("gpt2", 124_439_808),
        ("llama2-7b", 6_738_415_616),
        ("mistral-7b", 7_248_023_552),
    ],
)
def test_the_catalogues_models_have_the_parameters_that_their_publishers_state(name: str, parameters: int) -> None:
    spec = ModelSpec(base=name, strategy="full")
    assert parameter_counts(on_meta(config_of(spec), spec, torch.bfloat16, register()))[1] == parameters
    assert CATALOGUE[name].shape


@pytest.mark.parametrize(
    "settings", [["model.strategy=lora", "train.gradient_checkpointing=true"], ["model.strategy=full"]]
)
def test_the_predicted_peak_is_that_of_a_training(settings: list[str]) -> None:
    sets = ["model.top_layers=null", *SMALL_ROWS, *settings]
    recipe = load_recipe("quickstart", sets).recipe
    model = on_meta(AutoConfig.for_model(**MEDIUM), recipe.model, torch.bfloat16, register())
    predicted = peak_of(model, rehearse_batch(model, recipe), recipe, on_gpu=False).total
    words = [sys.executable, "-m", "tests.train.measured_training", json.dumps(MEDIUM), *sets]
    measured = float(subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[-1])
    assert predicted == pytest.approx(measured, rel=0.15)


def test_adapters_need_no_gradients_of_the_weights_below() -> None:
    flops = {}
    for strategy in ("lora", "full"):
        recipe = load_recipe("quickstart", ["model.top_layers=null", *SMALL_ROWS, f"model.strategy={strategy}"]).recipe
        model = on_meta(AutoConfig.for_model(**MEDIUM), recipe.model, torch.bfloat16, register())
        piece = rehearse_batch(model, recipe)
        flops[strategy] = piece.flops / piece.tokens
    layers = 10 * (512 * (512 + 256 + 256 + 512) + 3 * 512 * 1376)
    assert 4 * layers < flops["lora"] < 6 * layers < flops["full"]


def verdicts(planned: Any) -> dict[tuple[str, str], str]:
    return {(each.strategy, each.quantize): each.verdict for each in [planned.own, *planned.others]}


def test_llama_2_7b_fits_24_gb_by_qlora_and_not_in_full() -> None:
    found = plan(load_recipe("llama2-7b", ["model.strategy=full"]).recipe, "RTX 4090")
    assert verdicts(found)[("lora", "nf4")] == "fits"
    assert found.own.verdict == "no"
    assert "--set model.quantize=nf4 --set model.strategy=lora" in found.advice


def test_a_gpu_that_isnt_known_gives_near_names() -> None:
    with pytest.raises(RecipeError, match="a100-40gb or a100-80gb"):
        gpu_named("A100")
    with pytest.raises(RecipeError, match="rtx4090"):
        gpu_named("rtx4099")
    assert gpu_named("NVIDIA GeForce RTX 4090").name == "rtx4090"


def test_the_command_says_what_fits_and_refuses_what_it_doesnt_know() -> None:
    done = meditune("plan", "quickstart", "--gpu", "t4")
    assert done.code == 0, done
    assert "smollm2-135m on t4: 16.0 GB" in done.out
    assert "float16" in done.out
    assert "lora *" in done.out
    assert "Time and memory are for training only" in done.out
    meditune("plan", "quickstart", "--gpu", "rtx4099").refused(2, "rtx4090")
    longer = meditune(
        "plan", "quickstart", "--gpu", "t4", "--set", "model.base=gpt2", "--set", "prompt.max_tokens=2048"
    )
    longer.refused(2, "gpt2 reads at most 1,024 tokens", "Lower prompt.max_tokens to at most 1024")


def test_operations_of_the_one_operation_are_those_of_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("quickstart", ["model.top_layers=null", "model.lora.r=128", *SMALL_ROWS]).recipe
    flops = []
    for _ in range(2):
        model = on_meta(AutoConfig.for_model(**MEDIUM), recipe.model, torch.bfloat16, register())
        flops.append(resource_plan.rehearse_batch(model, recipe).flops)
        monkeypatch.setattr(resource_plan, "fuse_lora", lambda _: nullcontext())
    assert flops[0] == flops[1]
