"""Scoring given texts, as lm-evaluation-harness does it."""

import math

import pytest
import torch

from meditune.serve.settings import Settings
from tests import tiny
from tests.serve.server import MODEL, served

PATH = "/v1/completions"
CASES = [
    ("Question: Does the drug help?\nAnswer:", " yes"),
    ("Question: Does the drug help?\nAnswer:", " maybe"),
    ("Results: pain fell by 30 percent.", " The drug helps with pain in adults."),
]


def likelihoods(model, ids):
    """The log-probability of each token after the first, and the likeliest one's, the plain way."""
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)
    return [float(row[token]) for row, token in zip(logits, ids[1:], strict=True)], logits.max(-1).values.tolist()


def test_echo_tells_how_likely_the_prompt_is(server):
    ids = server.service.engine.tokenizer("Results: pain fell by 30 percent.")["input_ids"]
    said = server.ask(PATH, {"model": MODEL, "prompt": ids, "max_tokens": 1, "logprobs": 1, "echo": True}).json
    logprobs = said["choices"][0]["logprobs"]
    assert len(logprobs["tokens"]) == len(logprobs["top_logprobs"]) == len(logprobs["text_offset"]) == len(ids) + 1
    assert (logprobs["token_logprobs"][0], logprobs["top_logprobs"][0]) == (None, None)
    expected, best = likelihoods(server.service.engine.loaded.model, ids)
    assert logprobs["token_logprobs"][1:-1] == pytest.approx(expected, abs=1e-3)
    assert [max(top.values()) for top in logprobs["top_logprobs"][1:-1]] == pytest.approx(best, abs=1e-3)
    text = said["choices"][0]["text"]
    assert text.startswith("Results: pain fell by 30 percent.")
    assert text.startswith("".join(logprobs["tokens"][:-1]))
    assert [text[place] for place in logprobs["text_offset"][:-1]] == [token[0] for token in logprobs["tokens"][:-1]]


def test_a_text_is_scored_without_writing_any(server):
    scored = {"model": MODEL, "prompt": ["The drug helps.", "no"], "max_tokens": 0, "logprobs": 0, "echo": True}
    said = server.ask(PATH, scored).json
    assert said["usage"]["completion_tokens"] == 0
    assert [choice["text"] for choice in said["choices"]] == ["The drug helps.", "no"]
    assert all(value < 0 for choice in said["choices"] for value in choice["logprobs"]["token_logprobs"][1:])
    assert server.ask(PATH, {"model": MODEL, "prompt": "no", "max_tokens": 0}).status == 400
    both = {"model": MODEL, "prompt": "no", "echo": True, "stream": True}
    assert "leave one of them out" in server.ask(PATH, both).error()["message"]


def test_lm_evaluation_harness_scores_through_the_server_as_in_its_own_process(server, tmp_path, monkeypatch):
    pytest.importorskip("tenacity")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    monkeypatch.setenv("OPENAI_API_KEY", "none")
    loaded = server.service.engine.loaded
    loaded.tokenizer.save_pretrained(tmp_path)
    there = LocalCompletionsAPI(
        base_url=f"{server.address}{PATH}",
        model=MODEL,
        tokenizer=str(tmp_path),
        tokenizer_backend="huggingface",
        batch_size=2,
        max_length=512,
    )
    here = HFLM(pretrained=tiny.model("llama"), tokenizer=tiny.tokenizer(), batch_size=1, device="cpu")
    asked = [Instance("loglikelihood", {}, case, number) for number, case in enumerate(CASES)]
    found, expected = there.loglikelihood(asked), here.loglikelihood(asked)
    for (ours, greedy), (theirs, greedy_there) in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=2e-2 * max(1, math.fabs(theirs)))
        assert greedy == greedy_there


def test_a_prompt_after_which_the_model_ends_at_once_is_scored_to_its_last_token(tmp_path):
    loaded = tiny.loaded()
    ids = loaded.tokenizer("Question: Does the drug help? Answer: yes")["input_ids"]
    with torch.inference_mode():
        likeliest = int(loaded.model(torch.tensor([ids])).logits[0, -1].argmax())
    loaded.tokenizer.eos_token = loaded.tokenizer.convert_ids_to_tokens(likeliest)
    with served(tmp_path, Settings(bare_chat=True), loaded) as server:
        asked = {"model": MODEL, "prompt": ids, "max_tokens": 1, "logprobs": 1, "echo": True}
        choice = server.ask(PATH, asked).json["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["text"] == "Question: Does the drug help? Answer: yes"
    assert len(choice["logprobs"]["token_logprobs"]) == len(ids) + 1
    expected, _ = likelihoods(loaded.model, [*ids, likeliest])
    assert choice["logprobs"]["token_logprobs"][1:] == pytest.approx(expected, abs=1e-3)
