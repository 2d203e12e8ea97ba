"""What a step does depends on its examples alone, not on how they are cut into pieces.

The weights that training ends with are the mean of the last steps' where the recipe says so. A training that breaks
down stops with the step, the rows' ids, and a checkpoint from before it. A checkpoint is taken up by the settings
that made it. Which tuned models can be tuned further.
"""

import math
import random
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig

from meditune.config.data_options import PromptFormat
from meditune.config.recipe import Recipe
from meditune.config.training_options import LoraSpec, ModelSpec, TrainSpec
from meditune.data.example import LABEL
from meditune.errors import MedituneError, ModelError
from meditune.models.adapters import add_lora, make_trainable
from meditune.models.forward import takes_unpadded
from meditune.models.hidden_state_cache import blocks_of
from meditune.models.shared_prefix_batch import PROMPT, rows_of, with_prompt
from meditune.train import checkpoint, losses
from meditune.train.dataset import TokenWeights, encode
from meditune.train.early_stopping import dev_loss
from meditune.train.optimizer import MasterOptimizer, learning_rate
from meditune.train.trainer import STREAK, LossGuard, Step, TrainingRows, plan_steps, probe, train
from meditune.train.training_plan import check_start
from tests import tiny
from tests.commands import meditune, read_rows
from tests.models.test_forward import EXAMPLES

MANY = [
    example.model_copy(update={"id": f"{example.id}-{copy}", "decision": ("yes", "no", "maybe")[copy % 3]})
    for copy in range(4)
    for example in EXAMPLES
]


