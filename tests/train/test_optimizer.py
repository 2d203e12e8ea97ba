"""Every optimizer learns on FP32 masters, remembers what it says it does, and goes on exactly."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file

from meditune.config.training_options import TrainSpec
from meditune.train.optimizer import EIGHT_BIT_FROM, STATE_BYTES, MasterOptimizer
from tests.commands import meditune, read_rows, stopped_after

STEPS = {
    **{"model__strategy": "full", "model__top_layers": "null", "model__dtype": "bfloat16"},
    **{"train__batch_size": 2, "train__checkpoint_steps": 4, "train__learning_rate": 3e-3},
    "data__sources__0__limit": 24,
}
"""The tiny model's embeddings are its only weights that are remembered in 8 bits."""


def trained(place, name, **changes):
    return meditune("train", "quickstart", "-o", place.folder / name, *place.settings(**(STEPS | changes)))


def weights(place, name):
    """Of the run of that name, or of that optimizer if there is none yet."""
    if not (place.folder / name / "model").exists():
        trained(place, name, train__optimizer=name).ok()
    return (place.folder / name / "model" / "model.safetensors").read_bytes()


def needs(optimizer):
    if optimizer == "adamw8bit":
        pytest.importorskip("bitsandbytes")


@pytest.mark.parametrize("name", STATE_BYTES)
def test_it_learns_and_a_stopped_run_ends_as_one_that_was_not(place, name):
    needs(name)
    whole = weights(place, name)
    losses = [step["loss"] for step in read_rows(place.folder / name / "training.jsonl")]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    with stopped_after(6):
        assert trained(place, f"{name}-stopped", train__optimizer=name).code == 130
    resumed = trained(place, f"{name}-stopped", train__optimizer=name).ok()
    assert "after step 4" in resumed.err
    assert weights(place, f"{name}-stopped") == whole


def test_each_goes_its_own_way(place):
    needs("adamw8bit")
    assert len({weights(place, name) for name in STATE_BYTES}) == len(STATE_BYTES)


@pytest.mark.parametrize("name", STATE_BYTES)
def test_it_remembers_as_many_bytes_as_is_said(name):
    needs(name)
    parameter = torch.nn.Parameter(torch.randn(256, 64, dtype=torch.bfloat16))
    optimizer = MasterOptimizer([parameter], TrainSpec(optimizer=name))
    parameter.grad = torch.randn_like(parameter)
    optimizer.step(1e-3)
    state = optimizer.state()
    size = sum(tensor.numel() * tensor.element_size() for key, tensor in state.items() if "qmap" not in key)
    gradient = 4 * parameter.numel()
    assert (size + gradient) / parameter.numel() == pytest.approx(STATE_BYTES[name], rel=0.02)
    assert state["master.0"].dtype == torch.float32


def test_eight_bits_follow_thirty_two():
    pytest.importorskip("bitsandbytes")
    found = []
    for name in ("adamw", "adamw8bit"):
        torch.manual_seed(1)
        start = torch.randn(2 * EIGHT_BIT_FROM)
        parameter = torch.nn.Parameter(start.clone())
        optimizer = MasterOptimizer([parameter], TrainSpec(optimizer=name))
        for _ in range(20):
            parameter.grad = torch.randn_like(parameter) + 0.5
            optimizer.step(1e-2)
        found.append(parameter.detach() - start)
    apart = (found[1] - found[0]).norm() / found[0].norm()
    assert 0 < apart < 0.05


def test_states_are_paged_after_a_resume_too(monkeypatch):
    """On a GPU, bitsandbytes prefetches the states that it allocated itself; here ordinary memory plays the paged."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    states = bitsandbytes.optim.optimizer
    prefetched = []

    def paged(_, weight, dtype):
        buffer = torch.zeros_like(weight, dtype=dtype)
        buffer.is_paged = True
        return buffer

    monkeypatch.setattr(bitsandbytes.optim, "AdamW8bit", bitsandbytes.optim.PagedAdamW8bit)
    monkeypatch.setattr(states.Optimizer8bit, "get_state_buffer", paged)
    monkeypatch.setattr(states.F, "prefetch_tensor", prefetched.append)

    def stepped(optimizer, number):
        torch.manual_seed(number)
        for parameter in optimizer.parameters:
            parameter.grad = torch.randn_like(parameter)
        optimizer.step(1e-2)

    def made():
        weights = (torch.ones(2 * EIGHT_BIT_FROM), torch.ones(8))
        return MasterOptimizer([torch.nn.Parameter(each) for each in weights], TrainSpec(optimizer="adamw8bit"))

    whole, resumed = made(), made()
    stepped(whole, 1)
    resumed.restore({key: value.clone() for key, value in whole.state().items()})
    prefetched.clear()
    for optimizer in (whole, resumed):
        stepped(optimizer, 2)
        assert len(prefetched) == 4, "two states of two weights"
        prefetched.clear()
    assert all(map(torch.equal, whole.parameters, resumed.parameters))


def test_adafactor_is_that_of_the_paper_with_the_recipes_rate():
    """Algorithms 4 and 5 of arXiv:1804.04235: factored second moment, update clipping, decay 1 - t ** -0.8."""
    torch.manual_seed(1)
    parameter = torch.nn.Parameter(torch.zeros(6, 4))  # as LoRA's B; a relative step would hardly move it
    optimizer = MasterOptimizer([parameter], TrainSpec(optimizer="adafactor", weight_decay=0.0, max_grad_norm=1e9))
    expected, rows, columns = torch.zeros(6, 4), torch.zeros(6), torch.zeros(4)
    for step in range(1, 6):
        gradient = torch.randn(6, 4)
        decay = 1 - step**-0.8
        square = gradient**2 + 1e-30
        rows = decay * rows + (1 - decay) * square.mean(dim=1)
        columns = decay * columns + (1 - decay) * square.mean(dim=0)
        update = gradient / torch.sqrt(torch.outer(rows, columns) / rows.mean())
        expected -= 1e-2 * update / max(1.0, float(update.square().mean().sqrt()))
        parameter.grad = gradient.clone()
        optimizer.step(1e-2)
    torch.testing.assert_close(parameter.detach(), expected)


def test_without_bitsandbytes_eight_bits_are_refused_before_anything_is_written(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    trained(place, "missing", train__optimizer="adamw8bit").refused(
        4, "train.optimizer adamw8bit needs bitsandbytes", "[quantized]"
    )
    assert not (place.folder / "missing").exists()


def test_the_checkpoint_holds_eight_bits_and_the_recipe_the_version(place):
    pytest.importorskip("bitsandbytes")
    with stopped_after(5):
        trained(place, "kept", train__optimizer="adamw8bit")
    folder = place.folder / "kept"
    state = load_file(folder / "checkpoint" / "optimizer.safetensors")
    embedding = next(key for key, tensor in state.items() if key.startswith("master") and tensor.numel() == 500 * 32)
    index = embedding.partition(".")[2]
    assert state[f"state.{index}.state1"].dtype == torch.uint8
    assert "# bitsandbytes: " in (folder / "recipe.yaml").read_text(encoding="utf-8")
    assert json.loads((folder / "checkpoint" / "state.json").read_text())["recipe"]["train"]["optimizer"] == "adamw8bit"
