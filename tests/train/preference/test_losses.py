"""DPO's and ORPO's losses: what they are at the start, and that they are TRL's and the papers'."""

import math

import pytest
import torch

from meditune.config.data_options import PromptFormat
from meditune.config.training_options import LoraSpec
from meditune.models.adapters import add_lora
from meditune.models.hidden_state_cache import FrozenLayers
from meditune.models.shared_prefix_batch import rows_of_pairs
from meditune.train.losses import PairLoss, dpo, log_likelihoods, orpo
from tests import tiny
from tests.train.preference.pairs import PAIRS

FORMAT = PromptFormat(max_tokens=256, answer_tokens=32)


def start(architecture="llama", trained_head=False):
    """A tiny model to be trained, rows of pairs, and their log-likelihoods before that."""
    loaded = tiny.loaded(architecture)
    rows, _ = rows_of_pairs(PAIRS, loaded.encoder(FORMAT))
    model = loaded.model if trained_head else add_lora(loaded.model, LoraSpec(r=4), seed=1)
    with torch.no_grad():
        before, _, _ = log_likelihoods(model, FrozenLayers(model, 0), rows, loaded.pad_id)
    reference = {row.encoded[0].id: both for row, both in zip(rows, before.tolist(), strict=True)}
    return loaded, model, rows, reference


def move(model):
    """Let what is trained leave its start."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)


def plain_likelihoods(model, rows):
    """(R, 2) sums by transformers' own logits, an answer at a time."""
    found = []
    for row in rows:
        for item in row.encoded:
            logits = model(input_ids=torch.tensor([item.prompt + item.target])).logits[0, len(item.prompt) - 1 : -1]
            found.append(logits.log_softmax(-1).gather(1, torch.tensor(item.target)[:, None]).sum())
    return torch.stack(found).view(-1, 2)


def gradients(model, loss):
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))


@pytest.mark.parametrize("objective", ["dpo", "orpo"])
@pytest.mark.parametrize(("architecture", "trained_head"), [("llama", False), ("llama", True), ("gemma3", False)])
def test_both_answers_in_one_row_give_the_loss_and_gradients_of_separate_ones(objective, architecture, trained_head):
    loaded, model, rows, reference = start(architecture, trained_head)
    move(model)
    loss_of = PairLoss(0.3, reference if objective == "dpo" else None)
    shares = [1 / len(rows)] * len(rows)
    loss, batch = loss_of(model, FrozenLayers(model, 0), rows, shares, loaded.pad_id)
    sums = plain_likelihoods(model, rows)
    tokens = torch.tensor([[len(item.target) for item in row.encoded] for row in rows])
    if objective == "dpo":
        expected = dpo(sums, torch.tensor(list(reference.values())), 0.3).mean()
    else:
        expected = orpo(sums / tokens, 0.3).mean()
    assert batch.real_tokens < 0.75 * sum(len(item.prompt + item.target) for row in rows for item in row.encoded)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    plain = gradients(model, expected)
    for name, slope in gradients(model, loss).items():
        torch.testing.assert_close(slope, plain[name], atol=1e-5, rtol=1e-3)


def test_where_nothing_has_moved_dpo_is_ln_2():
    now = torch.tensor([[-3.0, -7.0], [-9.0, -2.0]])
    assert dpo(now, now, 0.1).tolist() == pytest.approx([math.log(2)] * 2)


def test_orpo_is_the_papers_formula_also_where_it_is_hard_to_compute():
    for chosen, rejected in ((0.3, 0.6), (0.999, 1e-6), (0.5, 0.5)):
        ratio = (chosen / (1 - chosen)) / (rejected / (1 - rejected))
        expected = -math.log(chosen) - 0.2 * math.log(1 / (1 + 1 / ratio))
        given = torch.tensor([[math.log(chosen), math.log(rejected)]], dtype=torch.float64)
        assert orpo(given, 0.2).item() == pytest.approx(expected)
    certain = torch.tensor([[0.0, -1.0]], requires_grad=True)
    orpo(certain, 0.2).sum().backward()
    assert torch.isfinite(certain.grad).all()


def test_dpo_equals_trls_loss_and_gradients(tmp_path, monkeypatch):
    """TRL's own trainer computes its loss on the same tokens with the same adapter, its reference the start."""
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("trl", reason="trl is in the dependency group dev")
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    loaded, model, rows, reference = start()
    texts = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    settings = {"beta": 0.3, "use_cpu": True, "report_to": [], "bf16": False}
    trainer = DPOTrainer(
        model,
        args=DPOConfig(output_dir=str(tmp_path), loss_type="sigmoid", **settings),
        train_dataset=Dataset.from_list(texts),
        processing_class=loaded.tokenizer,
    )
    move(model)  # the trainer has kept a copy of the adapter as its reference
    tokens = [
        {
            "prompt_ids": row.encoded[0].prompt,
            "chosen_ids": row.encoded[0].target,
            "rejected_ids": row.encoded[1].target,
        }
        for row in rows
    ]
    loaded.model.set_attn_implementation("sdpa")  # TRL's masks are two-dimensional
    theirs = trainer.compute_loss(model, trainer.data_collator(tokens))
    their_slopes = gradients(model, theirs)
    loaded.model.set_attn_implementation("eager")
    ours, _ = PairLoss(0.3, reference)(model, FrozenLayers(model, 0), rows, [1 / len(rows)] * len(rows), loaded.pad_id)
    assert abs(theirs.item() - math.log(2)) > 0.01
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    for name, slope in gradients(model, ours).items():
        torch.testing.assert_close(slope, their_slopes[name], atol=1e-5, rtol=1e-3)


def test_orpos_odds_ratio_equals_trls(monkeypatch):
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    pytest.importorskip("trl", reason="trl is in the dependency group dev")
    from types import SimpleNamespace

    from trl.experimental.orpo import ORPOTrainer

    mean = torch.tensor([[-0.4, -1.5], [-2.5, -0.2], [-0.01, -6.0]])
    fields = SimpleNamespace(beta=0.2, accelerator=SimpleNamespace(device="cpu"))
    theirs = ORPOTrainer.odds_ratio_loss(fields, mean[:, 0], mean[:, 1])[0]
    torch.testing.assert_close(orpo(mean, 0.2), -mean[:, 0] - theirs)
