"""Traces, as a real receiver on the loopback gets them."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from meditune import observability
from meditune.assistant.assistant import Assistant, AssistantSettings
from meditune.errors import ModelError
from tests.serve.saying import Saying, index_of
from tests.serve.server import served

pytest.importorskip("lancedb")
SECRET = "unmistakable"
PARENT = "0af7651916cd43dd8448eb211c80319c"


@contextmanager
def receiver():
    """An OTLP receiver over HTTP; yields its address, and the spans that it got."""
    proto = pytest.importorskip(
        "opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="needs the extra otel"
    )
    got = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.path == "/v1/traces"
            if self.headers.get("Content-Encoding") == "gzip":
                import gzip

                body = gzip.decompress(body)
            sent = proto.ExportTraceServiceRequest.FromString(body)
            assert SECRET not in str(sent)
            got.extend(
                span for resource in sent.resource_spans for scope in resource.scope_spans for span in scope.spans
            )
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", got
    finally:
        server.shutdown()
        server.server_close()


def attributes(span):
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


def test_a_question_is_one_trace_of_its_parts_without_its_words(tmp_path, monkeypatch):
    question = f"Do inhaled steroids help with {SECRET} asthma?"
    said = f"Inhaled steroids help most people. The {SECRET} zebra."
    assistant = Assistant(Saying(said), index_of(tmp_path), AssistantSettings(nearest=-1.0))
    with receiver() as (address, got):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        assert observability.set_up_tracing()
        with served(tmp_path / "store", assistant=assistant) as server:
            parent = {"traceparent": f"00-{PARENT}-b7ad6b7169203331-01"}
            assert server.ask("/v1/ask", {"question": question}, **parent).status == 200
            assert server.chat(f"Does {SECRET} help?").status == 200
            server.ask("/v1/ask", {"question": f"{SECRET} " * 6000})
        observability.shut_down_tracing()
    asked = [span for span in got if span.trace_id.hex() == PARENT]
    (whole,) = [span for span in asked if span.name == "request"]
    assert whole.parent_span_id.hex() == "b7ad6b7169203331"
    told = attributes(whole)
    assert (told["http.route"], told["http.response.status_code"], told["meditune.outcome"]) == (
        "/v1/ask",
        200,
        "answered",
    )
    parts = [span for span in asked if span is not whole]
    assert {span.name for span in parts} == {"triage", "retrieve", "generate", "check"}
    assert all(span.parent_span_id == whole.span_id for span in parts)
    begun = {span.name: span.start_time_unix_nano for span in reversed(parts)}
    assert whole.start_time_unix_nano < begun["triage"] < begun["retrieve"] < begun["generate"]
    chats = {span.trace_id for span in got if span.name == "request"} - {whole.trace_id}
    assert len(chats) == 2
    names = [span.name for span in got if span.trace_id in chats]
    assert names.count("triage") >= 1
    assert names.count("generate") == 1


def test_traces_are_off_unless_an_endpoint_is_named(monkeypatch):
    for name in observability.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert not observability.set_up_tracing()
    assert not observability.set_up_tracing({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"})
    with observability.request({}) as (made, id), observability.span("part") as part:
        made.set_attribute("a", 1)
        part.set_attribute("a", 1)
    assert id == ""


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ModelError, match=r"pip install --editable .*\[otel\]"):
        observability.set_up_tracing({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"})
