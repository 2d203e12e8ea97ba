"""The loss in pieces is that of plain logits, and is only taken where it may be."""

import pytest
import torch

from meditune.config.data_options import PromptFormat
from meditune.config.training_options import LoraSpec
from meditune.data.example import CLAIM_LABELS, LABEL
from meditune.models.adapters import add_lora
from meditune.models.forward import predict
from meditune.models.shared_prefix_batch import collate, rows_of
from meditune.train import losses
from tests import tiny
from tests.models.test_forward import EXAMPLES


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_loss_and_gradients_equal_those_of_plain_logits(architecture, dtype, monkeypatch):
    loaded = tiny.loaded(architecture)
    monkeypatch.setattr(losses, "PIECE", 7)
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
