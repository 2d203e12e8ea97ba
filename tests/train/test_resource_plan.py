"""Predictions of memory and speed against what is really there.

What the rehearsal counts doesn't depend on how a LoRA layer is computed.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

from meditune.config.load_recipe import load_recipe
from meditune.config.recipe import Recipe
from meditune.config.training_options import ModelSpec, Strategy
from meditune.errors import RecipeError
from meditune.models.adapters import make_trainable, parameter_counts
from meditune.models.catalogue import CATALOGUE
from meditune.models.generation import token_bytes
from meditune.models.inference import register
from meditune.models.load import number_format
from meditune.train import finetune, machine_speed, resource_plan
from meditune.train.machine_speed import cpu_speed, gpu_named, matrix_flops, target_of
from meditune.train.resource_plan import (
    WORK,
    config_of,
    on_meta,
    peak_of,
    plan,
    rehearse_batch,
    sized,
    use_fused_attention,
    weight_bytes,
)
from tests import tiny
from tests.commands import meditune
from tests.models.simulated_gpu import simulate_gpu

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
        ("smollm2-360m", 361_821_120),
        ("qwen3-0.6b", 596_049_920),
        ("gemma3-1b", 999_885_952),
        ("llama3.2-1b", 1_235_814_400),
        ("qwen3-1.7b", 1_720_574_976),
        ("smollm3-3b", 3_075_098_624),
        ("llama3.2-3b", 3_212_749_824),
        ("phi4-mini", 3_836_021_760),
        ("qwen3-4b", 4_022_468_096),
        ("medgemma1.5-4b", 4_300_079_472),
        ("qwen3-8b", 8_190_735_360),
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
    """In the number format of this machine: without BF16 in hardware, a training in BF16 takes minutes."""
    sets = ["model.top_layers=null", *SMALL_ROWS, *settings]
    recipe = load_recipe("quickstart", sets).recipe
    model = on_meta(AutoConfig.for_model(**MEDIUM), recipe.model, number_format("auto"), register())
    predicted = peak_of(model, rehearse_batch(model, recipe), recipe, on_gpu=False).total
    words = [sys.executable, "-m", "tests.train.measured_training", json.dumps(MEDIUM), *sets]
    measured = float(subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[-1])
    assert predicted == pytest.approx(measured, rel=0.15)


def test_sizes_that_a_recipe_leaves_open_follow_the_memory_of_the_gpu() -> None:
    settings = ["model.top_layers=null", "prompt.max_tokens=256", "model.strategy=lora"]
    recipe = load_recipe("quickstart", settings).recipe
    assert recipe.train.batch_tokens == 1024
    found = {}
    for room in (80e9, 1.5e9):
        model = on_meta(AutoConfig.for_model(**MEDIUM), recipe.model, torch.bfloat16, use_fused_attention())
        chosen, batch = sized(recipe, model, room)
        assert peak_of(model, batch, chosen, on_gpu=True).total < room
        measured = rehearse_batch(model, chosen, on_gpu=True)
        assert batch.tokens == measured.tokens
        assert batch.held == pytest.approx(measured.held, rel=0.05)
        found[room] = chosen.train.batch_tokens, chosen.train.gradient_checkpointing
    assert found[80e9] == (WORK // 512, False)
    assert found[1.5e9][0] < WORK // 512
    own = load_recipe("quickstart", [*settings, "train.micro_batch_tokens=512", "train.gradient_checkpointing=false"])
    assert sized(own.recipe, model, 80e9)[0] == own.recipe


def test_attention_on_a_gpu_stores_neither_scores_nor_repeated_heads() -> None:
    settings = ["model.top_layers=null", "prompt.max_tokens=1024", "train.tasks=[answer]", *SMALL_ROWS[:3]]
    recipe = load_recipe("quickstart", settings).recipe
    held = []
    for key_heads in (4, 8):
        config = AutoConfig.for_model(**MEDIUM | {"num_key_value_heads": key_heads})
        model = on_meta(config, recipe.model, torch.bfloat16, use_fused_attention())
        held.append(rehearse_batch(model, recipe).held)
    per_layer = (held[1] - held[0]) / 10 / 1024
    # Keys before and after their rotation, and values, of four more heads of 64 numbers.
    assert per_layer <= 1.5 * 3 * 4 * 64 * 2


def test_rows_that_share_a_prompt_are_planned_as_a_gpu_packs_them() -> None:
    """The common start's keys and values are stored once for itself and once for each branch."""
    found = {}
    for tasks in ("[answer]", "[decision,answer]"):
        settings = ["model.top_layers=null", "prompt.max_tokens=1024", f"train.tasks={tasks}", *SMALL_ROWS[:3]]
        recipe = load_recipe("quickstart", settings).recipe
        model = on_meta(AutoConfig.for_model(**MEDIUM), recipe.model, torch.bfloat16, use_fused_attention())
        found[tasks] = rehearse_batch(model, recipe, on_gpu=True)
    alone, shared = found.values()
    assert alone.tokens == shared.tokens == 1024
    common = recipe.prompt.max_tokens - recipe.prompt.answer_room
    more = 2 * common * 2 * 4 * 64 * 2  # two copies, keys and values of four heads of 64 numbers
    assert 10 * more <= shared.held - alone.held < 2 * 10 * more
    # The branches don't see each other, which saves a little.
    assert 0.95 * alone.flops < shared.flops < alone.flops


