"""Texts continued together are those of transformers' own greedy decoding, one at a time."""

import warnings

import pytest
import torch
from transformers import GenerationConfig

from meditune.models.generation import Greedy, NotFiniteError
from meditune.models.inference import inference
from tests import tiny

PAD, NEVER, MORE = 1, 10_000, 40


def prompts() -> list[list[int]]:
    """Nine texts of 5 to 165 tokens, some longer than the tiny models' windows."""
    torch.manual_seed(5)
    return [torch.randint(2, 500, (5 + 20 * number,)).tolist() for number in range(9)]


def sharpened(architecture: str):
    """A tiny model whose likeliest tokens are no near ties."""
    loaded = tiny.loaded(architecture)
    torch.manual_seed(6)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.ndim == 2:
                parameter += 0.3 * torch.randn_like(parameter)
    return loaded.model


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
    model, texts = sharpened(architecture), prompts()
    # Some text's fourth token is made the end token, so that slots become free at different times.
    expected = [alone(model, text) for text in texts]
    end = expected[4][3]
    expected = [text[: text.index(end)] if end in text else text for text in expected]
    assert len({len(text) for text in expected}) > 1
    with inference(model, few_rows=True):
        found = dict(Greedy(model, texts, MORE, end, PAD, at_once).texts())
    assert [found[index] for index in range(len(texts))] == expected


def test_without_an_end_token_texts_have_full_length():
    model = sharpened("llama")
    with inference(model):
        found = dict(Greedy(model, prompts()[:2], 7, None, PAD, 2).texts())
    assert [len(found[index]) for index in range(2)] == [7, 7]


def test_nothing_to_write_is_no_error():
    assert list(Greedy(tiny.model("llama"), [], 7, None, PAD, 2).texts()) == []


def test_logits_that_are_no_numbers_name_their_prompt():
    model = tiny.model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[7] = float("nan")
    with inference(model), pytest.raises(NotFiniteError) as raised:
        list(Greedy(model, [[5, 6], [5, 7]], 4, None, PAD, 2).texts())
    assert raised.value.prompt == 1


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_sequence_is_written_once_where_that_is_asked(at_once):
    model, texts = sharpened("llama"), prompts()
    with inference(model):
        free = dict(Greedy(model, texts, MORE, None, PAD, at_once).texts())
        bound = dict(Greedy(model, texts, MORE, None, PAD, at_once, once=3).texts())

    def triples(tokens):
        return list(zip(tokens, tokens[1:], tokens[2:], strict=False))

    assert any(len(set(triples(tokens))) < len(triples(tokens)) for tokens in free.values())
    for index, tokens in bound.items():
        found = triples(tokens)
        assert len(set(found)) == len(found)
        usual = triples(free[index])
        first = next((place for place, each in enumerate(usual) if each in usual[:place]), len(usual))
        assert tokens[: first + 2] == free[index][: first + 2], "as long as nothing comes again it changes nothing"
