"""The page for whoever runs the server, in a real browser, and the figures that it shows.

Figures for Prometheus that follow what was asked.

Traces, as a real receiver on the loopback gets them. A store of a service that has been asked a lot.
"""

import json
import time
from contextlib import contextmanager

import numpy as np
import pytest

from meditune import observability
from meditune.assistant.assistant import Assistant, AssistantSettings
from meditune.assistant.writers import EngineWriter
from meditune.config.data_options import PromptFormat
from meditune.errors import ModelError
from meditune.evidence.support_model import ClaimVerdict
from meditune.serve.settings import Settings
from meditune.store import open_store
from meditune.store.api_keys import Keys
from meditune.store.overview import Notes
from tests.assistants import ScriptedEngine, assistant_of, index_of
from tests.http_servers import Answering, listening
from tests.loopback_server import served
from tests.waiting import until

MARKUP = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>"
ALERT = {
    "id": "abc-novelty-90",
    "signal": "novelty",
    "about": "inputs",
    "title": "Distance to the nearest known questions",
    "what": "",
    "said": f"Distance: farther, median 0.2 before and 0.5 now {MARKUP}.",
    "severity": "large",
    "effect": 0.61,
    "effect_name": "Cliff's delta",
    "since": 12_040,
    "since_id": "a1",
    "opened": 12_090,
    "evidence": {
        "examples": [{"id": "a2", "question": f"What is {MARKUP} for?", "value": 0.7}],
        "groups": [
            {
                "name": f"vaccine {MARKUP}",
                "questions": 31,
                "share": 0.2,
                "distance": 0.6,
                "examples": [{"id": "a3", "question": "Is the new vaccine safe?"}],
            }
        ],
    },
}
SIGNALS = {
    "novelty": {"title": ALERT["title"], "about": "inputs", "state": "open", "share": 1.0},
    "length": {"title": "Words in a question", "about": "inputs", "state": "quiet", "share": 0.31},
    "ratings": {"title": "Ratings up and down", "about": "outcomes", "state": "unknown", "share": 0.0},
}


def fill_busy_store(place, count=400, hours=23.5):
    """Answers of the last hours with feedback, a lost server, a drift alert and an update."""
    rng, now = np.random.default_rng(3), time.time()
    base = open_store(place)
    with base.changing() as connection:
        for number in range(count):
            outcome = str(rng.choice(["answered"] * 8 + ["abstained", "escalated"]))
            sentences = int(rng.integers(2, 6))
            total = float(rng.gamma(3, 0.6))
            facts = {
                "tokens": {"prompt": 400, "completion": int(rng.integers(40, 160))},
                "timings": {"total": total, "first_token": total / 4},
                "sentences": sentences,
                "supported": sentences - int(rng.random() < 0.2),
                "retrieval": float(rng.uniform(0.4, 0.9)),
            }
            version = "v1" if number < count // 2 else "v2"
            row = (
                f"a{number}",
                now - 3600 * hours * (1 - number / count),
                "ask",
                f"quickstart {version}",
                "c0ffee" * 6,
            )
            connection.execute(
                "INSERT INTO answers (id, time, who, route, model, index_content, outcome, facts) "
                "VALUES (?, ?, 'k', ?, ?, ?, ?, ?)",
                (*row, outcome, json.dumps(facts)),
            )
            if number % 9 == 0:
                values = (row[0], row[1], "up" if number % 27 else "down", "Better." if number % 2 else "", number % 2)
                connection.execute(
                    "INSERT INTO feedback (answer, who, time, rating, reasons, comment, correction, expert) "
                    "VALUES (?, 'k', ?, ?, '[]', '', ?, ?)",
                    values,
                )
    notes = Notes(base)
    served = {"model": "quickstart", "version": "v1", "index": "", "engine": "openvino int8", "started": now - 9e4}
    notes.put("server/gone", {"address": "http://10.0.0.9:8000/"} | served)
    with base.opened() as connection:
        connection.execute("UPDATE notes SET time = ? WHERE name = 'server/gone'", (now - 3000,))
    drift = {
        "reference": "/srv/drift/reference",
        "problem": "",
        "requests": 12_345,
        "signals": SIGNALS,
        "alerts": [ALERT],
    }
    notes.put(
        "drift/a", drift | {"unsent": ["Drift: novelty (large): not sent by webhook (HTTP 503); tried again later."]}
    )
    update = {"folder": "/srv/literature", "library": {"there": 5122, "retracted": 3}, "retracted": 1, "flagged": 2}
    notes.put("update/a", update | {"index": "beef" * 8, "failures": []})
    return base


RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}


def test_figures_need_a_key_with_the_scope_admin(store):
    keys = Keys(fill_busy_store(store, 60))
    usual, admin = keys.create("Ann")[1], keys.create("Ops", ["admin"])[1]
    with served(store, Settings(keys_needed=True)) as server:
        assert server.ask("/admin").status == 200
        assert server.ask("/v1/admin/status").status == 401
        assert server.ask("/v1/admin/status", key=usual).error()["code"] == "missing_scope"
        assert server.ask("/v1/admin/status?hours=-1", key=admin).status == 400
        until(lambda: any(each["alive"] for each in server.ask("/v1/admin/status", key=admin).json["servers"]))
        told = server.ask("/v1/admin/status", key=admin).json
    assert told["answers"]["count"] == 60
    assert sum(told["answers"]["outcomes"].values()) == sum(part["count"] for part in told["over_time"]) == 60
    assert {each["model"]: each["answers"] for each in told["versions"]} == {"quickstart v1": 30, "quickstart v2": 30}
    assert told["feedback"]["up"] + told["feedback"]["down"] == 7
    assert {each["alive"] for each in told["servers"]} == {True, False}
    assert told["this_server"]["model"] == "tiny"


def test_a_server_tells_of_itself_and_leaves_no_trace_at_its_end(tmp_path):
    notes = Notes(open_store(tmp_path))
    notes.put("server/killed", {"address": "http://127.0.0.1:8000/"})
    with served(tmp_path, address="http://127.0.0.1:8000/") as server:
        assert server.chat().status == 200
        until(lambda: any("killed" not in note.name for note in notes.all("server")))
        (note,) = notes.all("server")
        assert "killed" not in note.name
        assert (note.facts["model"], note.facts["version"]) == ("tiny", "v1")
        assert server.ask("/v1/admin/status").json["answers"]["seconds"]["p50"] > 0
    assert notes.all("server") == []


@pytest.mark.browser
@pytest.mark.parametrize(("colours", "width"), [("light", 360), ("dark", 1280)])
def test_the_page_shows_them_to_everyone_and_runs_nothing_that_it_shows(browser, tmp_path, colours, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    keys = Keys(fill_busy_store(tmp_path))
    usual, admin = keys.create("Ann")[1], keys.create("Ops", ["admin"])[1]
    with served(tmp_path, Settings(keys_needed=True)) as server:
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=colours)
        problems, elsewhere = [], []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda sent: elsewhere.append(sent.url) if server.address not in sent.url else None)
        page.goto(f"{server.address}/admin#drift")
        for key in (usual, admin):
            page.get_by_label("Key", exact=True).fill(key)
            page.get_by_role("button", name="Continue").click()
            if key == usual:
                page.get_by_text("it lacks the admin scope").wait_for()
        page.get_by_role("heading", name="3 alerts").wait_for()
        assert not page.locator("#trouble").is_visible()
        page.get_by_text("Example questions").click()
        assert MARKUP in page.locator("#alerts li").inner_text()
        assert MARKUP in page.locator("#drift").inner_text()
        assert page.title() == "Meditune: operations"
        shown = page.locator("#now").inner_text()
        assert "400" in shown
        assert "% up" in shown
        assert page.locator("#versions tbody tr").count() == 2
        assert page.locator("#drift tr.open").inner_text().startswith("Distance to the nearest")
        assert "5,122" in page.locator("#updates").inner_text()
        assert page.locator("#time svg rect").count() > 30
        page.locator("#time summary").first.click()
        assert page.locator("#time details[open] tbody tr").count() == 24
        page.get_by_text("Week", exact=True).click()
        page.wait_for_function("document.querySelector('#status').textContent.includes('Updated')")
        page.evaluate("for (const bar of document.querySelectorAll('.top')) bar.style.position = 'static'")
        found = axe.run(page, options=RULES).response["violations"]
        assert not [(each["id"], [node["html"][:120] for node in each["nodes"]]) for each in found]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert admin not in page.evaluate("JSON.stringify({...localStorage})")
        assert (problems, elsewhere) == ([], [])
        page.close()


