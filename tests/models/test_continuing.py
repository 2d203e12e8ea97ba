"""Sampled continuations are seeded, come from the whole distribution, and padding doesn't change it."""

import pytest
import torch
from transformers import AutoConfig

from meditune.models import generation
from meditune.models.catalogue import CATALOGUE
from meditune.models.generation import BATCH_TOKENS, batch_size, left_padded, sampled, token_bytes
from tests import tiny


@pytest.mark.parametrize(
    ("name", "kilobytes"), [("llama2-7b", 512), ("mistral-7b", 128), ("gemma3-270m", 18), ("distilgpt2", 18)]
)
def test_bytes_of_a_token_in_the_cache(name, kilobytes):
    assert token_bytes(AutoConfig.for_model(**CATALOGUE[name].shape), 2) == kilobytes * 1024


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_they_are_what_a_cache_holds(architecture):
    made = tiny.model(architecture)
    layers = made(input_ids=torch.tensor([[5, 6, 7]]), use_cache=True).past_key_values.layers
    held = sum(part.nbytes for layer in layers for part in (layer.keys, layer.values))
    assert 3 * token_bytes(made.config, 4) == held


def test_half_of_the_free_memory_is_for_the_cache(monkeypatch):
    made = tiny.model("llama")
    assert batch_size(400, 100, made) == batch_size(400, 100) == BATCH_TOKENS // 500
    free = 2 * 3000 * token_bytes(made.config, 4) / 1e9
    monkeypatch.setattr(generation, "memory_gb", lambda: (64.0, free))
    assert batch_size(400, 100, made) == 6
    monkeypatch.setattr(generation, "memory_gb", lambda: (64.0, 0.0))
    assert batch_size(400, 100, made) == 1


def test_rows_end_in_the_last_column():
    tokens, mask = left_padded([[5, 6, 7], [8]], pad_id=1)
    assert tokens.tolist() == [[5, 6, 7], [1, 1, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
def test_the_seed_decides_and_an_answer_ends_with_its_end_token(architecture):
    loaded = tiny.loaded(architecture)
    prompts = [loaded.tokenizer("Does the drug help?")["input_ids"], loaded.tokenizer("Pain")["input_ids"]] * 20
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(sampled(loaded, prompts, 6, temperature=3.0))
    assert found[0] == found[1] != found[2]
    end = loaded.tokenizer.eos_token_id
    assert all(1 <= len(ids) <= 6 and end not in ids[:-1] and ids[0] != end for ids in found[0])
    assert len({tuple(ids) for ids in found[0]}) > 10


def test_near_temperature_0_it_writes_the_likeliest_tokens_whatever_the_padding():
    loaded = tiny.loaded()
    prompts = [loaded.tokenizer(text)["input_ids"] for text in ("Does the drug help with pain in adults?", "Pain")]
    together = sampled(loaded, prompts, 5, temperature=1e-4)
    for prompt, ids in zip(prompts, together, strict=True):
        assert sampled(loaded, [prompt], 5, temperature=1e-4) == [ids]
        logits = loaded.model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        logits[0, loaded.tokenizer.eos_token_id] = -torch.inf  # an answer has at least one token before its end
        assert logits.argmax(dim=-1).tolist() == ids


def test_the_models_own_settings_stay_and_dont_bend_the_distribution():
    loaded = tiny.loaded()
    prompts = [loaded.tokenizer("Pain")["input_ids"]] * 40
    torch.manual_seed(1)
    plain = sampled(loaded, prompts, 3)
    loaded.model.generation_config.top_k = 1
    loaded.model.generation_config.repetition_penalty = 5.0
    torch.manual_seed(1)
    assert sampled(loaded, prompts, 3) == plain
    assert loaded.model.generation_config.top_k == 1
