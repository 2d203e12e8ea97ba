"""The official client works unchanged."""

import openai
import pytest

from meditune.config.data_options import PromptFormat
from meditune.serve.settings import Settings
from tests.serve.server import MODEL, served

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