def test_tokens_read_before_and_costs_are_counted(tmp_path):
    settings = Settings(prices=(1e6, 2e6), hourly=3600.0)
    with served(tmp_path, settings) as server:
        for _ in range(2):
            assert server.chat("Does the drug help people who have had asthma for years? " * 4).status == 200
        tokens = {kind: server.figure(f'meditune_tokens_total{{kind="{kind}"}}') for kind in ("prompt", "completion")}
        assert server.figure("meditune_cached_tokens_total") > tokens["prompt"] / 4
        assert server.figure('meditune_cost_total{part="prompt"}') == tokens["prompt"]
        assert server.figure('meditune_cost_total{part="completion"}') == 2 * tokens["completion"]
        assert server.figure('meditune_cost_total{part="machine"}') > 0
        assert server.figure("meditune_first_token_seconds_count") == 2
        assert server.figure("process_resident_memory_bytes") > 1e7


def test_answers_with_sources_are_counted_whole(tmp_path):
    pytest.importorskip("lancedb")
    said = "Inhaled steroids help most people. Zebras cure asthma quickly."
    assistant = assistant_of(ScriptedEngine(said), index_of(tmp_path), AssistantSettings(nearest=-1.0))
    with served(tmp_path / "store", assistant=assistant) as server:
        assert server.ask("/v1/ask", {"question": "What helps people with asthma?"}).status == 200
        assert server.ask("/v1/ask", {"question": "I want to kill myself"}).json["outcome"] == "escalated"
        assert server.figure("meditune_first_token_seconds_count") == 1
        assert server.figure("meditune_retrieval_score_count") == 1
        assert server.figure('meditune_sentences_total{supported="false"}') >= 1
        assert server.figure('meditune_sentences_checked_total{by="detector"}') == 2
        assert server.figure('meditune_sentences_checked_total{by="judge"}') == 0
        assert server.figure('meditune_answers_total{outcome="escalated"}') == 1


class OneSentenceJudge:
    """A judge that has time for only one sentence of an answer."""

    name = "one sentence"
    citing_threshold = 0.5

    def __init__(self):
        self.asked = 0

    def supports(self, *_):
        self.asked += 1
        if self.asked > 1:
            raise TimeoutError
        return [ClaimVerdict(0.9, 0.0, 0.1, "")]


def test_sentences_are_counted_by_what_checked_them(tmp_path):
    pytest.importorskip("lancedb")
    said = "Inhaled steroids help most people. They help a lot."
    writer = EngineWriter(ScriptedEngine(said), PromptFormat(quoted=True))
    assistant = Assistant(writer, index_of(tmp_path), AssistantSettings(nearest=-1.0), judge=OneSentenceJudge())
    with served(tmp_path / "store", assistant=assistant) as server:
        answer = server.ask("/v1/ask", {"question": "What helps people with asthma?"}).json
        counted = {by: server.figure(f'meditune_sentences_checked_total{{by="{by}"}}') for by in ("judge", "detector")}
    assert [each["checked_by"] for each in answer["sentences"]] == ["judge", "detector"]
    assert counted == {"judge": 1, "detector": 1}
    (remark,) = [each["text"] for each in answer["notices"] if "judge" in each["text"]]
    assert remark.startswith("The judge ran out of time for 1 sentence")


SECRET = "unmistakable"
PARENT = "0af7651916cd43dd8448eb211c80319c"


@contextmanager
def receiver():
    """An OTLP receiver over HTTP; yields its address, and the spans that it got."""
    proto = pytest.importorskip(
        "opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="needs the extra otel"
    )
    got = []

    class Handler(Answering):
        def do_POST(self):
            body = self.body()
            assert self.path == "/v1/traces"
            if self.headers.get("Content-Encoding") == "gzip":
                import gzip

                body = gzip.decompress(body)
            sent = proto.ExportTraceServiceRequest.FromString(body)
            assert SECRET not in str(sent)
            got.extend(
                span for resource in sent.resource_spans for scope in resource.scope_spans for span in scope.spans
            )
            self.answer()

    with listening(Handler) as url:
        yield url, got


def attributes(span):
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


def test_a_question_is_one_trace_of_its_parts_without_its_words(tmp_path, monkeypatch):
    pytest.importorskip("lancedb")
    question = f"Do inhaled steroids help with {SECRET} asthma?"
    said = f"Inhaled steroids help most people. The {SECRET} zebra."
    assistant = assistant_of(ScriptedEngine(said), index_of(tmp_path), AssistantSettings(nearest=-1.0))
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
    with observability.span("request", {}) as made, observability.span("part") as part:
        made.set_attribute("a", 1)
        part.set_attribute("a", 1)
        assert observability.trace_id(made) == ""


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ModelError, match=r"pip install --editable .*\[otel\]"):
        observability.set_up_tracing({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"})
