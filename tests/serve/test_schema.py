"""What the OpenAPI document allows is answered, the rest is refused with a sentence, and nothing is a 5xx.

The document as a page that loads nothing from elsewhere. The examples of docs/how-to/serve.md run as they stand,
against a server with a tiny model.
"""

import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from meditune.serve.settings import Settings
from tests import loopback_server
from tests.assistants import ModelAlone, assistant_of
from tests.loopback_server import MODEL, served
from tests.waiting import output_of

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ASKED = {"model": MODEL, "messages": [{"role": "user", "content": "Does it help?"}]}


@pytest.mark.parametrize(
    ("changes", "code", "param", "said"),
    [
        ({"model": "gpt-4"}, "model_not_found", "model", "There is no model 'gpt-4' here. This server has tiny."),
        ({"tools": [{"type": "function"}]}, "unsupported_parameter", "tools", "doesn't support tools"),
        ({"n": 3}, "unsupported_parameter", "n", "doesn't support n"),
        ({"presence_penalty": 0.5}, "unsupported_parameter", "presence_penalty", "Leave it out"),
        ({"temprature": 1}, "unsupported_parameter", "temprature", "doesn't support"),
        ({"temperature": 9}, "invalid_value", "temperature", "less than or equal to 2"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "invalid_value", None, "different values"),
        ({"top_logprobs": 3}, "invalid_value", None, "requires logprobs"),
        ({"seed": 2**70}, "invalid_value", "seed", ""),
        ({"messages": []}, "invalid_value", "messages", "at least 1 item"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "invalid_value", "messages.0.role", "'system'"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "invalid_value", "messages", "must be the user's"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "invalid_value", None, "surrogate"),
        ({"stop": functools.reduce(lambda inner, _: [inner], range(200), "a")}, "invalid_value", None, "levels deep"),
        ({"stop": ["a"] * 5}, "invalid_value", "stop", "at most 4"),
        ({"stop": [""]}, "invalid_value", "stop.0", "at least 1 character"),
        ({"messages": [{"role": "user", "content": 5}]}, "invalid_value", "messages.0.content", "none of the types"),
        ({"response_format": {"type": "json_schema"}}, "invalid_value", "response_format", "json_schema is missing"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "odd"}}}},
            "invalid_request",
            None,
            "JSON schema can't be enforced",
        ),
    ],
)
def test_a_chat_that_makes_no_sense(server, changes, code, param, said):
    reply = server.ask(CHAT, ASKED | changes)
    error = reply.error()
    assert reply.status in {400, 404}
    assert (error["code"], error["param"]) == (code, param)
    assert said in error["message"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "invalid_json"),
        (b"", "missing_body"),
        (b"[]", "invalid_value"),
        (b"null", "invalid_value"),
        (b'{"model": "\xff\xfe"}', "invalid_json"),
        (b'{"model": NaN}', "invalid_value"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"model": ' + b"9" * 5000 + b"}", "invalid_json"),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": 1}]}', "invalid_value"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, TEXT, "/v1/embeddings", "/v1/ask", "/v1/feedback"])
def test_bodies_that_are_no_json_objects(server, path, body, code):
    reply = server.ask(path, body, method="POST")
    assert reply.status == 400
    if path == CHAT:
        assert reply.error()["code"] == code


def test_a_body_of_another_kind_is_refused(server):
    reply = server.ask(CHAT, json.dumps(ASKED).encode(), Content_Type="text/plain")
    assert reply.status == 400
    assert "application/json" in reply.error()["message"]


def test_too_long_a_prompt_says_by_how_many_tokens(server):
    tokens = len(server.service.engine.tokenizer("Question: " + "pain " * 1500 + "\nConclusion:")["input_ids"])
    reply = server.chat("pain " * 1500, max_tokens=10)
    excess = int(reply.error()["message"].split(" is ")[1].split(" token")[0].replace(",", ""))
    assert abs(excess - (tokens + 10 - 1024)) <= 2
    fits = server.ask(TEXT, {"model": MODEL, "prompt": [5] * 1020, "max_tokens": 4})
    assert fits.status == 200
    error = server.ask(TEXT, {"model": MODEL, "prompt": [5] * 1020, "max_tokens": 5}).error()
    assert error["message"].startswith("prompt is 1 token too long")


