"""A LoRA layer as one operation says what peft's own forward says, and stands aside where it can't."""

import pytest
import torch

from meditune.config.training_options import LoraSpec
from meditune.models.adapters import add_lora, one_operation
from tests import tiny
from tests.models.test_strategies import loss_of, moved, trainable


def gradients(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    return found


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize(
    "changes",
    [{"strategy": "lora"}, {"strategy": "rslora"}, {"strategy": "lora", "lora": LoraSpec(r=4, dropout=0.3)}],
    ids=["lora", "rslora", "dropout"],
)
def test_loss_and_gradients_are_those_of_peft(architecture, changes):
    loaded, model = trainable(architecture, **changes)
    moved(model).train()
    torch.manual_seed(0)
    loss = loss_of(loaded, model)
    loss.backward()
    plain = gradients(model)
    torch.manual_seed(0)
    with one_operation(model) as count:
        assert count == len(plain) / 2
        other = loss_of(loaded, model)
        other.backward()
    assert other.item() == pytest.approx(loss.item(), rel=1e-6)
    for name, slope in gradients(model).items():
        assert torch.linalg.norm(slope - plain[name]) <= 1e-5 * torch.linalg.norm(plain[name]), name


def test_afterwards_the_layers_are_as_they_were():
    loaded, model = trainable("llama", strategy="lora")
    moved(model)
    before = loss_of(loaded, model)
    with one_operation(model):
        pass
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert torch.equal(loss_of(loaded, model), before)


@pytest.mark.parametrize(
    ("strategy", "dtype"),
    [("dora", None), ("lora", torch.float64)],
    ids=["dora", "adapters in another number format"],
)
def test_layers_that_do_more_keep_their_own_forward(strategy, dtype):
    loaded = tiny.loaded()
    model = add_lora(loaded.model, LoraSpec(r=4), seed=1, variant=strategy)
    if dtype:
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.to(dtype)
    with one_operation(model) as count:
        assert count == 0


def test_the_frozen_weight_gets_no_gradient_and_keeps_none_from_passing():
    loaded, model = trainable("llama", strategy="lora", top_layers=1)
    moved(model).train()
    with one_operation(model):
        loss_of(loaded, model).backward()
    assert all((p.grad is None) != p.requires_grad for p in model.parameters())
