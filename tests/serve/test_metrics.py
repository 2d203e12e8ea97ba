"""Figures for Prometheus that follow what was asked."""

import pytest

from meditune.assistant.assistant import Assistant, AssistantSettings
from meditune.serve.settings import Settings
from tests.serve.saying import Saying, index_of
from tests.serve.server import served


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
    assistant = Assistant(Saying(said), index_of(tmp_path), AssistantSettings(nearest=-1.0))
    with served(tmp_path / "store", assistant=assistant) as server:
        assert server.ask("/v1/ask", {"question": "What helps people with asthma?"}).status == 200
        assert server.ask("/v1/ask", {"question": "I want to kill myself"}).json["outcome"] == "escalated"
        assert server.figure("meditune_first_token_seconds_count") == 1
        assert server.figure("meditune_retrieval_score_count") == 1
        assert server.figure('meditune_sentences_total{supported="false"}') >= 1
        assert server.figure('meditune_answers_total{outcome="escalated"}') == 1
