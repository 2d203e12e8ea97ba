"""`meditune status`, as somebody on call meets it."""

import json

from meditune.serve.settings import Settings
from meditune.store.api_keys import Keys
from tests.commands import meditune
from tests.serve.server import served
from tests.store.busy import fill


def test_it_tells_of_a_service_and_of_a_server_that_runs(store, monkeypatch):
    base = fill(store)
    _, metrics = Keys(base).create("Prometheus", ["metrics"])
    monkeypatch.setenv("MEDITUNE_STORE", store)
    with served(store, Settings(keys_needed=True, hourly=3600.0)) as server:
        server.chat(key="")
        without = meditune("status", "--url", server.address)
        assert "set MEDITUNE_KEY to a key with the metrics scope" in without.out
        monkeypatch.setenv("MEDITUNE_KEY", metrics)
        found = meditune("status", "--url", server.address)
        said = json.loads(meditune("status", "--url", server.address, "--json", "--hours", "48").out)
    assert found.code == 0, found.err
    for words in (
        "answers       400: ",
        "answered by   quickstart v2, index c0ffeec0ffee: 200",
        "corrections, ",
        "requests since start (0 failed, 0 refused)",
        "cost since start: ",
        "LOST, last seen",
        "1 open alert in 12,345 requests since /srv/drift/reference",
        "/srv/literature: 5,122 articles, 1 retracted",
        "ALERT novelty (large): Distance: farther",
        "ALERT Drift: novelty (large): not sent by webhook (HTTP 503)",
        "ALERT http://10.0.0.9:8000/ stopped unexpectedly",
    ):
        assert words in found.out, (words, found.out)
    assert said["answers"]["count"] == 400
    assert len(said["alerts"]) == 3
    assert said["live"][server.address]["meditune_requests_total"] >= 2


def test_a_server_that_is_gone_and_a_store_that_isnt_there(tmp_path):
    assert "There is no store in" in meditune("status", "--store", tmp_path / "nowhere").err
    assert not (tmp_path / "nowhere").exists()
    fill(tmp_path, 1)
    found = meditune("status", "--store", tmp_path, "--url", "http://127.0.0.1:1")
    assert (found.code, "no answer (ConnectError)" in found.out) == (0, True)
