"""The weights that training ends with are the mean of the last steps' where the recipe says so."""

import pytest
import torch

from meditune.config.training_options import TrainSpec
from tests.train.test_sft import steps_of

SPEC = TrainSpec(batch_size=2, accumulation=1, epochs=2, learning_rate=1e-2, average_last=0.5, checkpoint_steps=1)


def test_the_model_ends_with_the_mean_of_the_last_half_of_the_steps():
    kept = {}
    steps, final = steps_of(SPEC, kept=kept)
    assert len(steps) == 12
    last = steps_of(SPEC.model_copy(update={"average_last": 0.0}))[1]
    after = [[kept[step][f"master.{index}"] for index in range(len(final))] for step in range(7, 12)]
    for index, (name, mean) in enumerate(final.items()):
        expected = torch.stack([*(weights[index] for weights in after), last[name]]).mean(dim=0)
        assert torch.allclose(mean, expected, atol=1e-6), name
        assert not torch.equal(mean, last[name])


@pytest.mark.parametrize("step", [3, 8])
def test_going_on_from_before_or_within_the_average_gives_the_same_mean(step):
    kept = {}
    final = steps_of(SPEC, kept=kept)[1]
    again = steps_of(SPEC, resume=(step, kept[step]))[1]
    assert all(torch.equal(final[name], again[name]) for name in final)
