"""Mixed sources come as often as the recipe says, and every row of a source before any comes again.

What a training reads of each source, in tokens.
"""

import json
from collections import Counter
from itertools import islice

import pytest

from meditune.config.data_options import PromptFormat
from meditune.config.training_options import ReplaySpec, TrainSpec
from meditune.data.example import Example
from meditune.errors import DataError
from meditune.models.shared_prefix_batch import rows_of
from meditune.train.dataset import TokenWeights
from meditune.train.replay import mix_of, plan_replay
from meditune.train.trainer import plan_steps
from meditune.train.training_plan import mixture, plan_lines
from tests import tiny
from tests.commands import jsonl, meditune, read_rows, rows, stopped_after

SOURCES = ["a", "b"] * 30 + ["a"] * 40 + ["b"] * 10 + ["c"] * 10
"""70 of a, 40 of b, 10 of c"""
EQUAL = {"a": 1, "b": 1, "c": 1}


@pytest.mark.parametrize(
    ("weights", "visits"),
    [
        ({"a": 1, "b": 1, "c": 1}, {"a": 40, "b": 40, "c": 40}),
        ({"a": 1, "b": 0.5, "c": 2.5}, {"a": 30, "b": 15, "c": 75}),
        ({"a": 7, "b": 4, "c": 1}, {"a": 70, "b": 40, "c": 10}),
    ],
    ids=str,
)
def test_each_source_comes_as_often_as_stated(weights, visits):
    mix = mix_of(SOURCES, weights)
    steps = plan_steps(len(SOURCES), TrainSpec(batch_size=4, accumulation=2, epochs=2.5), 3, mix)
    seen = [index for step in steps for index in step]
    assert len(seen) == 300
    for epoch in (seen[:120], seen[120:240]):
        assert Counter(SOURCES[index] for index in epoch) == visits
    last = Counter(SOURCES[index] for index in seen[240:])
    assert {name: last[name] / 60 for name in visits} == pytest.approx(
        {name: count / 120 for name, count in visits.items()}, abs=0.15
    )
    assert mix.repeats() == {name: pytest.approx(count / SOURCES.count(name)) for name, count in visits.items()}


def test_no_row_comes_again_before_all_of_its_source_came():
    mix = mix_of(SOURCES, {"a": 1, "b": 1, "c": 4})
    epochs = list(islice(mix.epochs(seed=3), 6))
    for source in "abc":
        times = Counter(index for epoch in epochs for index in epoch if SOURCES[index] == source)
        assert len(times) == SOURCES.count(source)
        assert max(times.values()) - min(times.values()) <= 1


def test_a_plan_follows_from_its_seed_alone():
    spec = TrainSpec(batch_size=4, accumulation=1, epochs=2)
    plans = [plan_steps(120, spec, seed, mix_of(SOURCES, EQUAL)) for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]
    assert plan_steps(120, spec, 1, mix_of(SOURCES, {})) == plan_steps(120, spec, 1)
    assert mix_of(["a"] * 5, {"a": 3.0}) is None


def test_a_weighed_source_without_rows_is_refused():
    with pytest.raises(DataError, match=r"train\.mix\.weights: there are no training rows from c\."):
        mix_of(["a", "b"], {"a": 1, "b": 1, "c": 1})


def test_a_source_whose_weight_is_too_small_for_a_single_row_is_refused():
    with pytest.raises(DataError, match=r"train\.mix\.weights: an epoch of 404 rows has none from small\. Raise"):
        mix_of(["big"] * 400 + ["small"] * 4, {"big": 1000, "small": 1})


def test_the_shares_of_tasks_and_classes_hold_for_what_is_visited():
    loaded = tiny.loaded()
    encoder = loaded.encoder(PromptFormat(max_tokens=256, answer_tokens=32))
    both = []
    for n in range(20):
        example = Example(id=f"{n}", source="b", group=f"{n}", question=f"Does drug {n} help?", answer="It does.")
        decided = {"source": "a", "decision": "maybe" if n % 3 == 0 else "yes"}
        both.append(example.model_copy(update=decided if n < 12 else {}))
    tasks = [(e, task) for e in both for task in ("decision", "answer") if task == "answer" or e.decision]
    made = rows_of([encoder.supervised(example, task) for example, task in tasks])
    mix = mix_of([example.source for example in both], {"a": 1, "b": 3})
    spec = TrainSpec(decision_share=0.4, class_balance=1.0)
    often = {example.id: mix.repeats()[example.source] for example in both}
    weights = TokenWeights(both, made, spec, often)
    sums = Counter()
    for step in plan_steps(20, spec.model_copy(update={"epochs": 12.0}), 1, mix):
        for row in (made[index] for index in step):
            for weight, number in zip(weights.of(row), row.of, strict=True):
                item = row.encoded[number]
                sums[item.task] += weight
                sums[both[int(item.id)].decision if item.task == "decision" else None] += weight
    assert sums["decision"] / (sums["decision"] + sums["answer"]) == pytest.approx(0.4)
    assert sums["yes"] == pytest.approx(sums["maybe"])


def two_sources(place, tmp_path, *more, **changes):
    path = jsonl(tmp_path / "own.jsonl", rows(30))
    sources = f"[{{name: pubmedqa, limit: 40}}, {{name: own, path: '{path}'}}]"
    settings = place.settings(data__sources=sources, data__sources__0__limit=None, **changes)
    return ["quickstart", "--output", tmp_path / "run", *settings, *more]


