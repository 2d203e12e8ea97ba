"""A training that breaks down stops with the step, the rows' ids, and a checkpoint from before it."""

import random
import re

import pytest
import torch

from meditune.train import losses
from meditune.train.trainer import STREAK, LossGuard
from tests.commands import bench, meditune, read_rows

STEPS = {"train__batch_size": 2, "train__checkpoint_steps": 4, "train__epochs": 2}
TRIED = 1
"""Calls before the first step: the pre-flight's piece."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with bench(tmp_path_factory.mktemp("breakdown")) as made:
        yield made


def trained(place, name):
    return meditune("train", "quickstart", "--output", place.folder / name, *place.settings(**STEPS))


@pytest.fixture(scope="module")
def sound(place):
    assert trained(place, "sound").code == 0
    return "sound"


def no_number(loss):
    return loss * float("nan")


def no_gradient(loss):
    """The same loss, whose slope is infinite."""
    return loss + torch.sqrt(loss - loss.detach())


def large(loss):
    return loss + 50


def going_wrong(patch, wrong, first, last=10**9):
    """Losses of steps `first` to `last` go through `wrong`; each step of these runs is one piece."""
    real, calls = losses.fused_loss, 0

    def fused_loss(*given):
        nonlocal calls
        calls += 1
        loss = real(*given)
        return wrong(loss) if first <= calls - TRIED <= last else loss

    patch.setattr(losses, "fused_loss", fused_loss)


@pytest.mark.parametrize(
    ("wrong", "what"),
    [(no_number, "the loss is nan"), (no_gradient, "gradient's norm is"), (large, "the loss is above")],
    ids=["loss", "gradient", "explosion"],
)
def test_it_stops_before_the_step_and_goes_on_from_there(place, sound, monkeypatch, request, wrong, what):
    name = request.node.callspec.id
    folder = place.folder / name
    with monkeypatch.context() as patch:
        going_wrong(patch, wrong, 15)
        result = trained(place, name)
    result.refused(1, "broke down at step 15", what, str(folder / "checkpoint"), "train.learning_rate")
    ids = re.search(r"rows: (.*?)\. ", result.err)[1].split(", ")
    by_id = {row["id"]: row for row in read_rows(folder / "data" / "train.jsonl")}
    assert len(ids) == STEPS["train__batch_size"]
    assert set(ids) <= by_id.keys()
    assert not any(by_id[each]["question"] in result.err.partition("broke down")[2] for each in ids)
    assert len(read_rows(folder / "checkpoint" / "training.jsonl")) == 14
    assert not (folder / "model").exists()
    resumed = trained(place, name)
    assert resumed.code == 0, resumed
    assert "after step 14" in resumed.err
    assert place.adapter(name) == place.adapter(sound)


def test_a_moments_outlier_stops_nothing(place, sound, monkeypatch):
    with monkeypatch.context() as patch:
        going_wrong(patch, large, 15, 15 + STREAK - 2)
        assert trained(place, "outlier").code == 0
    losses = [step["loss"] for step in read_rows(place.folder / "outlier" / "training.jsonl")]
    assert sum(loss > 40 for loss in losses) == STREAK - 1
    assert place.adapter("outlier") == place.adapter(sound)


def test_the_settings_that_broke_it_break_it_again_at_the_same_step(place):
    words = ["train", "quickstart", "--output", place.folder / "fast", *place.settings(train__learning_rate="1e30")]
    first, second = meditune(*words), meditune(*words)
    first.refused(1, "broke down at step 2", "(here 1e+30)")
    assert "Going on with training after step 1" in second.err
    assert second.err.partition("Error: ")[2] == first.err.partition("Error: ")[2]


def test_noise_is_no_explosion():
    draw = random.Random(1)
    guard = LossGuard()
    for step in range(400):
        level = 2.5 * 0.98**step  # down to almost nothing, as when a small data set is learnt by heart
        guard.add(level + (3 * draw.random() if draw.random() < 0.3 else 0))
        assert not guard.exploded


@pytest.mark.parametrize("level", [0.02, 2.5])
def test_an_explosion_is_one_however_slowly_it_goes_on(level):
    guard = LossGuard([level] * 30)
    for step in range(STREAK):
        assert not guard.exploded
        guard.add(level + 3.5 + step)
    assert guard.exploded
    assert guard.bound == pytest.approx(max(2 * level, level + 3))


def test_a_training_that_begins_high_is_judged_by_what_it_comes_down_to():
    guard = LossGuard([11, 9, 8] + [7] * 3)
    for _ in range(STREAK):
        guard.add(30)
    assert not guard.exploded
