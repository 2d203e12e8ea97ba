"""OpenAI's official client works unchanged: chats, scored texts as in lm-evaluation-harness, vectors."""

import math
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import torch

from meditune.config.data_options import PromptFormat
from meditune.errors import ModelError
from meditune.models.sentence_encoder import onnx_sentence_model
from meditune.serve.settings import Settings
from tests import tiny
from tests.loopback_server import MODEL, served

ASKED = [{"role": "user", "content": "Does the drug help?"}]


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0)


def test_a_chat(client):
    said = client.chat.completions.create(model=MODEL, messages=ASKED, max_tokens=5)
    assert said.choices[0].message.role == "assistant"
    assert said.choices[0].message.content
    assert said.choices[0].finish_reason == "length"
    assert said.usage.completion_tokens == 5
    assert said.usage.total_tokens == said.usage.prompt_tokens + 5
    again = client.chat.completions.create(model=MODEL, messages=ASKED, max_completion_tokens=5)
    assert again.choices[0].message.content == said.choices[0].message.content
    assert again.id != said.id


def test_a_stream_says_what_the_whole_answer_says(client):
    whole = client.chat.completions.create(model=MODEL, messages=ASKED, max_tokens=8)
    stream = client.chat.completions.create(
        model=MODEL, messages=ASKED, max_tokens=8, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage == whole.usage
    assert len({c.id for c in chunks}) == 1


def test_logprobs_are_those_of_the_tokens(client):
    said = client.chat.completions.create(
        model=MODEL, messages=ASKED, max_tokens=4, logprobs=True, top_logprobs=3, stop=["never this"]
    )
    content = said.choices[0].logprobs.content
    assert len(content) == 4
    for token in content:
        assert len(token.top_logprobs) == 3
        assert token.logprob == max(top.logprob for top in token.top_logprobs)


def test_the_bytes_of_the_tokens_are_those_of_the_answer(client):
    said = client.chat.completions.create(
        model=MODEL, messages=ASKED, logprobs=True, extra_body={"guided_choice": ["β 😀 \ufffd"]}
    )
    content = said.choices[0].logprobs.content
    assert len(content) > 8, "most characters have several tokens"
    assert b"".join(bytes(token.bytes) for token in content) == "β 😀 \ufffd".encode()


def test_sampling_by_a_seed_is_repeated(client):
    def said(seed):
        answer = client.chat.completions.create(
            model=MODEL, messages=ASKED, max_tokens=12, temperature=1.0, top_p=0.9, seed=seed
        )
        return answer.choices[0].message.content

    assert said(-3) == said(-3)
    assert len({said(seed) for seed in range(4)}) > 1


def test_an_answer_among_given_ones(client):
    said = client.chat.completions.create(
        model=MODEL, messages=ASKED, extra_body={"guided_choice": ["yes", "no", "maybe"]}
    )
    assert said.choices[0].message.content in {"yes", "no", "maybe"}


def test_models_are_listed_and_found(client):
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).owned_by == "meditune"
    with pytest.raises(openai.NotFoundError, match=r"There is no model 'tinny' here\. Did you mean tiny\?"):
        client.models.retrieve("tinny")


def test_completions_of_several_prompts(client):
    said = client.completions.create(model=MODEL, prompt=["Results: pain", "Question: Does"], max_tokens=3, seed=1)
    assert [choice.index for choice in said.choices] == [0, 1]
    alone = client.completions.create(model=MODEL, prompt="Question: Does", max_tokens=3)
    assert said.choices[1].text == alone.choices[0].text
    stream = client.completions.create(
        model=MODEL, prompt=["Results: pain", "Question: Does"], max_tokens=3, stream=True
    )
    texts = {0: "", 1: ""}
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == {choice.index: choice.text for choice in said.choices}


def test_what_goes_wrong_raises_what_the_client_knows(client):
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-4", messages=ASKED)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as unsupported:
        client.chat.completions.create(model=MODEL, messages=ASKED, n=2)
    assert (unsupported.value.code, unsupported.value.param) == ("unsupported_parameter", "n")
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "pain " * 2000}])
    assert long.value.code == "context_length_exceeded"


