"""The 8-bit encoder gives the whole one's vectors up to rounding, whatever is read beside a text."""

from pathlib import Path

import numpy as np
import pytest
import torch

from meditune.models import int8_bert, sentence_encoder
from meditune.models.int8_bert import EightBitBert
from tests import tiny

TEXTS = [
    "What helps against gout?",
    "Colchicine calms an attack.",
    "a " * 600,
    "Head lice are insects.",
    "",
    "Cool the burn with running water, then cover it.",
]


@pytest.fixture
def whole(tmp_path: Path) -> sentence_encoder.SentenceModel:
    model = sentence_encoder.load(tiny.sentence_model(tmp_path / "sentences"))
    if not int8_bert.fits(model.model):
        pytest.skip("this processor or this PyTorch doesn't multiply 8-bit numbers by oneDNN")
    return model


def test_vectors_are_those_of_the_whole_model(whole: sentence_encoder.SentenceModel) -> None:
    made = EightBitBert(whole.model, whole.tokenizer).embed(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-5)
    assert (made * whole.embed(TEXTS, label=None)).sum(axis=1).min() > 0.97


def test_a_text_has_the_same_vector_whatever_is_read_beside_it(whole: sentence_encoder.SentenceModel) -> None:
    encoder = EightBitBert(whole.model, whole.tokenizer)
    together = encoder.embed(TEXTS)
    alone = np.concatenate([encoder.embed([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert encoder.embed([]).shape == (0, encoder.size)


@pytest.mark.parametrize("tokens", [16, 1024])
def test_threads_share_the_texts_and_leave_torch_as_it_was(
    whole: sentence_encoder.SentenceModel, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    """Many texts, in batches of that many tokens, and few, of which each thread gets a share."""
    monkeypatch.setattr(int8_bert, "BATCH_TOKENS", tokens)
    before = torch.get_num_threads()
    try:
        made = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            made.append(EightBitBert(whole.model, whole.tokenizer).embed(TEXTS))
            assert torch.get_num_threads() == threads
        np.testing.assert_allclose(made[1], made[0], atol=1e-5)
    finally:
        torch.set_num_threads(before)


def test_other_encoders_are_left_alone(whole: sentence_encoder.SentenceModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole.model.config, "hidden_act", "relu")
    assert not int8_bert.fits(whole.model)
