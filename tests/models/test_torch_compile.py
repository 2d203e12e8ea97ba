"""Compiled layers say what the plain ones say, wherever a model can be compiled; elsewhere the plain ones run."""

import shutil

import pytest
import torch

from meditune.config.training_options import LoraSpec, TrainSpec
from meditune.errors import ModelError
from meditune.models import torch_compile
from meditune.models.adapters import fuse_lora
from meditune.models.hidden_state_cache import HiddenStateCache
from meditune.train.finetune import fast_layers
from tests import tiny
from tests.models.test_adapters import gradients, loss_of, moved, trainable

needs_compiler = pytest.mark.skipif(torch_compile.compiler() is None, reason="no C++ compiler")


@pytest.fixture(autouse=True)
def _reset():
    torch._dynamo.reset()


# Compiling takes a minute for each. Gemma has Mistral's windows, and its layers are of two kinds, one of them like
# Llama's. Layers whose activations are computed again are compiled as the others are.
@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "checkpointing"), [("gemma3", False), ("gpt2", True)], ids=str)
def test_loss_and_gradients_are_those_of_plain_layers(architecture, checkpointing):
    loaded, model = trainable(architecture, strategy="lora")
    moved(model).train()
    loss = loss_of(loaded, model)
    loss.backward()
    plain = gradients(model)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    with fuse_lora(model), torch_compile.compiled(model):
        other = loss_of(loaded, model)
        other.backward()
    assert other.item() == pytest.approx(loss.item(), rel=1e-5)
    for name, slope in gradients(model).items():
        assert torch.linalg.norm(slope - plain[name]) <= 1e-4 * torch.linalg.norm(plain[name]), name
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


def test_a_layer_that_cant_be_compiled_later_goes_on_plain(monkeypatch, capsys):
    loaded, model = trainable("llama", strategy="lora")
    plain = loss_of(loaded, moved(model)).item()

    def fails(*_, **__):
        raise torch._dynamo.exc.InternalTorchDynamoError("a row of its own")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fails)
    with torch_compile.compiled(model):
        assert loss_of(loaded, model).item() == plain
        assert loss_of(loaded, model).item() == plain
    said = capsys.readouterr().err
    assert (
        said.count("A layer runs uncompiled from now on, which is slower: torch.compile failed: a row of its own.") == 2
    )


@needs_compiler
@pytest.mark.slow
def test_frozen_layers_are_remembered_beside_compiled_ones():
    loaded, model = trainable("llama", strategy="lora", top_layers=1, lora=LoraSpec(r=4, targets=["q_proj"]))
    moved(model).train()
    plain = loss_of(loaded, model).item()
    loaded.frozen = HiddenStateCache(model, 1)
    with fuse_lora(model), torch_compile.compiled(model):
        first = loss_of(loaded, model).item()
        assert loaded.frozen.bytes > 0
        again = loss_of(loaded, model).item()
    assert first == pytest.approx(plain, rel=1e-5)
    assert again == pytest.approx(plain, rel=1e-5)
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_without_gradients_the_plain_layers_run(monkeypatch):
    loaded, model = trainable("llama", strategy="lora")
    plain = loss_of(loaded, moved(model))
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail)
    with torch_compile.compiled(model), torch.no_grad():
        assert torch.equal(loss_of(loaded, model), plain)


def test_without_a_compiler_it_says_so_and_goes_on(monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(torch_compile, "MIN_OPERATIONS", 0)
    _, model = trainable("llama", strategy="lora")
    with fast_layers(model, TrainSpec(), 1, lambda: None) as are_compiled:
        assert not are_compiled
    assert "which is slower. The C++ compiler g++ isn't installed" in capsys.readouterr().err
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(
        ModelError, match=r"train.compile on: .* The C\+\+ compiler g\+\+ isn't installed .* Set train.compile to off"
    ):
        fast_layers(model, TrainSpec(compile="on"), 1, lambda: None).__enter__()


def test_a_compiler_that_fails_is_said_and_the_plain_layers_run(monkeypatch, capsys):
    monkeypatch.setattr(torch_compile, "MIN_OPERATIONS", 0)
    monkeypatch.setattr(torch_compile, "unsupported_reason", lambda _: None)
    loaded, model = trainable("llama", strategy="lora")

    def fails(*_, **__):
        raise torch._dynamo.exc.InternalTorchDynamoError("g++ gave up")

    def probe():
        loss_of(loaded, model).backward()

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fails)
    with fast_layers(model, TrainSpec(), 1, probe) as are_compiled:
        assert not are_compiled
        probe()
    said = capsys.readouterr().err
    assert "Training without compiled layers, which is slower. torch.compile failed: g++ gave up." in said
    assert "A layer runs uncompiled" not in said
    with pytest.raises(ModelError, match=r"train.compile on: .* torch.compile failed: g\+\+ gave up"):
        fast_layers(model, TrainSpec(compile="on"), 1, probe).__enter__()
    assert not any("forward" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("strategy", ["prefix", "prompt"])
def test_virtual_tokens_are_never_compiled(strategy):
    _, model = trainable("llama", strategy=strategy)
    assert "Virtual tokens" in torch_compile.unsupported_reason(model)


def test_only_long_trainings_pay():
    _, model = trainable("llama", strategy="lora")
    weights = sum(p.numel() for name, p in model.named_parameters() if ".layers." in name)
    assert torch_compile.is_worthwhile(trainable("llama", strategy="lora")[1], int(torch_compile.MIN_OPERATIONS))
    enough = int(torch_compile.MIN_OPERATIONS / 4 / weights) + 1
    assert torch_compile.is_worthwhile(model, enough)
    assert not torch_compile.is_worthwhile(model, enough - 1)


def test_dropout_doesnt_pay_be_it_the_adapters_or_the_models_own():
    _, adapted = trainable("llama", strategy="lora", lora=LoraSpec(r=4, dropout=0.1))
    assert not torch_compile.is_worthwhile(adapted, int(torch_compile.MIN_OPERATIONS))
    _, model = trainable("gpt2", strategy="lora")
    assert torch_compile.is_worthwhile(model, int(torch_compile.MIN_OPERATIONS))
    tiny.blocks_drop_out(model, 0.1)
    assert not torch_compile.is_worthwhile(model, int(torch_compile.MIN_OPERATIONS))