def test_an_answer_goes_back_as_a_turn(client):
    first = client.chat.completions.create(model=MODEL, messages=ASKED, max_tokens=3)
    turns = [*ASKED, first.choices[0].message, {"role": "user", "content": [{"type": "text", "text": "Why?"}]}]
    second = client.chat.completions.create(model=MODEL, messages=turns, max_tokens=3)
    assert second.usage.prompt_tokens > first.usage.total_tokens


async def _streamed(address):
    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none") as client:
        stream = await client.chat.completions.create(model=MODEL, messages=ASKED, max_tokens=4, stream=True)
        return "".join([c.choices[0].delta.content or "" async for c in stream])


def test_the_asynchronous_client(server, client):
    import asyncio

    whole = client.chat.completions.create(model=MODEL, messages=ASKED, max_tokens=4)
    assert asyncio.run(_streamed(server.address)) == whole.choices[0].message.content


def test_a_tuned_model_is_asked_in_the_format_that_it_was_tuned_with(tmp_path):
    form = PromptFormat(question_cue="Frage:", answer_cue="Schluss:")
    with served(tmp_path, Settings(bare_chat=True), form=form) as server:
        client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="none")
        chat = client.chat.completions.create(model=MODEL, messages=ASKED, max_tokens=6)
        text = client.completions.create(model=MODEL, prompt="Frage: Does the drug help?\nSchluss:", max_tokens=6)
    assert chat.choices[0].message.content == text.choices[0].text
    assert chat.usage.prompt_tokens == text.usage.prompt_tokens


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


NAME = "all-minilm-l6-v2-int8"


@pytest.fixture(scope="module")
def embedding_server(tmp_path_factory):
    pytest.importorskip("onnxruntime")
    with served(tmp_path_factory.mktemp("store"), embeds=onnx_sentence_model, embedding=NAME) as running:
        yield running


@pytest.mark.model
def test_near_texts_have_near_vectors(embedding_server):
    client = openai.OpenAI(base_url=f"{embedding_server.address}/v1", api_key="none")
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


@pytest.mark.model
def test_numbers_and_base64_are_the_same(embedding_server):
    client = openai.OpenAI(base_url=f"{embedding_server.address}/v1", api_key="none")
    as_text = client.embeddings.create(model=NAME, input="gout").data[0].embedding
    as_numbers = client.embeddings.create(model=NAME, input="gout", encoding_format="float").data[0].embedding
    assert as_text == pytest.approx(as_numbers, abs=1e-6)


@pytest.mark.model
def test_what_it_would_not_read_to_its_end_is_refused(embedding_server):
    error = embedding_server.ask("/v1/embeddings", {"model": NAME, "input": ["gout", "pain " * 300]}).error()
    assert error["code"] == "context_length_exceeded"
    assert error["message"] == "input.1 is 46 tokens too long: the model reads at most 256 tokens."
    assert embedding_server.ask("/v1/embeddings", {"model": NAME, "input": "pain " * 254}).status == 200


@pytest.mark.model
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
def test_bad_requests(embedding_server, changes, said):
    assert said in embedding_server.ask("/v1/embeddings", {"model": NAME, "input": "x"} | changes).error()["message"]


def test_one_failed_attempt_to_open_the_sentence_model_refuses_all_who_wait(tmp_path):
    tried = []

    def fails():
        tried.append("download")
        time.sleep(0.2)
        raise ModelError("Nothing is in /srv/cache/minilm")

    with served(tmp_path, embeds=fails, embedding=NAME) as server, ThreadPoolExecutor() as pool:
        asked = [pool.submit(server.ask, "/v1/embeddings", {"model": NAME, "input": "x"}) for _ in range(4)]
        replies = [each.result() for each in asked]
    assert tried == ["download"]
    assert {reply.status for reply in replies} == {503}
    assert "/srv" not in replies[0].text
