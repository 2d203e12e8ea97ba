"""Sampled continuations are seeded, come from the whole distribution, and padding doesn't change it.

Texts continued together are those of transformers' own greedy decoding, one at a time.
"""

import warnings

import pytest
import torch
from transformers import AutoConfig, GenerationConfig

from meditune.models import generation
from meditune.models.catalogue import CATALOGUE
from meditune.models.generation import (
    BATCH_TOKENS,
    Decoder,
    GreedyDecoder,
    NotFiniteError,
    PrefixCache,
    batch_size,
    cached_tokens,
    left_pad,
    sample_texts,
    token_bytes,
)
from meditune.models.inference import inference
from tests import tiny
from tests.models.simulated_gpu import simulate_gpu


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


def test_on_a_gpu_the_cache_takes_half_of_the_memory_that_torch_can_still_use(monkeypatch):
    """Memory that torch has reserved and doesn't use counts as free; there is no other limit."""
    made = tiny.model("llama")
    each = token_bytes(made.config, 4)
    simulate_gpu(monkeypatch, free=10 * BATCH_TOKENS * each, reserved=7 * each, allocated=3 * each)
    assert cached_tokens(made) == 5 * BATCH_TOKENS + 2
    assert batch_size(400, 100, made) == (5 * BATCH_TOKENS + 2) // 500


def test_on_a_gpu_with_little_memory_prompts_are_read_in_smaller_pieces(monkeypatch):
    model, text = tiny.loaded("llama").model, list(range(2, 402))
    passes, logits = [], []
    hook = model.register_forward_pre_hook(
        lambda _, __, inputs: passes.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    for free in (10**10, 10**6):
        simulate_gpu(monkeypatch, free)
        with inference(model):
            logits.append(Decoder(model, PAD).read([text]))
    hook.remove()
    assert passes == [400, 256, 144]
    torch.testing.assert_close(logits[1], logits[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_a_long_new_prompt_doesnt_change_a_text_whose_prefix_is_cached(architecture):
    model, prefixes = tiny.sharpened(architecture).model, PrefixCache()
    known, new = torch.randint(2, 500, (2, 600)).tolist()
    texts = [[*known, 5, 6, 7], new[:400]]
    with inference(model):
        Decoder(model, PAD, prefixes=prefixes).read([known])
        found = Decoder(model, PAD, prefixes=prefixes).read(texts)
        expected = torch.stack([model(input_ids=torch.tensor([text])).logits[0, -1] for text in texts])
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_rows_end_in_the_last_column():
    tokens, mask = left_pad([[5, 6, 7], [8]], pad_id=1)
    assert tokens.tolist() == [[5, 6, 7], [1, 1, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def sampled(loaded, prompts: list[list[int]], max_new_tokens: int, temperature: float = 1.0) -> list[list[int]]:
    return sample_texts(loaded.model, prompts, max_new_tokens, loaded.end_ids(), loaded.pad_id, temperature)


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


def test_samples_stop_at_every_end_token_of_the_generation_config():
    loaded = tiny.loaded()
    prompts = [loaded.tokenizer("Pain")["input_ids"]] * 20
    ends = loaded.model.generation_config.eos_token_id = list(range(250))
    torch.manual_seed(1)
    found = sampled(loaded, prompts, 6)
    assert min(map(len, found)) < 6
    assert all(token not in ends for ids in found for token in (ids[0], *ids[:-1]))


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


PAD, NEVER, MORE = 1, 10_000, 40


def prompts() -> list[list[int]]:
    """Nine texts of 5 to 165 tokens, some longer than the tiny models' windows."""
    torch.manual_seed(5)
    return [torch.randint(2, 500, (5 + 20 * number,)).tolist() for number in range(9)]


def alone(model, prompt: list[int]) -> list[int]:
    config = GenerationConfig(max_new_tokens=MORE, do_sample=False, eos_token_id=NEVER, pad_token_id=PAD)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ids = torch.tensor([prompt])
        made = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return made[0, len(prompt) :].tolist()


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("at_once", [1, 3, 20])
def test_texts_are_those_of_generate(architecture, at_once):
    model, texts = tiny.sharpened(architecture).model, prompts()
    # Some text's fourth token is made the end token, so that slots become free at different times.
    expected = [alone(model, text) for text in texts]
    end = expected[4][3]
    expected = [text[: text.index(end)] if end in text else text for text in expected]
    assert len({len(text) for text in expected}) > 1
    with inference(model, small_batches=True):
        found = dict(GreedyDecoder(model, texts, MORE, [end], PAD, at_once).texts())
    assert [found[index] for index in range(len(texts))] == expected


def test_without_an_end_token_texts_have_full_length():
    model = tiny.sharpened().model
    with inference(model):
        found = dict(GreedyDecoder(model, prompts()[:2], 7, (), PAD, 2).texts())
    assert [len(found[index]) for index in range(2)] == [7, 7]


def test_nothing_to_write_is_no_error():
    assert list(GreedyDecoder(tiny.model("llama"), [], 7, (), PAD, 2).texts()) == []


def test_logits_that_are_no_numbers_name_their_prompt():
    model = tiny.model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[7] = float("nan")
    with inference(model), pytest.raises(NotFiniteError) as raised:
        list(GreedyDecoder(model, [[5, 6], [5, 7]], 4, (), PAD, 2).texts())
    assert raised.value.prompt == 1


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_sequence_is_written_once_where_that_is_asked(at_once):
    model, texts = tiny.sharpened().model, prompts()
    with inference(model):
        free = dict(GreedyDecoder(model, texts, MORE, (), PAD, at_once).texts())
        bound = dict(GreedyDecoder(model, texts, MORE, (), PAD, at_once, no_repeat=3).texts())

    def triples(tokens):
        return list(zip(tokens, tokens[1:], tokens[2:], strict=False))

    assert any(len(set(triples(tokens))) < len(triples(tokens)) for tokens in free.values())
    for index, tokens in bound.items():
        found = triples(tokens)
        assert len(set(found)) == len(found)
        usual = triples(free[index])
        first = next((place for place, each in enumerate(usual) if each in usual[:place]), len(usual))
        assert tokens[: first + 2] == free[index][: first + 2], "as long as nothing comes again it changes nothing"
