"""Shared prompts must give what separate rows give, on every architecture."""

import pytest
import torch

from meditune.config.data_options import PromptFormat
from meditune.data.example import Example, Passage
from meditune.models.forward import predict
from meditune.models.shared_prefix_batch import PROMPT, by_length, collate, join, rows_of, with_prompt
from tests import tiny

EXAMPLES = [
    Example(
        id=f"e{index}",
        source="test",
        question="Does the drug help with pain" + " in adults" * index + "?",
        context=(
            Passage(text="Patients were given a drug or a placebo. " * (index + 1), label="METHODS"),
            Passage(text="Pain fell by 30 percent in the group with the drug.", label="RESULTS"),
        ),
        answer="The drug helps with pain" + " in adults" * (2 - index) + ".",
        decision="yes",
        group=f"e{index}",
    )
    for index in range(3)
]


def logits_by_task(loaded, share, mixed=True):
    encoder = loaded.encoder(PromptFormat(max_tokens=256, answer_tokens=32))
    encoded = [encoder.supervised(example, task) for example in EXAMPLES for task in ("decision", "answer")]
    rows = rows_of(encoded, share_prompts=share)
    found = {}
    with torch.no_grad():
        for indices in by_length(rows, 10_000 if mixed else 1):
            chosen = [rows[index] for index in indices]
            logits = predict(loaded.model, collate(chosen, loaded.pad_id)).logits
            start = 0
            for item in (item for row in chosen for item in row.encoded):
                found[item.id, item.task] = logits[start : start + len(item.target)]
                start += len(item.target)
    return found, rows


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_shared_prompts_and_padding_change_nothing(architecture):
    loaded = tiny.loaded(architecture)
    shared, joined = logits_by_task(loaded, share=True)
    alone, separate = logits_by_task(loaded, share=False, mixed=False)
    assert len(joined) == 3
    assert len(separate) == 6
    assert sum(map(len, joined)) < 0.7 * sum(map(len, separate))
    assert shared.keys() == alone.keys()
    for key, expected in alone.items():
        torch.testing.assert_close(shared[key], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_selected_logits_equal_a_plain_forward_pass(architecture):
    loaded = tiny.loaded(architecture, attention="sdpa")
    found, rows = logits_by_task(loaded, share=False)
    for row in rows:
        item = row.encoded[0]
        whole = torch.tensor([item.prompt + item.target])
        with torch.no_grad():
            plain = loaded.model(input_ids=whole).logits[0]
        expected = plain[len(item.prompt) - 1 : len(item.prompt) + len(item.target) - 1]
        torch.testing.assert_close(found[item.id, item.task], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_grouped_attention_equals_sdpa(architecture):
    grouped, _ = logits_by_task(tiny.loaded(architecture, "grouped"), share=True)
    plain, _ = logits_by_task(tiny.loaded(architecture, "sdpa"), share=True)
    for key, expected in plain.items():
        torch.testing.assert_close(grouped[key], expected, atol=1e-4, rtol=1e-4)


def test_batches_hold_every_row_once_within_their_size():
    encoder = tiny.loaded().encoder(PromptFormat(max_tokens=256, answer_tokens=32))
    rows = rows_of([encoder.supervised(example, "answer") for example in EXAMPLES])
    limit = 2 * max(map(len, rows))
    batches = by_length(rows, limit)
    assert sorted(index for batch in batches for index in batch) == [0, 1, 2]
    assert all(len(batch) * max(len(rows[index]) for index in batch) <= limit for batch in batches)


def test_a_prompt_is_learnt_as_running_text_is():
    loaded = tiny.loaded("llama", attention="sdpa")
    item = loaded.encoder(PromptFormat(max_tokens=256, answer_tokens=32)).supervised(EXAMPLES[0], "answer")
    row = with_prompt(join([item]))
    ids = torch.tensor([[*item.prompt, *item.target]])
    with torch.no_grad():
        found = predict(loaded.model, collate([row], loaded.pad_id)).logits
        plain = loaded.model(ids).logits[0]
    # The cue, which another task would have in another form, isn't learnt.
    learnt = [place for place in range(1, ids.shape[1]) if place != len(item.prompt) - 1]
    assert row.of.count(PROMPT) == len(item.prompt) - 2
    order = torch.tensor(row.predicted_by).argsort()
    assert torch.tensor(row.targets)[order].tolist() == ids[0, learnt].tolist()
    torch.testing.assert_close(found[order], plain[torch.tensor(learnt) - 1], atol=1e-4, rtol=1e-4)