def steps_of(spec, lora=True, dtype=torch.float32, resume=None, kept=None):
    loaded = tiny.loaded()
    model = loaded.model.to(dtype)
    if lora:
        model = add_lora(model, LoraSpec(r=4), seed=1)
    encoder = loaded.encoder(PromptFormat(max_tokens=256, answer_tokens=32))
    rows = rows_of([encoder.supervised(e, task) for e in MANY for task in ("decision", "answer")])
    weights = TokenWeights(MANY, rows, spec)

    def keep(step, tensors):
        if kept is not None:
            kept[step] = {key: value.clone() for key, value in tensors.items()}

    data = TrainingRows(rows, weights)
    found = list(train(tiny.with_model(loaded, model), data, spec, 3, resume=resume, checkpoint=keep))
    return found, {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def test_accumulation_and_pieces_equal_one_big_batch():
    losses = []
    for batch_size, accumulation, pieces in ((6, 1, 10_000), (1, 6, 10_000), (3, 2, 64)):
        spec = TrainSpec(
            batch_size=batch_size,
            accumulation=accumulation,
            epochs=3,
            learning_rate=1e-2,
            decision_share=0.5,
            class_balance=0.5,
            micro_batch_tokens=pieces,
        )
        losses.append([step.loss for step in steps_of(spec)[0]])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == pytest.approx(losses[0], rel=1e-4)


def test_the_loss_is_that_of_a_plain_loop():
    """Step one against transformers' own loss on unpadded single sequences with labels on the targets only."""
    spec = TrainSpec(batch_size=len(MANY), accumulation=1, epochs=1)
    first = steps_of(spec)[0][0].loss
    loaded = tiny.loaded()
    encoder = loaded.encoder(PromptFormat(max_tokens=256, answer_tokens=32))
    total = tokens = 0
    for example in MANY:
        for task in ("decision", "answer"):
            item = encoder.supervised(example, task)
            ids = torch.tensor([item.prompt + item.target])
            labels = ids.clone()
            labels[:, : len(item.prompt)] = -100
            with torch.no_grad():
                total += loaded.model(input_ids=ids, labels=labels).loss.item() * len(item.target)
            tokens += len(item.target)
    assert first == pytest.approx(total / tokens, rel=1e-4)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_the_end_token_is_learnt_even_where_it_is_also_the_pad_token(architecture):
    loaded = tiny.loaded(architecture)
    model = loaded.model  # all of it: adapters on random weights learn little
    encoder = loaded.encoder(PromptFormat(max_tokens=256, answer_tokens=32))
    rows = rows_of([encoder.supervised(example, "decision") for example in EXAMPLES])
    spec = TrainSpec(tasks=["decision"], batch_size=3, accumulation=1, epochs=40, learning_rate=1e-2)
    list(train(loaded, TrainingRows(rows, TokenWeights(EXAMPLES, rows, spec)), spec, 1))
    prompt = encoder.prompt(EXAMPLES[0], "decision").prompt
    written = model.generate(input_ids=torch.tensor([prompt]), max_new_tokens=5, do_sample=False)[0, len(prompt) :]
    assert loaded.tokenizer.decode(written) == " yes</s>"


def test_training_goes_on_from_a_checkpoint_as_if_nothing_had_happened():
    spec = TrainSpec(batch_size=2, accumulation=1, epochs=2, learning_rate=1e-2, checkpoint_steps=3)
    kept = {}
    whole, weights = steps_of(spec, kept=kept)
    rest, resumed = steps_of(spec, resume=(whole[:6], kept[6]))
    assert [step.step for step in rest] == [step.step for step in whole[6:]]
    assert [step.loss for step in rest] == [step.loss for step in whole[6:]]
    for name, value in weights.items():
        assert torch.equal(value, resumed[name])


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("frozen", [0, 1])
def test_gradient_checkpointing_changes_no_loss(architecture, frozen):
    losses = []
    for checkpointing in (False, True):
        loaded = tiny.loaded(architecture)
        model = add_lora(loaded.model, LoraSpec(r=4), seed=1, top_layers=1 if frozen else None)
        encoder = loaded.encoder(PromptFormat(max_tokens=256, answer_tokens=32))
        rows = rows_of([encoder.supervised(example, "answer") for example in EXAMPLES])
        spec = TrainSpec(
            tasks=["answer"], batch_size=2, epochs=3, learning_rate=1e-2, gradient_checkpointing=checkpointing
        )
        data = TrainingRows(rows, TokenWeights(EXAMPLES, rows, spec))
        steps = train(tiny.with_model(loaded, model, frozen), data, spec, 1)
        losses.append([step.loss for step in steps])
    assert losses[0][-1] < losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("strategy", ["lora", "full"])
def test_with_checkpointing_frozen_layers_take_one_forward_pass_and_no_backward_pass(architecture, strategy):
    loaded = tiny.loaded(architecture)
    encoder = loaded.encoder(PromptFormat(max_tokens=256, answer_tokens=32))
    rows = rows_of([encoder.supervised(example, "answer") for example in EXAMPLES])
    spec = TrainSpec(batch_size=3, accumulation=1, epochs=1, learning_rate=1e-2)
    made = []
    for checkpointing in (False, True):
        spec = spec.model_copy(update={"gradient_checkpointing": checkpointing})
        model = make_trainable(tiny.loaded(architecture).model, ModelSpec(strategy=strategy, top_layers=1), seed=1)
        assert takes_unpadded(model)  # which ran the model
        passes, slopes = [], {}
        for number, block in enumerate(blocks_of(model)):
            block.mlp.register_forward_pre_hook(lambda *_, passes=passes, number=number: passes.append(number))
            block.register_forward_hook(
                lambda _, __, output, slopes=slopes, number=number: slopes.update(
                    {number: (output[0] if isinstance(output, tuple) else output).requires_grad}
                )
            )
        data = TrainingRows(rows, TokenWeights(EXAMPLES, rows, spec))
        steps = list(train(tiny.with_model(loaded, model), data, spec, 1))
        assert passes == ([0, 1, 1] if checkpointing else [0, 1])
        assert slopes == {0: False, 1: True}
        trained = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        made.append((steps[0].grad_norm, trained))
    assert made[1][0] == made[0][0]
    for name, value in made[0][1].items():
        assert torch.equal(made[1][1][name], value), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_training_in_16_bits_follows_fp32(dtype):
    spec = TrainSpec(batch_size=4, accumulation=1, epochs=8, learning_rate=5e-3)
    exact = [step.loss for step in steps_of(spec, lora=False)[0]]
    rounded = [step.loss for step in steps_of(spec, lora=False, dtype=dtype)[0]]
    assert exact[-1] < 0.8 * exact[0]
    assert rounded == pytest.approx(exact, rel=0.02)


def test_bf16_parameters_take_in_updates_that_are_smaller_than_their_rounding():
    parameter = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = MasterOptimizer([parameter], TrainSpec(learning_rate=1e-4))
    for _ in range(100):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step(1e-4)
    assert parameter.float().tolist() == pytest.approx([0.99] * 4, abs=0.004)


def test_an_fp16_overflow_is_skipped_and_the_loss_scaled_down():
    parameter = torch.nn.Parameter(torch.ones(2, dtype=torch.float16))
    optimizer = MasterOptimizer([parameter], TrainSpec(learning_rate=0.1))
    before = optimizer.scale
    parameter.grad = torch.tensor([float("inf"), 1.0], dtype=torch.float16)
    assert optimizer.step(0.1) == float("inf")
    assert parameter.tolist() == [1.0, 1.0]
    assert optimizer.scale == before / 2


def test_a_gradient_that_is_no_number_is_never_applied():
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = MasterOptimizer([parameter], TrainSpec())
    parameter.grad = torch.tensor([float("nan"), 1.0])
    assert not math.isfinite(optimizer.step(0.1))
    assert parameter.tolist() == [1.0, 1.0]
    assert optimizer.scale == 1


def test_every_example_comes_once_an_epoch():
    spec = TrainSpec(batch_size=4, accumulation=2, epochs=2.5)
    steps = plan_steps(21, spec, seed=1)
    seen = [index for step in steps for index in step]
    assert sorted(seen[:21]) == sorted(seen[21:42]) == list(range(21))
    assert len(seen[42:]) == 10
    assert seen[:21] != seen[21:42]
    assert [len(step) for step in steps] == [7, 7, 7, 7, 7, 7, 5, 5]
    assert plan_steps(21, spec, seed=1) == steps
    assert plan_steps(21, spec, seed=2) != steps


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(449, [29] + [30] * 14), (1, [1]), (32, [32]), (33, [16, 17]), (65, [21, 22, 22]), (64, [32, 32])],
)
def test_an_epochs_steps_have_equal_sizes(count, sizes):
    """Each step has the full learning rate, so a last one of a single example would weigh 32 times as much."""
    steps = plan_steps(count, TrainSpec(batch_size=8, accumulation=4, epochs=2), seed=1)
    assert sorted(map(len, steps[: len(sizes)])) == sorted(map(len, steps[len(sizes) :])) == sizes
    assert sorted(index for step in steps[: len(sizes)] for index in step) == list(range(count))


