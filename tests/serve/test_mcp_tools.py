"""The tools ask, search and evaluate as the official client of the Model Context Protocol meets them."""

import asyncio
import sys
from contextlib import asynccontextmanager
from dataclasses import fields
from functools import partial

import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from pydantic import TypeAdapter

from meditune.assistant.assistant import AssistantSettings
from meditune.errors import DataError
from meditune.prompts import LIMITS, LIMITS_LINE
from meditune.serve.mcp_tools import Evaluation, add_endpoint, evaluation_of
from meditune.serve.schema import Asked
from meditune.serve.settings import Settings
from meditune.store import open_store
from meditune.store.api_keys import Keys
from tests import tiny
from tests.assistants import ScriptedEngine, assistant_of, index_of
from tests.commands import meditune
from tests.loopback_server import service, started

QUESTION = {"question": "What calms an attack of gout?"}
URGENT = "I have crushing chest pain and my arm is numb"


def test_over_stdio_with_the_command_that_a_client_starts(tmp_path):
    """Keys and rates are for servers; the lengths and the triage stay. Nothing but messages comes on stdout."""
    model = tiny.save(tmp_path / "small")
    Keys(open_store(str(tmp_path))).create("Ann")
    words = ["-m", "meditune", "mcp", model, "--store", tmp_path, "--max-message-characters", 100]
    command = StdioServerParameters(command=sys.executable, args=list(map(str, words)), env={"OMP_NUM_THREADS": "1"})
    unreadable = []

    async def heard(message):
        if isinstance(message, Exception):
            unreadable.append(message)

    async def talk():
        async with Client(command, message_handler=heard) as client:
            assert [tool.name for tool in (await client.list_tools()).tools] == ["ask"]
            asked = await client.call_tool("ask", {"question": "Does walking help?", "max_new_tokens": 3})
            assert asked.structured_content["tokens"]["completion"] == 3
            assert LIMITS_LINE in asked.structured_content["limits"]
            assert "Call your emergency number" in words_of(await client.call_tool("ask", {"question": URGENT}))
            assert "at most 100" in refusal(await client.call_tool("ask", {"question": "why " * 40}))
            assert "no index" in refusal(await client.call_tool("search", {"query": "gout"}))

    asyncio.run(talk())
    assert not unreadable


def words_of(result):
    assert not result.is_error, result
    (content,) = result.content
    return content.text


def refusal(result):
    assert result.is_error
    (content,) = result.content
    return content.text


class Place:
    """A server with the endpoint, and its keys by name."""

    def __init__(self, running, keys):
        self.running, self.keys = running, keys

    @asynccontextmanager
    async def client(self, name="", mode="auto"):
        headers = {"Authorization": f"Bearer {self.keys[name]}"} if name else {}
        async with httpx2.AsyncClient(headers=headers, timeout=30) as http:
            way = streamable_http_client(f"{self.running.address}/mcp", http_client=http)
            async with Client(way, mode=mode) as client:
                yield client

    def call(self, tool, arguments, name="ann"):
        async def called():
            async with self.client(name) as client:
                return await client.call_tool(tool, arguments)

        return asyncio.run(called())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mcp")
    engine = ScriptedEngine("Colchicine calms an attack.")
    assistant = assistant_of(engine, index_of(folder), AssistantSettings(nearest=-1.0))
    made = service(folder / "store", Settings(keys_needed=True), assistant=assistant)
    keys = made.access.keys
    scopes = {"ann": None, "nurse": ["feedback"], "boss": ["generate", "admin"]}
    secrets = {name: keys.create(name, *([given] if given else []))[1] for name, given in scopes.items()}
    secrets["hasty"] = keys.create("hasty", per_minute=1)[1]
    evaluation = Evaluation(str(folder / "nowhere"), "no-such-recipe", folder / "evaluation")
    with started(made, extend=partial(add_endpoint, evaluation=evaluation)) as running:
        yield Place(running, secrets | {"nobody": "mt-wrong"})


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_over_http_an_answer_has_its_citations_and_is_the_one_of_the_route(place, mode):
    async def talk():
        async with place.client("ann", mode) as client:
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
            assert set(tools) == {"ask", "search", "evaluate"}
            assert "stream" not in tools["ask"].input_schema["properties"]
            return await client.call_tool("ask", QUESTION)

    result = asyncio.run(talk())
    route = place.running.ask("/v1/ask", QUESTION, key=place.keys["ann"]).json
    changing = {"id": "", "timings": {}}
    assert result.structured_content | changing == route | changing
    assert set(route) == {field.name for field in fields(Asked)}
    TypeAdapter(Asked).validate_python(route)
    text = words_of(result)
    assert "Colchicine calms an attack [1]." in text
    assert "[1] Gout" in text
    assert " ".join(LIMITS.split()) in " ".join(text.split())
    kept = place.running.service.answers.get(result.structured_content["id"])
    assert kept.who == place.keys["ann"].split("-")[1]


