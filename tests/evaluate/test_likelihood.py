"""Likelihoods equal those of a plain transformers loop."""

import math

import pytest
import torch

from meditune.config.data_options import PromptFormat
from meditune.evaluate.evaluator import generate
from meditune.evaluate.likelihood import general_rows, score
from meditune.models.shared_prefix_batch import rows_of
from tests import tiny
from tests.models.test_rows import EXAMPLES

FORM = PromptFormat(max_tokens=256, answer_tokens=32)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_perplexity_and_decisions_equal_a_plain_loop(architecture):
    loaded = tiny.loaded(architecture)
    encoder = loaded.encoder(FORM)
    labels = encoder.label_ids()
    encoded = [encoder.supervised(example, task) for example in EXAMPLES for task in ("decision", "answer")]
    scores = score(loaded, rows_of(encoded), 512, "Scoring", labels)
    for item in encoded:
        ids = torch.tensor([item.prompt + item.target])
        with torch.no_grad():
            logits = loaded.model(input_ids=ids).logits[0].float()
        if item.task == "decision":
            plain = {label: logits[len(item.prompt) - 1, token].item() for label, token in labels.items()}
            assert scores.decisions[item.id] == pytest.approx(plain, abs=1e-4)
        else:
            found = logits.log_softmax(-1)
            nll = -sum(
                found[len(item.prompt) - 1 + offset, token].item() for offset, token in enumerate(item.target[:-1])
            )
            assert scores.answers[item.id].tokens == len(item.target) - 1
            assert scores.answers[item.id].nll == pytest.approx(nll, rel=1e-4)


def test_labels_that_tie_in_bf16_are_told_apart():
    loaded = tiny.loaded()
    loaded.model.to(torch.bfloat16)
    with torch.no_grad():
        head = loaded.model.get_output_embeddings().weight
        labels = loaded.encoder(FORM).label_ids()
        head[labels["no"]] = head[labels["yes"]]
        head[labels["no"], 0] += 2**-9
    row = rows_of([loaded.encoder(FORM).supervised(EXAMPLES[0], "decision")])
    logits = score(loaded, row, 512, "Scoring", labels).decisions["e0"]
    assert logits["yes"] != logits["no"]


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_general_text_is_scored_once_from_its_second_token(architecture):
    loaded = tiny.loaded(architecture)
    text = tiny.WORDS * 3
    rows = general_rows(loaded, text, tokens=100, window=40)
    scores = score(loaded, rows, 512, "General")
    begin = len(loaded.start_ids())
    assert sum(tokens for _, tokens in scores.answers.values()) == 100 - (0 if begin else len(rows))
    assert math.exp(sum(s.nll for s in scores.answers.values()) / 100) > 10


def test_generation_equals_one_prompt_at_a_time_and_stops_at_the_end_token():
    loaded = tiny.loaded()
    encoder = loaded.encoder(FORM)
    prompts = [encoder.prompt(example, "answer") for example in EXAMPLES]
    together = generate(loaded, prompts, 12, "Writing")
    for prompt in prompts:
        ids = torch.tensor([prompt.prompt])
        with torch.no_grad():
            for _ in range(12):
                token = loaded.model(input_ids=ids).logits[0, -1].argmax()
                if token == loaded.tokenizer.eos_token_id:
                    break
                ids = torch.cat([ids, token.view(1, 1)], dim=1)
        alone = loaded.tokenizer.decode(ids[0, len(prompt.prompt) :], skip_special_tokens=True).strip()
        assert together[prompt.id] == alone