def test_the_pre_flight_and_the_card_tell_the_mix(place, tmp_path):
    words = two_sources(place, tmp_path, "--set", "train.mix.weights={pubmedqa: 1, own: 3}", train__epochs=1)
    result = meditune("train", *words).ok()
    facts = (tmp_path / "run" / "model" / "training.json").read_text(encoding="utf-8")
    line = next(line for line in result.err.splitlines() if line.startswith("An epoch has"))
    total = int(line.split()[3])
    own = round(total * 0.75)
    assert f" {own} of own (" in line
    assert f" {total - own} of pubmedqa (" in line
    assert f'"own": {own}' in facts
    assert f"{own} of own" in (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("train.mix.weights={own: 1}", "one weight for each of data.sources (own, pubmedqa)"),
        ("train.mix.weights={own: 1, pubmedqa: 0}", "must be above 0"),
    ],
)
def test_a_mix_that_makes_no_sense_is_refused(place, tmp_path, option, message):
    meditune("train", *two_sources(place, tmp_path, "--set", option)).refused(2, message, "train.mix")


def test_what_was_read_is_told_before_and_after_in_tokens(place, tmp_path):
    options = ["--set", "train.mix.weights={own: 1, pubmedqa: 2}", "--set", "train.replay={share: 0.2, rows: 4}"]
    result = meditune("train", *two_sources(place, tmp_path, *options, train__epochs=1)).ok()
    facts = json.loads((tmp_path / "run" / "model" / "training.json").read_text(encoding="utf-8"))
    assert {part["source"] for part in facts["mixture"]} == {"own", "pubmedqa", "replay (self)"}
    for part in facts["mixture"]:
        assert f"{part['source']}: {part['visits']:,} rows (" in result.err
        assert f"{part['supervised_tokens']:,} of them supervised" in result.err
    steps = read_rows(tmp_path / "run" / "training.jsonl")
    assert sum(part["tokens"] for part in facts["mixture"]) == sum(step["tokens"] for step in steps)
    card = (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")
    assert "Each epoch mixed rows by source: " in card
    assert "Shares of all supervised tokens: " in card


def test_a_training_that_was_stopped_keeps_its_mixture(place, tmp_path):
    options = ["--set", "train.mix={weights: {own: 1, pubmedqa: 2}}"]
    words = two_sources(place, tmp_path, *options, train__checkpoint_steps=1)
    with stopped_after(2):
        assert meditune("train", *words).code == 130
    meditune("train", *words).ok()
    other = tmp_path / "other"
    other.mkdir()
    meditune("train", *two_sources(place, other, *options, train__checkpoint_steps=1)).ok()
    both = [read_rows(folder / "run" / "training.jsonl") for folder in (tmp_path, other)]
    assert [step["tokens"] for step in both[0]] == [step["tokens"] for step in both[1]]
    weights = [(folder / "run" / "model" / "adapter_model.safetensors").read_bytes() for folder in (tmp_path, other)]
    assert weights[0] == weights[1]


@pytest.fixture(scope="module")
def made():
    encoder = tiny.loaded().encoder(PromptFormat(max_tokens=256, answer_tokens=64))
    examples = [
        Example(
            id=str(n),
            source="long" if n < 4 else "short",
            group=str(n),
            question=f"Does drug {n} help?",
            answer="It helps most people. " * (8 if n < 4 else 1),
        )
        for n in range(16)
    ]
    return examples, rows_of([encoder.supervised(example, "answer") for example in examples])


def test_every_token_that_is_read_is_counted_once(made):
    examples, rows = made
    spec = TrainSpec(batch_size=4, accumulation=1, epochs=2, replay=ReplaySpec(share=0.2))
    steps = plan_steps(len(rows), spec, 1)
    replay = plan_replay(rows[:2], steps, TokenWeights(examples, rows, spec), spec.replay, 1)
    parts = mixture(rows, [example.source for example in examples], steps, replay)
    assert [part["source"] for part in parts] == ["long", "short", "replay (self)"]
    read = [rows[index] for step in steps for index in step] + [
        row for n in range(len(steps)) for row in replay.step(n)
    ]
    assert sum(part["tokens"] for part in parts) == sum(map(len, read))
    assert sum(part["supervised_tokens"] for part in parts) == sum(len(row.targets) for row in read)
    assert [part["visits"] for part in parts] == [8, 24, 8]
    assert [part["passes"] for part in parts] == [2, 2, 4]
    assert sum(part["token_share"] for part in parts) == pytest.approx(1, abs=1e-3)
    assert parts[0]["supervised_share"] > parts[0]["token_share"], "most of a long answer's row is trained on"


def test_a_training_that_ended_early_counts_what_it_did(made):
    examples, rows = made
    steps = plan_steps(len(rows), TrainSpec(batch_size=4, accumulation=1, epochs=3), 1)
    parts = mixture(rows, [example.source for example in examples], steps[:2], None)
    assert sum(part["visits"] for part in parts) == 8
    short = next(part for part in parts if part["source"] == "short")
    line = next(line for line in plan_lines(parts) if line.startswith("short: "))
    assert line.startswith(f"short: {short['visits']} rows ({round(short['visits'] / 12, 2):g} passes over 12), ")