def test_a_chat_that_says_no_length_gets_what_fits(server):
    reply = server.ask(TEXT, {"model": MODEL, "prompt": [5] * 1023, "max_tokens": 1})
    assert reply.status == 200
    long = server.chat("pain " * 900, max_tokens=None)
    assert long.status == 200


def test_token_ids_that_the_model_lacks(server):
    for prompt in ([500], [-1], ["a", 1], [[1], []], [1.5], [True]):
        assert server.ask(TEXT, {"model": MODEL, "prompt": prompt}).status == 400, prompt


def test_unknown_paths_and_methods(server):
    assert server.ask("/v1/nothing").error()["code"] == "not_found"
    assert server.ask("/v1/chat/completions").error()["code"] == "method_not_allowed"
    assert server.ask("/v1/models", {}, method="DELETE").status == 405
    for path in ("/..%2f..%2fetc/passwd", "/docs/..%2fdocs.html", "//etc/passwd", "/v1/models/..%2f..%2fx", "/%00"):
        assert server.ask(path).status == 404


def test_a_body_that_is_too_large_is_refused_before_it_is_read(server):
    reply = server.ask(CHAT, b"x" * (2 << 20))
    assert reply.status == 413
    assert reply.error()["code"] == "body_too_large"


def test_a_large_body_without_a_length_is_refused_as_well(server):
    with server.raw() as line:
        line.sendall(b"POST /v1/ask HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        line.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        try:
            for _ in range(40):
                line.sendall(chunk)
            line.sendall(b"0\r\n\r\n")
        except OSError:
            pass
        assert b" 413 " in line.recv(200)


def test_an_answer_among_texts_or_json_but_not_both(server):
    both = {"guided_choice": ["a"], "response_format": {"type": "json_object"}}
    assert "leave one of them out" in server.ask(CHAT, ASKED | both).error()["message"]


def test_what_asks_nothing_is_taken(server):
    nothing = {"n": 1, "tools": [], "logit_bias": {}, "presence_penalty": 0.0, "user": "u", "seed": None, "stop": None}
    assert server.chat(**nothing).status == 200


def test_every_response_has_its_id_and_its_headers(server):
    named = server.ask("/healthz", x_request_id="mine-1")
    assert named.headers["x-request-id"] == "mine-1"
    made = server.ask("/healthz", x_request_id="not good\x7f")
    assert len(made.headers["x-request-id"]) == 24
    for path in ("/healthz", "/docs", "/nothing"):
        headers = server.ask(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers


def test_pages_of_other_sites_may_not_call(server):
    assert server.ask("/v1/models", Origin="https://evil.example").error()["code"] == "wrong_origin"
    assert server.ask("/v1/models", Origin=server.address).status == 200
    assert "access-control-allow-origin" not in server.ask("/v1/models", Origin=server.address).headers


def test_behind_a_proxy_that_changes_the_host_the_servers_own_page_learns_the_cause(server):
    reply = server.ask("/v1/models", Origin="https://health.example", Host="10.0.0.2:8000")
    assert "proxy in front of the server must pass on the header Host" in reply.error()["message"]


def test_sites_that_were_named_may_call(tmp_path):
    from meditune.serve.settings import Settings

    settings = Settings(origins=("https://clinic.example",), hosts=("127.0.0.1",), per_minute=60)
    with served(tmp_path, settings) as server:
        there = {"Origin": "https://clinic.example"}
        assert server.ask("/v1/models", **there).headers["access-control-allow-origin"] == "https://clinic.example"
        headers = server.ask("/v1/embeddings", {"model": "none", "input": "a"}, **there).headers
        limits = {name for name in headers if name.startswith("x-ratelimit")}
        assert limits
        assert limits <= set(headers["access-control-expose-headers"].split(", "))
        assert "access-control-allow-credentials" not in headers
        asked = {"Access_Control_Request_Method": "POST"}
        # What OpenAI's client for JavaScript sends.
        for named in ("authorization", "authorization,content-type,x-stainless-lang,x-stainless-retry-count"):
            reply = server.ask("/v1/ask", method="OPTIONS", **there, **asked, Access_Control_Request_Headers=named)
            assert reply.status == 200, reply.text
        assert server.ask("/v1/models", Origin="https://evil.example").status == 403
        assert server.ask("/v1/models", Host="evil.example").error()["code"] == "wrong_host"


def test_all_sites_may_call_where_somebody_wants_that(tmp_path):
    from meditune.serve.settings import Settings

    with served(tmp_path, Settings(origins=("*",))) as server:
        assert server.ask("/v1/models", Origin="https://any.example").headers["access-control-allow-origin"] == "*"


CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.mark.slow
def test_the_server_does_what_its_description_says_and_never_fails(tmp_path):
    pytest.importorskip("schemathesis")
    with served(tmp_path / "store", Settings(bare_chat=True)) as server:
        server.service.assistant = ModelAlone(server.service.engine)
        command = [Path(sys.executable).parent / "st", "run", f"{server.address}/openapi.json", "--no-color"]
        options = ["--checks", CHECKS, "--max-examples", "8", "--seed", "17", "--request-timeout", "20"]
        done = subprocess.run(
            [*command, *options], capture_output=True, text=True, cwd=tmp_path, timeout=280, check=False
        )
        failed = server.figure('meditune_requests_total{method="POST",route="/v1/chat/completions",status="500"}')
        written = server.figure('meditune_requests_total{method="POST",route="/v1/chat/completions",status="200"}')
        embeds = server.ask("/v1/embeddings", {"model": "none", "input": "x"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert failed == 0
    assert written > 0
    assert embeds.status == 404


def test_the_page_shows_every_route_and_object_and_loads_nothing(server):
    page = server.ask("/docs")
    assert page.headers["content-type"].startswith("text/html")
    spec = server.ask("/openapi.json").json
    for path in spec["paths"]:
        assert path in page.text
    for name in spec["components"]["schemas"]:
        assert f'id="{name}"' in page.text
    assert not re.search(r"https?://|<script|\son\w+=|\sstyle=", page.text)
    assert re.findall(r'(?:src|href)="([^#"]+)"', page.text) == ["/docs/docs.css", "/openapi.json"]
    style = server.ask("/docs/docs.css")
    assert style.headers["content-type"].startswith("text/css")
    assert "url(" not in style.text


def test_the_document_says_what_the_fields_of_an_answer_mean(server):
    schemas = server.ask("/openapi.json", method="GET").json["components"]["schemas"]
    assert "Show this text to the reader" in schemas["Asked"]["properties"]["limits"]["description"]
    assert "for feedback" in schemas["Asked"]["properties"]["id"]["description"]
    assert "cosine" in schemas["Source"]["properties"]["meaning"]["description"]


def test_the_document_has_openais_errors(server):
    spec = server.ask("/openapi.json").json
    for methods in spec["paths"].values():
        for told in methods.values():
            assert "422" not in told["responses"]
            assert "503" in told["responses"]
            assert told["responses"]["400"]["content"]["application/json"]["schema"]["$ref"].endswith("/Error")
    assert "HTTPValidationError" not in spec["components"]["schemas"]
    assert spec["components"]["schemas"]["ChatBody"]["additionalProperties"] is False


PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "serve.md"
RUNNABLE = re.compile(r"^<!-- run -->\n```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLES = RUNNABLE.findall(PAGE.read_text(encoding="utf-8"))
RUN = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loopback_server, "MODEL", "quickstart")
        with served(tmp_path_factory.mktemp("store")) as running:
            running.service.assistant = assistant_of(running.service.engine)
            yield running.address


@pytest.mark.parametrize(("kind", "text"), EXAMPLES, ids=[f"{n}-{kind}" for n, (kind, _) in enumerate(EXAMPLES)])
def test_an_example(address, kind, text):
    assert "http://127.0.0.1:8000" in text
    words = [*RUN[kind], text.replace("http://127.0.0.1:8000", address)]
    said = output_of(*words, timeout=60)
    assert said.strip()
    if "chest pain" in text:
        assert "event: notice" in said
        assert '"outcome": "escalated"' in said