def test_learning_rate_warms_up_and_falls():
    spec = TrainSpec(learning_rate=1.0)
    rates = [learning_rate(step, 100, spec) for step in range(100)]
    assert rates[:3] == sorted(rates[:3])
    assert max(rates) == 1.0
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert 0 < rates[-1] < 0.02


def test_token_weights_give_each_task_its_share_and_rare_decisions_more():
    loaded = tiny.loaded()
    encoder = loaded.encoder(PromptFormat(max_tokens=256, answer_tokens=32))
    uneven = [e.model_copy(update={"decision": "yes" if i < 9 else "maybe"}) for i, e in enumerate(MANY)]
    rows = rows_of([encoder.supervised(e, task) for e in uneven for task in ("decision", "answer")])
    weights = TokenWeights(uneven, rows, TrainSpec(decision_share=0.4, class_balance=1.0))
    sums = {"decision": 0.0, "answer": 0.0}
    by_class = {"yes": 0.0, "maybe": 0.0}
    for row, example in zip(rows, uneven, strict=True):
        for weight, number in zip(weights.of(row), row.of, strict=True):
            task = row.encoded[number].task
            sums[task] += weight
            if task == "decision":
                by_class[example.decision] += weight
    assert sums["decision"] / sum(sums.values()) == pytest.approx(0.4)
    assert by_class["yes"] == pytest.approx(by_class["maybe"])
    plain = TokenWeights(uneven, rows, TrainSpec())
    assert {weight for row in rows for weight in plain.of(row)} == {1.0}
    whole = [with_prompt(row) for row in rows]
    spec = TrainSpec(decision_share=0.4, class_balance=1.0, prompt_share=0.5)
    learnt = TokenWeights(uneven, whole, spec)
    pairs = [pair for row in whole for pair in zip(learnt.of(row), row.of, strict=True)]
    assert sum(weight for weight, number in pairs if number == PROMPT) == pytest.approx(sum(w for w, _ in pairs) / 2)
    assert sum(weight for weight, number in pairs if number == 0) == pytest.approx(sum(w for w, _ in pairs) * 0.2)


