"""Vectors by the sentence model in 8 bits."""

import openai
import pytest

from meditune.models.sentence_encoder import onnx_sentence_model
from tests.serve.server import served

NAME = "all-minilm-l6-v2-int8"
pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    pytest.importorskip("onnxruntime")
    with served(tmp_path_factory.mktemp("store"), embeds=onnx_sentence_model, embedding=NAME) as running:
        yield running


def test_near_texts_have_near_vectors(server):
    client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="none")
    assert [model.id for model in client.models.list()] == ["tiny", NAME]
    texts = ["Colchicine calms gout.", "What helps against gout?", "The parliament met on Monday."]
    said = client.embeddings.create(model=NAME, input=texts)
    gout, question, other = [each.embedding for each in said.data]
    assert len(gout) == 384
    assert sum(x * x for x in gout) == pytest.approx(1, abs=1e-4)

    def cosine(one, two):
        return sum(a * b for a, b in zip(one, two, strict=True))

    assert cosine(gout, question) > cosine(gout, other) + 0.3
    assert said.usage.total_tokens > 15


def test_numbers_and_base64_are_the_same(server):
    client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="none")
    as_text = client.embeddings.create(model=NAME, input="gout").data[0].embedding
    as_numbers = client.embeddings.create(model=NAME, input="gout", encoding_format="float").data[0].embedding
    assert as_text == pytest.approx(as_numbers, abs=1e-6)


def test_what_it_would_not_read_to_its_end_is_refused(server):
    error = server.ask("/v1/embeddings", {"model": NAME, "input": ["gout", "pain " * 300]}).error()
    assert error["code"] == "context_length_exceeded"
    assert error["message"] == "input.1 is 46 tokens too long: the model reads at most 256 tokens."
    assert server.ask("/v1/embeddings", {"model": NAME, "input": "pain " * 254}).status == 200


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "text-embedding-3-small"}, "There is no model"),
        ({"model": "tiny"}, "There is no model"),
        ({"dimensions": 64}, "must be 384"),
        ({"input": [1, 2]}, "send texts"),
        ({"input": []}, "at least 1 item"),
        ({"input": ""}, "at least 1 character"),
    ],
)
def test_bad_requests(server, changes, said):
    assert said in server.ask("/v1/embeddings", {"model": NAME, "input": "x"} | changes).error()["message"]