def test_passages_come_with_their_origin_and_without_an_answer(place):
    result = place.call("search", {"query": "Colchicine for gout", "k": 2})
    first, _ = result.structured_content["passages"]
    assert (first["number"], first["title"], first["section"]) == (1, "Gout", "Treatment")
    text = words_of(result)
    assert "[1] Gout (Treatment · clinic" in text
    assert LIMITS_LINE in text
    assert place.call("search", {"query": "gout", "sources": ["other"]}).is_error


def test_triage_comes_before_both_tools(place):
    for tool, param in (("ask", "question"), ("search", "query")):
        result = place.call(tool, {param: URGENT})
        assert "emergency number" in words_of(result)
        assert result.structured_content["outcome"] == "escalated"
    assert result.structured_content["passages"] == []
    long = refusal(place.call("ask", {"question": URGENT + ". " + "x" * 4000}))
    assert "at most 4,000" in long
    assert "emergency number" in long


def test_what_is_wrong_is_a_sentence(place):
    assert "question: Field required" in refusal(place.call("ask", {}))
    assert "doesn't support k2" in refusal(place.call("search", {"query": "gout", "k2": 1}))
    assert "no tool 'cure'" in refusal(place.call("cure", {}))
    assert "1 requests in a minute. Try again in" in refusal(
        next(each for _ in range(3) if (each := place.call("search", {"query": "gout"}, "hasty")).is_error)
    )


@pytest.mark.parametrize(("name", "status"), [("", 401), ("nobody", 401), ("nurse", 403)])
def test_without_a_key_for_it_nobody_gets_in(place, name, status):
    key = place.keys.get(name, "")
    with pytest.raises((MCPError, ExceptionGroup)):
        place.call("ask", QUESTION, name)
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    assert place.running.ask("/mcp", message, key=key).status == status


def test_an_evaluation_needs_the_scope_admin_and_tells_why_it_fails(place):
    assert "lacks the admin scope" in refusal(place.call("evaluate", {}))
    assert "takes no arguments" in refusal(place.call("evaluate", {"recipe": "mine.yaml"}, "boss"))
    assert "There is no recipe 'no-such-recipe'" in refusal(place.call("evaluate", {}, "boss"))


def test_restricted_passages_stay_here(place, monkeypatch):
    sources = place.running.service.assistant.index.manifest.sources
    monkeypatch.setitem(sources["clinic"], "restricted", True)
    told = refusal(place.call("search", {"query": "gout"}))
    assert "Passages from clinic can't be sent" in told
    for tool, param in (("ask", "question"), ("search", "query")):
        for named in ({}, {"sources": ["clinic"]}):
            assert "emergency number" in words_of(place.call(tool, {param: URGENT} | named))
    monkeypatch.setitem(sources, "free", sources["clinic"] | {"restricted": False})
    assert "Search only these sources: free." in refusal(place.call("ask", QUESTION | {"sources": ["clinic"]}))


def test_a_call_that_is_given_up_ends_the_answer(place):
    engine = place.running.service.assistant.writer.engine

    async def talk():
        async with place.client("ann") as client:
            await client.call_tool("ask", QUESTION, read_timeout_seconds=0.3)

    engine.delay, before = 1.0, engine.cancelled
    try:
        with pytest.raises((MCPError, ExceptionGroup)):
            asyncio.run(talk())
        assert place.running.idle(5)
    finally:
        engine.delay = 0.0
    assert engine.cancelled == before + 1
    assert place.running.service.aborted_requests == 0


def test_the_command_refuses_what_it_cant_do(tmp_path):
    meditune("mcp", "smollm2-135m", "--recipe", "quickstart").refused(3, "--evaluate DIR")
    meditune("mcp", "smollm2-135m", "--port", 8000, "--require-key").refused(3, "--port and --require-key need --http")
    with pytest.raises(DataError, match="neither a registry nor a model behind --url"):
        evaluation_of("api", None, tmp_path, "http://127.0.0.1:1/v1")