@pytest.mark.parametrize("whole", [False, True], ids=["targets", "prompts"])
@pytest.mark.parametrize("decision_share", [None, 0.4])
def test_claims_get_their_share_and_the_other_tasks_divide_the_rest_as_before(decision_share, whole):
    encoder = tiny.loaded().encoder(PromptFormat(max_tokens=256, answer_tokens=32))
    claims = [
        each.model_copy(update={"id": f"c:{number}", "decision": None, "answer": "", "meta": {LABEL: "refuted"}})
        for number, each in enumerate(MANY[:5])
    ]
    examples = [*MANY, *claims]
    spec = TrainSpec(tasks=["decision", "answer", "claim"], decision_share=decision_share, class_balance=1.0)
    spec = spec.model_copy(update={"prompt_share": 0.5 if whole else 0.0})
    rows, _ = encode(examples, encoder, spec.tasks, prompts=whole)

    def sums(spec):
        found = Counter()
        weights = TokenWeights(examples, rows, spec, {"c:0": 3.0})
        for row in rows:
            often = 3 if row.encoded[0].id == "c:0" else 1
            for weight, number in zip(weights.of(row), row.of, strict=True):
                found["prompt" if number == PROMPT else row.encoded[number].task] += often * weight
        return found

    before, after = sums(spec), sums(spec.model_copy(update={"claim_share": 0.3}))
    learnt = 0.5 if whole else 1.0
    assert after["claim"] == pytest.approx(0.3 * learnt * after.total())
    assert after["decision"] / after["answer"] == pytest.approx(before["decision"] / before["answer"])
    assert after["prompt"] == pytest.approx((1 - learnt) * after.total())
    assert after.total() == pytest.approx(before.total())
    assert before["claim"] == pytest.approx(learnt * 7), "a claim is one token, one of them comes three times"


@pytest.mark.parametrize("tasks", [("decision", "answer"), ("answer", "decision"), ("answer",)])
@pytest.mark.parametrize("whole", [False, True])
def test_the_end_of_an_answer_can_weigh_less(tasks, whole):
    encoder = tiny.loaded().encoder(PromptFormat(max_tokens=256, answer_tokens=32))
    long = MANY[0].model_copy(update={"id": "s:long", "answer": "word " * 400})
    for example in (MANY[0], long):
        row = rows_of([encoder.supervised(example, task) for task in tasks])[0]
        row = with_prompt(row) if whole else row
        spec = TrainSpec(end_weight=0.25, prompt_share=0.5 if whole else 0)
        pairs = list(
            zip(
                TokenWeights([example], [row], spec, end_id=encoder.tokenizer.eos_token_id).of(row),
                row.targets,
                row.of,
                strict=True,
            )
        )
        words = [weight for weight, token, of in pairs if of != PROMPT and token != encoder.tokenizer.eos_token_id]
        answer = tasks.index("answer")
        ends = [weight for weight, token, of in pairs if of == answer and token == encoder.tokenizer.eos_token_id]
        assert set(words) == {words[0]}
        assert ends == ([words[0] * 0.25] if example is MANY[0] else []), "an answer that is cut has no end"


def test_ends_that_weigh_less_leave_the_shares_as_they_are():
    encoder = tiny.loaded().encoder(PromptFormat(max_tokens=256, answer_tokens=32))
    rows = rows_of([encoder.supervised(each, task) for each in MANY for task in ("decision", "answer")])
    spec = TrainSpec(decision_share=0.4, end_weight=0.25)
    weights = TokenWeights(MANY, rows, spec, end_id=encoder.tokenizer.eos_token_id)
    pairs = [
        (weight, row.encoded[number].task)
        for row in rows
        for weight, number in zip(weights.of(row), row.of, strict=True)
    ]
    decided = sum(weight for weight, task in pairs if task == "decision")
    assert decided / sum(weight for weight, _ in pairs) == pytest.approx(0.4)


