"""The loss in pieces is that of plain logits; penalties without big matrices are the formulas of their papers."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from meditune.config.data_options import PromptFormat
from meditune.config.training_options import LoraSpec, ReplaySpec, TrainSpec
from meditune.data.example import CLAIM_LABELS, LABEL
from meditune.models.adapters import add_lora
from meditune.models.forward import predict
from meditune.models.hidden_state_cache import HiddenStateCache
from meditune.models.shared_prefix_batch import collate, rows_of, windows
from meditune.progress import Progress
from meditune.train import losses, trainer
from meditune.train.dataset import TokenWeights
from meditune.train.regularization import EWC, L2SP, Fisher, StartingPoint, estimate
from meditune.train.replay import plan_replay
from meditune.train.trainer import TrainingRows, plan_steps, train
from tests import tiny
from tests.models.test_forward import EXAMPLES


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_loss_and_gradients_equal_those_of_plain_logits(architecture, dtype, monkeypatch):
    loaded = tiny.loaded(architecture)
    monkeypatch.setattr(losses, "CHUNK_TOKENS", 7)
    monkeypatch.setattr(losses, "EXACT", 3 * loaded.model.get_output_embeddings().weight.shape[0])
    model = add_lora(loaded.model.to(dtype), LoraSpec(r=4), seed=1)
    assert losses.is_plain_head(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    encoder = loaded.encoder(PromptFormat(max_tokens=256, answer_tokens=32))
    batch = collate(rows_of([encoder.supervised(e, task) for e in EXAMPLES for task in ("decision", "answer")]), 1)
    weights = torch.rand(len(batch.targets), generator=torch.Generator().manual_seed(0))
    found = []
    for fused in (False, True):
        predicted = predict(model, batch, logits=not fused)
        if fused:
            assert len(predicted.logits) == 0
            loss = losses.fused_loss(model.get_output_embeddings(), predicted.hidden, batch.targets, weights)
        else:
            loss = losses.plain_loss(predicted, batch.targets, weights)
        (loss * 3).backward()
        found.append((loss.item(), [p.grad.float() for p in model.parameters() if p.requires_grad]))
        model.zero_grad()
    (plain, plain_slopes), (fused, fused_slopes) = found
    assert fused == pytest.approx(plain, rel=1e-5 if dtype == torch.float32 else 1e-3)
    for one, other in zip(plain_slopes, fused_slopes, strict=True):
        assert torch.linalg.norm(one - other) <= (1e-5 if dtype == torch.float32 else 2e-2) * torch.linalg.norm(one)


def test_a_head_whose_logits_are_changed_or_trained_is_not_plain():
    model = tiny.loaded("gemma3").model.requires_grad_(False)
    assert losses.is_plain_head(model)
    model.config.final_logit_softcapping = 30.0
    assert not losses.is_plain_head(model)
    model.config.final_logit_softcapping = None
    model.get_output_embeddings().weight.requires_grad_(True)
    assert not losses.is_plain_head(model)


def test_a_claim_competes_only_with_the_labels_of_its_source_and_other_targets_are_left_alone():
    loaded = tiny.loaded("qwen2")
    encoder = loaded.encoder(PromptFormat(max_tokens=256, answer_tokens=32))
    claim = EXAMPLES[0].model_copy(update={"id": "claim", "meta": {LABEL: "refuted"}})
    two = claim.model_copy(update={"id": "two", "meta": claim.meta | {CLAIM_LABELS: ["supported", "refuted"]}})
    answered = [encoder.supervised(EXAMPLES[1], task) for task in ("decision", "answer")]
    rows = rows_of([encoder.supervised(claim, "claim"), *answered, encoder.supervised(two, "claim")])
    batch = collate(rows, 1)
    logits = predict(loaded.model, batch).logits.float()
    labels = torch.tensor(list(encoder.label_ids().values()))
    each = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")
    each[0] = -logits[0, labels].log_softmax(0)[1]
    each[-1] = -logits[-1, labels[:2]].log_softmax(0)[1]
    weights = torch.rand(len(each), generator=torch.Generator().manual_seed(0))
    found, _ = losses.loss_of_rows(loaded.model, loaded.frozen, rows, weights.tolist(), 1)
    assert found.detach().item() == pytest.approx(float((each * weights).sum()), rel=1e-5)


class Copies(TorchDispatchMode):
    """Counts the copies from the CPU to the meta device after the first matrix product."""

    def __init__(self):
        super().__init__()
        self.late, self.multiplied = 0, False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **kwargs or {})
        self.multiplied |= func.overloadpacket in {torch.ops.aten.mm, torch.ops.aten.addmm}
        from_cpu = args and torch.is_tensor(args[0]) and args[0].device.type == "cpu"
        self.late += bool(self.multiplied and from_cpu and torch.is_tensor(found) and found.is_meta)
        return found


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_losses_never_wait_for_a_device(objective):
    """The meta device has no values to read. A copy to a GPU waits for all earlier operations, so copies come first."""
    loaded = tiny.loaded("qwen2")
    model = add_lora(loaded.model, LoraSpec(r=4), seed=1).to("meta")
    loaded = tiny.with_model(loaded, model)
    encoder = loaded.encoder(FORMAT)
    claim = EXAMPLES[0].model_copy(update={"id": "claim", "meta": {LABEL: "refuted"}})
    rows = rows_of([encoder.supervised(example, task) for example in EXAMPLES for task in ("decision", "answer")])
    claims, with_copies = rows_of([encoder.supervised(claim, "claim")]), Copies()
    with with_copies:
        if objective == "dpo":
            losses.losses_of_rows(model, loaded.frozen, rows, 1)[0].sum().backward()
        else:
            losses.loss_of_rows(model, loaded.frozen, rows, [1.0] * sum(len(row.targets) for row in rows), 1)
    assert with_copies.multiplied
    assert with_copies.late == 0
    losses.loss_of_rows(model, loaded.frozen, claims, [1.0], 1)[0].backward()


def test_a_step_reads_its_losses_after_its_last_batch():
    loaded, model = with_lora()
    loaded = tiny.with_model(loaded, model.to("meta"))
    encoder = loaded.encoder(FORMAT)
    rows = rows_of([encoder.supervised(example, "answer") for example in EXAMPLES])
    part = trainer._WeightedRows(rows, [[1.0] * len(row.targets) for row in rows], 1.0)
    pieces = [trainer.RowShare([index]) for index in range(len(rows))]
    with Progress("Training", None, "tokens") as progress:
        loss = trainer._add_gradients(loaded, part, pieces, 1.0, progress, losses.loss_of_rows)
        assert progress.done == sum(map(len, rows))
    with pytest.raises(RuntimeError, match="meta"):
        float(loss)


STRENGTH = 0.3
SPEC = LoraSpec(r=4, alpha=10.0)
FORMAT = PromptFormat(max_tokens=256, answer_tokens=32)


def moved(model, seed=7):
    """The model with every trained parameter somewhere else, and FP32 master copies of them."""
    torch.manual_seed(seed)
    masters = {}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
                masters[parameter] = parameter.detach().float().clone()
    return masters


def with_lora(architecture="llama"):
    loaded = tiny.loaded(architecture)
    return loaded, add_lora(loaded.model, SPEC, seed=1)


def text_rows(loaded, length=24):
    ids = loaded.tokenizer(tiny.WORDS, add_special_tokens=False)["input_ids"]
    return windows("text", ids, length, loaded.start_ids())[:4]


def check(penalty, masters, formula):
    """Value and gradients of `penalty` are those of `formula`, a function of leaf tensors, by autograd."""
    leaves = {parameter: master.clone().requires_grad_() for parameter, master in masters.items()}
    expected = formula(leaves)
    expected.backward()
    assert penalty.add_gradients(masters) == pytest.approx(expected.item(), rel=1e-5)
    for parameter, leaf in leaves.items():
        torch.testing.assert_close(masters[parameter].grad, leaf.grad, rtol=1e-4, atol=1e-6)
    penalty.add_gradients(masters)
    for parameter, leaf in leaves.items():
        torch.testing.assert_close(masters[parameter].grad, 2 * leaf.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_l2_sp_of_lora_is_the_norm_of_the_whole_change(architecture):
    _, model = with_lora(architecture)
    start = StartingPoint(model)
    assert start.pairs
    assert not start.others

    def formula(leaves):
        changes = [2.5 * leaves[pair.b] @ leaves[pair.a] for pair in start.pairs]
        return STRENGTH / 2 * sum(change.square().sum() for change in changes)

    check(L2SP(start, STRENGTH), moved(model), formula)


def test_l2_sp_of_other_parameters_is_the_distance_from_where_they_were():
    model = tiny.model("llama")
    start = StartingPoint(model)
    before = {parameter: parameter.detach().clone() for parameter in model.parameters()}

    def formula(leaves):
        return STRENGTH / 2 * sum((leaf - before[parameter]).square().sum() for parameter, leaf in leaves.items())

    check(L2SP(start, STRENGTH), moved(model), formula)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_the_fisher_of_lora_is_that_of_the_base_weights(architecture):
    """Against gradients of the base weights themselves, one row at a time, through transformers' own loss."""
    loaded, model = with_lora(architecture)
    rows = text_rows(loaded)
    start = StartingPoint(model)
    found = estimate(model, loaded.pad_id, rows, HiddenStateCache(model, 0), start)
    assert all(parameter.grad is None for parameter in model.parameters())
    weights = [pair.layer.base_layer.weight for pair in start.pairs]
    expected = [torch.zeros_like(weight) for weight in weights]
    for weight in weights:
        weight.requires_grad_()
    for row in rows:
        ids = torch.tensor([row.encoded[0].prompt + row.encoded[0].target])
        tokens = len(row.targets)
        loss = model(input_ids=ids, labels=ids).loss * tokens  # transformers gives the mean over all but the first
        for total, slope in zip(expected, torch.autograd.grad(loss, weights), strict=True):
            total += slope.square() / tokens / len(rows)
    assert len(found.pairs) == len(expected) > 0
    for mine, theirs in zip(found.pairs, expected, strict=True):
        theirs = theirs.T if architecture == "gpt2" else theirs  # its Conv1D keeps (inputs, outputs)
        assert theirs.max() > 0
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-9)


