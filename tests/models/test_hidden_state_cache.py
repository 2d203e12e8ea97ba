"""Remembered lower layers must change nothing but the time."""

from dataclasses import replace

import pytest
import torch

from meditune.config.data_options import PromptFormat
from meditune.config.training_options import LoraSpec, TrainSpec
from meditune.models.adapters import add_lora
from meditune.models.hidden_state_cache import HiddenStateCache, blocks_of
from meditune.models.shared_prefix_batch import rows_of
from meditune.train.dataset import TokenWeights
from meditune.train.trainer import TrainingRows, train
from tests import tiny
from tests.models.test_forward import EXAMPLES


def rows(loaded):
    encoder = loaded.encoder(PromptFormat(max_tokens=256, answer_tokens=32))
    return rows_of([encoder.supervised(example, task) for example in EXAMPLES for task in ("decision", "answer")])


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@torch.no_grad()
def test_a_second_visit_gives_the_same_in_another_batch(architecture):
    loaded = tiny.loaded(architecture, frozen=1)
    made = rows(loaded)
    first = loaded.frozen.predict(loaded.model, made, loaded.pad_id)[1].logits
    calls = []
    hook = blocks_of(loaded.model)[0].register_forward_hook(lambda *_: calls.append("lowest layer"))
    inner = next(module for name, module in blocks_of(loaded.model)[0].named_modules() if "mlp" in name)
    computed = inner.register_forward_hook(lambda *_: calls.append("computed"))
    again = [loaded.frozen.predict(loaded.model, [row], loaded.pad_id)[1].logits for row in made]
    hook.remove()
    computed.remove()
    assert "computed" not in calls
    torch.testing.assert_close(torch.cat(again), first, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_training_is_the_same_with_and_without_memory(architecture):
    losses = []
    for frozen in (0, 1):
        loaded = tiny.loaded(architecture)
        model = add_lora(loaded.model, LoraSpec(r=4), seed=1, top_layers=1)
        made = rows(loaded)
        spec = TrainSpec(batch_size=2, accumulation=1, epochs=3, learning_rate=1e-2)
        data = TrainingRows(made, TokenWeights(EXAMPLES, made, spec))
        steps = train(tiny.with_model(loaded, model, frozen), data, spec, 1)
        losses.append([step.loss for step in steps])
    assert losses[0][-1] < losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize(
    ("dtype", "max_gb"), [(torch.float32, 2.0), (torch.float32, 1e-4), (torch.bfloat16, 2.0)], ids=str
)
def test_resumed_training_ends_with_the_same_bits(dtype, max_gb):
    """A matrix product rounds by its batch's shape, and after a stop other rows are visited together first."""
    many = [
        EXAMPLES[0].model_copy(update={"id": f"e{n}", "question": "Does it help? " * (1 + n % 9)}) for n in range(24)
    ]
    spec = TrainSpec(batch_size=4, accumulation=1, epochs=3, learning_rate=1e-2, checkpoint_steps=1)
    kept, runs = {}, []
    for done in (0, 3):
        loaded = tiny.loaded()
        model = add_lora(loaded.model.to(dtype), LoraSpec(r=4), seed=1, top_layers=1)
        encoder = loaded.encoder(PromptFormat(max_tokens=256, answer_tokens=32))
        made = rows_of([encoder.supervised(example, "answer") for example in many])
        frozen = HiddenStateCache(model, 1, max_gb)
        if not done:
            with torch.no_grad():
                frozen.predict(model, made[:9], loaded.pad_id)  # measured before the stop, so not again after it
        frozen.group(made, 700)

        def save(step, tensors, done=done):
            if not done:
                kept[step] = {key: value.clone() for key, value in tensors.items()}

        resume = (runs[0][:done], kept[done]) if done else None
        data = TrainingRows(made, TokenWeights(many, made, spec))
        in_training = replace(loaded, model=model, frozen=frozen)
        steps = train(in_training, data, spec, 1, resume=resume, checkpoint=save)
        runs.append([replace(step, seconds=0) for step in steps])
        assert 0 < frozen.bytes <= frozen.max_bytes
    assert runs[1] == runs[0][3:]


def test_memory_is_bounded():
    loaded = tiny.loaded(frozen=1)
    loaded.frozen.max_bytes = 0
    with torch.no_grad():
        loaded.frozen.predict(loaded.model, rows(loaded), loaded.pad_id)
    assert loaded.frozen.bytes == 0


@torch.no_grad()
def test_what_is_remembered_is_no_noise():
    """GPT-2's attention drops out by itself, beside its dropout layers."""
    loaded = tiny.loaded("gpt2", frozen=1)
    tiny.blocks_drop_out(loaded.model, 0.5)
    seen = []
    hook = blocks_of(loaded.model)[0].register_forward_hook(lambda _, __, output: seen.append(output))
    loaded.model.train()
    loaded.frozen.without_dropout(loaded.model)
    for _ in range(2):
        HiddenStateCache(loaded.model, 1).predict(loaded.model, rows(loaded), loaded.pad_id)
    hook.remove()
    first, again = (output[0] if isinstance(output, tuple) else output for output in seen)
    assert torch.equal(first, again)