def test_the_probe_changes_nothing():
    loaded = tiny.loaded()
    model = add_lora(loaded.model, LoraSpec(r=4), seed=1)
    encoder = loaded.encoder(PromptFormat(max_tokens=256, answer_tokens=32))
    rows = rows_of([encoder.supervised(example, "answer") for example in EXAMPLES])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    spec = TrainSpec()
    assert probe(tiny.with_model(loaded, model), TrainingRows(rows, TokenWeights(EXAMPLES, rows, spec)), spec) > 0
    assert all(torch.equal(before[name], p) and p.grad is None for name, p in model.named_parameters())


def test_what_is_fp32_in_an_fp16_model_is_trained_with_a_scaled_loss_too():
    parameter = torch.nn.Parameter(torch.ones(2))
    assert MasterOptimizer([parameter], TrainSpec()).scale == 1.0
    optimizer = MasterOptimizer([parameter], TrainSpec(), fp16=True)
    assert optimizer.scale > 1
    parameter.grad = torch.full((2,), 1e-3) * optimizer.scale
    assert optimizer.step(0.1) == pytest.approx(1e-3 * 2**0.5)
    assert parameter.tolist() == pytest.approx([0.899, 0.899], abs=1e-4)


def test_the_loss_on_dev_is_the_loss_of_training():
    """Measured on what the first step reads, it is that step's, prompts included."""
    loaded = tiny.loaded()
    form = PromptFormat(max_tokens=256, answer_tokens=32)
    spec = TrainSpec(batch_size=len(MANY), accumulation=1, epochs=1, prompt_share=0.5, decision_share=0.7)
    rows, _ = encode(MANY, loaded.encoder(form), spec.tasks, prompts=True)
    measured = dev_loss(MANY, loaded.encoder(form), Recipe(name="run", train=spec, prompt=form))(loaded)
    step = next(train(loaded, TrainingRows(rows, TokenWeights(MANY, rows, spec)), spec, 1))
    assert measured == pytest.approx(step.loss, rel=1e-5)


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
    steps, final = steps_of(SPEC, kept=kept)
    again = steps_of(SPEC, resume=(steps[:step], kept[step]))[1]
    assert all(torch.equal(final[name], again[name]) for name in final)


STEPS = {"train__batch_size": 2, "train__checkpoint_steps": 4, "train__epochs": 2}
TRIED = 1
"""Calls before the first step: the pre-flight's piece."""


def trained(place, name):
    return meditune("train", "quickstart", "--output", place.folder / name, *place.settings(**STEPS))


@pytest.fixture(scope="module")
def sound(place):
    trained(place, "sound").ok()
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
    [(no_number, "the loss is nan"), (no_gradient, "gradient's norm is"), (large, "the loss has been above")],
    ids=["loss", "gradient", "explosion"],
)
def test_it_stops_before_the_step_and_goes_on_from_there(place, sound, monkeypatch, request, wrong, what):
    name = request.node.callspec.id
    folder = place.folder / name
    with monkeypatch.context() as patch:
        going_wrong(patch, wrong, 15)
        result = trained(place, name)
    result.refused(1, "diverged at step 15", what, str(folder / "checkpoint"), "train.learning_rate")
    ids = re.search(r"Rows of that step: (.*?)\. ", result.err)[1].split(", ")
    by_id = {row["id"]: row for row in read_rows(folder / "data" / "train.jsonl")}
    assert len(ids) == STEPS["train__batch_size"]
    assert set(ids) <= by_id.keys()
    assert not any(by_id[each]["question"] in result.err.partition("diverged")[2] for each in ids)
    assert len(read_rows(folder / "checkpoint" / "training.jsonl")) == 14
    assert not (folder / "model").exists()
    resumed = trained(place, name).ok()
    assert "after step 14" in resumed.err
    assert place.adapter(name) == place.adapter(sound)


def test_a_moments_outlier_stops_nothing(place, sound, monkeypatch):
    with monkeypatch.context() as patch:
        going_wrong(patch, large, 15, 15 + STREAK - 2)
        trained(place, "outlier").ok()
    losses = [step["loss"] for step in read_rows(place.folder / "outlier" / "training.jsonl")]
    assert sum(loss > 40 for loss in losses) == STREAK - 1
    assert place.adapter("outlier") == place.adapter(sound)