def test_attention_that_stores_scores_or_repeats_heads_gets_smaller_batches(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As training chooses its batches on a GPU with 3 GB. Memory that the model's weights occupy counts once."""
    model = SimpleNamespace(config=AutoConfig.for_model(**MEDIUM), dtype=torch.float16)
    monkeypatch.setattr(finetune, "device", lambda: "cuda")

    def chosen(attention: str, capability: tuple[int, int] = (8, 0), weights: int = 0) -> int:
        settings = ["model.top_layers=null", "prompt.max_tokens=1024", "train.tasks=[answer]"]
        further = [f"model.attention={attention}", "train.gradient_checkpointing=false"]
        recipe = load_recipe("quickstart", settings + further).recipe
        simulate_gpu(monkeypatch, 3 * 10**9 - weights, weights, weights, capability)
        size = finetune._sized(model, recipe, "one").train.batch_tokens
        assert f"Batches of up to {size:,} tokens, with activations stored" in capsys.readouterr().err
        return size

    flash, efficient = chosen("auto"), chosen("auto", (7, 5))
    assert chosen("auto", weights=10**9) == flash
    assert chosen("sdpa") < flash
    assert chosen("eager") < 0.8 * efficient < 0.8 * flash


def test_a_plan_counts_repeated_heads_for_gpus_without_flash_attention() -> None:
    settings = ["model.dtype=float16", "train.micro_batch_tokens=4096", "train.tasks=[answer]"]
    recipe = load_recipe("quickstart", settings).recipe
    pieces = []
    for name in ("v100-32gb", "a10"):
        target = replace(target_of(recipe.model, name), memory_gb=24.0)
        pieces.append(resource_plan.estimate(recipe, AutoConfig.for_model(**MEDIUM), target).memory.piece)
    assert pieces[0] > 1.02 * pieces[1]


def test_adapters_need_no_gradients_of_the_weights_below() -> None:
    flops = {}
    for strategy in ("lora", "full"):
        recipe = load_recipe("quickstart", ["model.top_layers=null", *SMALL_ROWS, f"model.strategy={strategy}"]).recipe
        model = on_meta(AutoConfig.for_model(**MEDIUM), recipe.model, torch.bfloat16, register())
        piece = rehearse_batch(model, recipe)
        flops[strategy] = piece.flops / piece.tokens
    layers = 10 * (512 * (512 + 256 + 256 + 512) + 3 * 512 * 1376)
    assert 4 * layers < flops["lora"] < 6 * layers < flops["full"]


SIZES = ["prompt.max_tokens=512", "train.micro_batch_tokens=2048", "train.gradient_checkpointing=true"]


def test_llama_2_7b_fits_24_gb_by_qlora_and_not_in_full() -> None:
    verdicts = []
    for way in (["model.strategy=full", "model.quantize=none"], ["model.strategy=lora", "model.quantize=nf4"]):
        recipe = load_recipe("gpu-24gb", ["model.base=llama2-7b", *way, *SIZES]).recipe
        target = target_of(recipe.model, "RTX 4090")
        verdicts.append(resource_plan.estimate(recipe, config_of(recipe.model), target).verdict)
    assert verdicts == ["no", "fits"]


def test_where_a_recipe_doesnt_fit_what_fits_is_advised(tmp_path: Path) -> None:
    """Five layers of Llama 2 7B's are planned soon, and don't fit a small GPU in full."""
    wide = CATALOGUE["llama2-7b"].shape | {"num_hidden_layers": 5}
    AutoConfig.for_model(**wide).save_pretrained(tmp_path)
    recipe = load_recipe("gpu-24gb", [f"model.base={tmp_path}", "model.strategy=full", *SIZES]).recipe
    found = plan(recipe, "t4")
    assert found.own.verdict == "no"
    verdicts = {(each.strategy, each.quantize): each.verdict for each in [found.own, *found.others]}
    assert verdicts[("lora", "nf4")] == "fits"
    assert "--set model.quantize=nf4 --set model.strategy=lora" in found.advice


def test_advised_settings_are_accepted_by_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    def fits_if_changed(changed: Recipe, *_: Any) -> SimpleNamespace:
        return SimpleNamespace(verdict="no" if changed == recipe else "fits")

    settings = ["model.strategy=full", "prompt.max_tokens=256", "prompt.answer_tokens=200", "train.parallel=fsdp"]
    recipe = load_recipe("gpu-24gb", ["model.base=llama2-7b", "model.quantize=none", *settings]).recipe
    monkeypatch.setattr(resource_plan, "estimate", fits_if_changed)
    advice = plan(recipe, "t4").advice
    assert any("prompt.max_tokens=128" in each for each in advice)
    for each in advice:
        changed = each.replace("--set ", "").split(" ")
        load_recipe("gpu-24gb", ["model.base=llama2-7b", "model.quantize=none", *settings, *changed])


def test_the_recipe_for_a_small_gpu_fits_it() -> None:
    recipe = load_recipe("gpu-8gb").recipe
    found = resource_plan.estimate(recipe, config_of(recipe.model), target_of(recipe.model, "rtx3070"))
    assert found.verdict == "fits"
    assert found.checkpointing


def test_a_gpu_that_isnt_known_gives_near_names() -> None:
    with pytest.raises(RecipeError, match="a100-40gb or a100-80gb"):
        gpu_named("A100")
    with pytest.raises(RecipeError, match="rtx4090"):
        gpu_named("rtx4099")
    assert gpu_named("NVIDIA GeForce RTX 4090").name == "rtx4090"


def test_the_rows_of_own_files_are_counted(tmp_path: Path) -> None:
    table, recipe = tmp_path / "own.csv", tmp_path / "mine.yaml"
    table.write_text("question,answer\n" + "".join(f"Why {n}?,So {n}.\n" for n in range(40)), encoding="utf-8")
    recipe.write_text(f"name: mine\ndata: {{sources: [{{name: own, path: {table}}}]}}\n", encoding="utf-8")
    plan = ("plan", recipe, "--gpu", "t4", "--set", "model.base=distilgpt2")
    counted = meditune(*plan)
    # 20% of the rows are test items, and 10% of the others are dev items.
    assert "of 29 examples with" in counted.out, counted
    assert "assuming 8 test items, 8 of them" in counted.out
    assert "The examples are the rows of your files" in counted.out
    assert "of 500 examples with" in meditune(*plan, "--examples", 500).out
    table.unlink()
    assumed = meditune(*plan)
    assert "of 1,000 examples with" in assumed.out, assumed
    assert "1,000 training examples are assumed, because the data weren't read." in assumed.out


def test_the_command_says_what_fits_and_refuses_what_it_doesnt_know() -> None:
    done = meditune("plan", "quickstart", "--gpu", "t4", "--set", "model.base=distilgpt2").ok()
    assert "distilgpt2 on t4: 16.0 GB" in done.out
    assert "float16" in done.out
    assert "lora *" in done.out
    assert "Time and memory are for training only" in done.out
    # Of about 1,389 examples, 20% are test items, 10% of the others are dev items, and 1,000 are left for training.
    assert "Time of `meditune run`, assuming 278 test items, 200 of them answered in writing:" in done.out
    assert "evaluating the base model" in done.out
    assert "medical suites" not in done.out
    assert "rough" in done.out
    folds = ("--set", "evaluate.calibrate=temperature", "--set", "evaluate.calibration_folds=3")
    folds += ("--set", "evaluate.suites=[medmcqa, medqa]")
    folded = meditune("plan", "quickstart", "--gpu", "t4", "--set", "model.base=distilgpt2", *folds)
    assert "(with 3 further models for evaluate.calibration_folds)" in folded.out
    assert "This time doesn't include the medical suites (medmcqa, medqa)" in folded.out
    alone, together = (
        int(minutes) * 60 + int(seconds)
        for each in (done, folded)
        for minutes, seconds in re.findall(r"of which training: (\d+):(\d+)", each.out)
    )
    # The model on all items, and as many steps for each fold.
    assert together == pytest.approx(4 * alone, abs=3)
    meditune("plan", "quickstart", "--gpu", "rtx4099").refused(2, "rtx4090")
    remote = meditune("plan", "quickstart", "--gpu", "t4", "--set", "model.base=api:gpt-4.1-mini")
    remote.refused(4, "api:gpt-4.1-mini is reached through an API and has no weights to load or tune here")
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


def test_starting_an_operation_hardly_lowers_the_measured_speed_of_a_fast_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A simulated GPU computes 10^15 operations a second, and needs 30 microseconds to start and report."""

    def timed(work: Callable[[], object], _: object) -> float:
        with FlopCounterMode(display=False) as counter:
            work()
        return float(counter.get_total_flops()) / 1e15 + 30e-6

    on_meta_device = partial(torch.randn, device="meta")
    monkeypatch.setattr(torch, "randn", lambda *shape, **_: on_meta_device(*shape))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(machine_speed, "_median_seconds", timed)
    assert matrix_flops(torch.bfloat16) == pytest.approx(1e15, rel=0.05)


def test_two_measurements_agree_even_if_other_programs_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_speed, "SECONDS", 0.1)
    monkeypatch.setattr(machine_speed, "PROBED_TOKENS", 64)
    threads = torch.get_num_threads()
    calm, multiply = cpu_speed(torch.float32), torch.nn.functional.silu

    def interrupted(*words: Any, **options: Any) -> torch.Tensor:
        time.sleep(0.2)  # as if the system ran another program
        return multiply(*words, **options)

    monkeypatch.setattr(torch.nn.functional, "silu", interrupted)
    busy = cpu_speed(torch.float32)
    assert busy[0] == pytest.approx(calm[0], rel=0.7)
    assert calm[1] / 3 < busy[1] < calm[1] * 3
    assert torch.get_num_threads() == threads


def test_a_measured_layer_keeps_its_bytes_in_each_number_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_speed, "_median_seconds", lambda *_: 0.001)
    monkeypatch.setattr(machine_speed, "gpu", lambda: None)
    sizes, steps = [], []
    for name in ("bfloat16", "float32"):
        recipe = load_recipe("quickstart", [f"model.base={machine_speed.PROBED}", f"model.dtype={name}"]).recipe
        target = target_of(recipe.model, None)
        sizes.append(target.layer_bytes)
        steps.append(resource_plan.estimate(recipe, config_of(recipe.model), target).step_s)
    assert sizes == pytest.approx([30e6, 60e6], rel=0.01)
    # A layer took equally long in both formats, so the predictions are about equal; adapters are always in FP32.
    assert steps[1] == pytest.approx(steps[0], rel=0.05)


def test_longer_and_more_answers_take_longer() -> None:
    recipe = load_recipe("quickstart", ["evaluate.max_new_tokens=32"]).recipe
    found = resource_plan.estimate(recipe, config_of(recipe.model), target_of(recipe.model, "t4"))
    longer = load_recipe("quickstart", ["evaluate.max_new_tokens=64"]).recipe
    fewer = load_recipe("quickstart", ["evaluate.max_new_tokens=64", "evaluate.answers=20"]).recipe
    seconds = [found.measuring(each, 500, 300, 500) for each in (recipe, longer, fewer)]
    assert seconds[0].writing < seconds[1].writing
    assert seconds[2].writing < seconds[1].writing
    assert seconds[0].scoring == seconds[1].scoring > 0
    assert found.measuring(recipe, 500, 300, 0).writing == 0


def test_answers_that_a_gpu_writes_at_once_are_those_whose_cache_fits_into_half_of_its_free_memory() -> None:
    recipe = load_recipe("quickstart", ["evaluate.answers=100000"]).recipe
    config = AutoConfig.for_model(**MEDIUM)
    writing = []
    for memory_gb in (2.0, 80.0):
        target = replace(target_of(recipe.model, "a10"), memory_gb=memory_gb)
        found = resource_plan.estimate(recipe, config, target)
        free = memory_gb * 1e9 - found.memory.weights - found.memory.process
        assert found.cached_tokens == pytest.approx(free / 2 / token_bytes(config, 2), rel=1e-3)
        writing.append(found.measuring(recipe, 0, recipe.prompt.answer_room, 100_000).writing)
    assert writing[0] > 20 * writing[1]
