"""What the rehearsal counts doesn't depend on how a LoRA layer is computed."""

from contextlib import nullcontext

import pytest
import torch
from transformers import AutoConfig

from meditune.config.load_recipe import load_recipe
from meditune.models.inference import register
from meditune.train import resource_plan
from meditune.train.hardware_target import on_meta
from tests.planning.test_plan import MEDIUM, SMALL_ROWS


def test_operations_of_the_one_operation_are_those_of_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("quickstart", ["model.top_layers=null", "model.lora.r=128", *SMALL_ROWS]).recipe
    flops = []
    for _ in range(2):
        model = on_meta(AutoConfig.for_model(**MEDIUM), recipe.model, torch.bfloat16, register())
        flops.append(resource_plan.rehearse(model, recipe).flops)
        monkeypatch.setattr(resource_plan, "one_operation", lambda _: nullcontext())
    assert flops[0] == flops[1]