def test_the_settings_that_broke_it_break_it_again_at_the_same_step(place):
    words = ["train", "quickstart", "--output", place.folder / "fast", *place.settings(train__learning_rate="1e30")]
    first, second = meditune(*words), meditune(*words)
    first.refused(1, "diverged at step 2", "(now 1e+30)")
    assert "Resuming training after step 1" in second.err
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
    assert guard.upper_limit == pytest.approx(max(2 * level, level + 3))


def test_a_training_that_begins_high_is_judged_by_what_it_comes_down_to():
    guard = LossGuard([11, 9, 8] + [7] * 3)
    for _ in range(STREAK):
        guard.add(30)
    assert not guard.exploded


@pytest.fixture
def stored(tmp_path):
    found = tmp_path / "checkpoint"
    checkpoint.write(found, [], {"master.0": torch.ones(2)}, Recipe(name="run"), sharded=False)
    return found


def test_shards_from_before_the_first_step_can_be_read(tmp_path):
    """They are written if the first loss isn't finite, and contain no state of the optimizer."""
    model, recipe = torch.nn.Linear(3, 2), Recipe(name="run")
    optimizer = MasterOptimizer(list(model.parameters()), recipe.train)
    with pytest.warns(UserWarning, match=r"torch\.distributed is .*uninitialized"):
        checkpoint.write(tmp_path / "checkpoint", [], optimizer.state(), recipe, sharded=True)
    log, tensors = checkpoint.read(tmp_path / "checkpoint", model, recipe)
    assert log == []
    optimizer.restore(tensors)
    assert torch.equal(optimizer.masters[0], model.weight)
    assert not any(optimizer.optimizer.state.values())


def test_other_settings_are_refused(stored):
    model = torch.nn.Linear(1, 1)
    log, tensors = checkpoint.read(stored, model, Recipe(name="another name"))
    assert log == []
    assert torch.equal(tensors["master.0"], torch.ones(2))
    with pytest.raises(MedituneError, match="other training settings"):
        checkpoint.read(stored, model, Recipe(name="run", train={"average_last": 0.5}))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc")
def test_what_was_read_doesnt_hold_the_file(stored):
    """A network disk can't remove the folder of a file that is mapped, and the next checkpoint takes its place."""
    _, tensors = checkpoint.read(stored, torch.nn.Linear(1, 1), Recipe(name="run"))
    assert tensors
    assert str(stored) not in Path("/proc/self/maps").read_text(encoding="utf-8")


def test_the_tokens_of_finished_steps_are_known(tmp_path):
    stored = tmp_path / "checkpoint"
    assert checkpoint.tokens_read(stored) == 0
    steps = [Step(number, 0.1, 1.0, 1e-4, 1.0, 100 * number, 10, 1.0) for number in (1, 2)]
    checkpoint.write(stored, steps, {"master.0": torch.ones(2)}, Recipe(name="run"), sharded=False)
    assert checkpoint.tokens_read(stored) == 300


@pytest.mark.parametrize("kind", [PrefixTuningConfig, PromptTuningConfig, PromptEncoderConfig])
def test_virtual_tokens_of_any_kind_cant_be_tuned_further(kind, tmp_path):
    kind(task_type="CAUSAL_LM", num_virtual_tokens=3).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"is an adapter of virtual tokens"):
        check_start(Recipe(name="further", model={"base": str(tmp_path)}))


def test_a_gradient_that_overflows_has_no_norm(monkeypatch):
    loaded, usual = tiny.loaded(), MasterOptimizer.__init__

    def overflowing(self, *given):
        usual(self, *given)
        self.scale = 2.0
        self.step = lambda _: math.inf

    monkeypatch.setattr(MasterOptimizer, "__init__", overflowing)
    encoder = loaded.encoder(PromptFormat(max_tokens=256, answer_tokens=32))
    rows = rows_of([encoder.supervised(each, "answer") for each in EXAMPLES])
    spec = TrainSpec(epochs=1.0)
    step = next(train(loaded, TrainingRows(rows, TokenWeights(EXAMPLES, rows, spec)), spec, 1))
    assert step.grad_norm is None
