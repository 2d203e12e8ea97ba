"""Models that are asked about candidates: their decisions and samples become reasons."""

from __future__ import annotations

import json

import pytest

from meditune.data.example import DECISIONS
from meditune.operate.active_learning import acquisition
from tests import tiny
from tests.commands import jsonl, meditune
from tests.operate.learn.material import SURE, candidate


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.save(tmp_path_factory.mktemp("model")))


def test_a_model_decides_and_writes_and_what_is_too_long_stays_without(model):
    pool = [
        candidate("Is asthma curable?", opinions={"served": SURE}),
        candidate("word " * 3000),
        candidate("Does vitamin C help?"),
    ]
    found, too_long = acquisition.asked(pool, model, samples=2)
    assert too_long == [pool[1].id]
    assert [list(each.opinions) for each in found] == [["served", model], [], [model]]
    assert [len(each.samples) for each in found] == [2, 0, 2]
    for each in (found[0], found[2]):
        chances = each.opinions[model]
        assert set(chances) == set(DECISIONS)
        assert sum(chances.values()) == pytest.approx(1)
    assert found[0].opinions[model] != found[2].opinions[model]


def test_a_queue_asks_the_models_that_are_named(model, tmp_path):
    rows = jsonl(tmp_path / "rows.jsonl", [{"question": f"Does treatment {n} help?"} for n in range(4)])
    words = ("learn", "queue", rows, "--ask", model, "--strategy", "uncertainty", "--budget", "2", "--json")
    found = json.loads(meditune(*words, "-o", tmp_path / "set").out)
    assert len(found["chosen"]) == 2
    assert all(each["reasons"]["unsure"].startswith("its decision is unsure (") for each in found["chosen"])
    assert found["chosen"][0]["score"] >= found["chosen"][1]["score"]
    meditune(*words, "-o", tmp_path / "x", "--ask", tmp_path / "no-model").refused(4, "no-model")