def test_the_fisher_of_other_parameters_is_that_of_each():
    loaded = tiny.loaded()
    model, rows = loaded.model, text_rows(loaded)
    start = StartingPoint(model)
    found = estimate(model, loaded.pad_id, rows, HiddenStateCache(model, 0), start)
    for (parameter, _), mine in zip(start.others, found.others, strict=True):
        expected = torch.zeros_like(parameter)
        for row in rows:
            ids = torch.tensor([row.encoded[0].prompt + row.encoded[0].target])
            loss = model(input_ids=ids, labels=ids).loss * len(row.targets) ** 0.5
            expected += torch.autograd.grad(loss, parameter)[0].square() / len(rows)
        torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-9)


def test_the_fisher_knows_remembered_layers_too():
    fishers = []
    for frozen in (0, 1):
        loaded = tiny.loaded()
        model = add_lora(loaded.model, LoraSpec(r=4), seed=1, top_layers=1)
        layers, rows = HiddenStateCache(model, frozen), text_rows(loaded)
        for _ in range(2):  # the second time from memory
            fisher = estimate(model, loaded.pad_id, rows, layers, StartingPoint(model))
        fishers.append(fisher.pairs)
    for plain, remembered in zip(*fishers, strict=True):
        torch.testing.assert_close(remembered, plain, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("lora", [True, False], ids=["LoRA", "full"])
def test_ewc_is_the_weighted_norm_of_the_change(lora):
    model = with_lora()[1] if lora else tiny.model("llama")
    start = StartingPoint(model)
    torch.manual_seed(5)
    fisher = Fisher(
        [torch.rand(pair.b.shape[0], pair.a.shape[1]) for pair in start.pairs],
        [torch.rand_like(value) for _, value in start.others],
    )
    before = {parameter: parameter.detach().clone() for parameter, _ in start.others}

    def formula(leaves):
        changes = [2.5 * leaves[pair.b] @ leaves[pair.a] for pair in start.pairs]
        changes += [leaves[parameter] - value for parameter, value in before.items()]
        importances = [*fisher.pairs, *fisher.others]
        return STRENGTH / 2 * sum((f * c**2).sum() for f, c in zip(importances, changes, strict=True))

    check(EWC(start, fisher, STRENGTH), moved(model), formula)


def steps_of(penalize, rehearse=False, batch_size=8, accumulation=1, pieces=10_000):
    loaded, model = with_lora()
    encoder = loaded.encoder(FORMAT)
    many = [example.model_copy(update={"id": f"{example.id}-{n}"}) for n in range(4) for example in EXAMPLES]
    rows = rows_of([encoder.supervised(example, "answer") for example in many])
    spec = TrainSpec(
        batch_size=batch_size, accumulation=accumulation, epochs=3, learning_rate=1e-2, micro_batch_tokens=pieces
    )
    start, frozen = StartingPoint(model), HiddenStateCache(model, 0)
    penalties = []
    if penalize:
        fisher = estimate(model, loaded.pad_id, text_rows(loaded), frozen, start)
        penalties = [L2SP(start, 0.05), EWC(start, fisher, 50.0)]
    weights, replay = TokenWeights(many, rows, spec), None
    if rehearse:
        steps = plan_steps(len(rows), spec, 3)
        replay = plan_replay(text_rows(loaded), steps, weights, ReplaySpec(share=0.3), 3)
    in_training = replace(loaded, model=model, frozen=frozen)
    return list(train(in_training, TrainingRows(rows, weights, replay=replay), spec, 3, penalties))


def test_a_step_with_replay_and_penalties_is_the_same_however_it_is_cut():
    whole = steps_of(penalize=True, rehearse=True)
    assert whole[0].penalty == 0
    assert all(step.penalty > 0 for step in whole[1:])
    for cut in (steps_of(True, True, batch_size=1, accumulation=8), steps_of(True, True, pieces=64)):
        for column in ("loss", "replay_loss", "penalty", "grad_norm", "tokens"):
            expected = [getattr(step, column) for step in whole]
            assert [getattr(step, column) for step in cut] == pytest.approx(expected, rel=1e-3, abs=1e-6), column


def test_the_loss_that_is_told_is_that_of_the_tokens():
    """At the start a penalty has no gradient, so that the second step's loss is the same with and without."""
    free, held = steps_of(penalize=False), steps_of(penalize=True)
    assert {step.penalty for step in free} == {0.0}
    assert [step.loss for step in held[:2]] == [step.loss for step in free[:2]]
    assert held[1].penalty > 0
    assert [step.loss for step in held[2:]] != [step.loss for step in free[2:]]
