"""A model measured through the engine that serves it has the figures that it has when it is measured itself."""

import pytest

from meditune.config.load_recipe import load_recipe
from meditune.data.example import Example, Passage
from meditune.engines.transformers_engine import TransformersEngine
from meditune.errors import DataError
from meditune.evaluate.engine_backend import EngineBackend
from meditune.evaluate.evaluator import ENGINE, Backend, Evaluator
from meditune.evaluate.weights_backend import WeightsBackend, generate_answers
from tests import tiny
from tests.commands import read_rows

KINDS = ("decision", "likelihood", "answer", "written", "closed")


def examples():
    return [
        Example(
            id=f"q{number}",
            source="own",
            question=f"Does drug {number} help?",
            context=(Passage(text=f"Results: pain fell by {number} percent."),),
            answer=f"The drug helps {number} adults.",
            decision=("yes", "no", "maybe")[number % 3],
            group=str(number),
        )
        for number in range(6)
    ]


def recipe(*settings):
    quiet = ["safety_messages=0", "general_tokens=0", "choices=0", "closed_book=true", "written_decisions=true"]
    named = [f"evaluate.{setting}" for setting in (*quiet, "max_new_tokens=8", "similarity=false", *settings)]
    return load_recipe("quickstart", named).recipe


def test_figures_are_those_of_the_model(tmp_path):
    loaded = tiny.loaded()
    Evaluator(recipe(), examples(), tmp_path / "itself").measure(WeightsBackend(loaded, recipe()), "model")
    engine = TransformersEngine(loaded)
    measuring = Evaluator(recipe(), examples(), tmp_path / "engine", can=ENGINE)
    assert not measuring.is_done("model")
    measuring.measure(EngineBackend(engine, recipe().prompt), "model")
    assert measuring.is_done("model")
    engine.close()
    for kind in KINDS:
        one, other = (read_rows(tmp_path / side / f"model-{kind}.jsonl") for side in ("itself", "engine"))
        assert [row["id"] for row in one] == [row["id"] for row in other]
        for first, second in zip(one, other, strict=True):
            if "logits" in first:
                apart = {label: first["logits"][label] - second["logits"][label] for label in first["logits"]}
                # Log-probabilities are the logits but for a constant.
                assert max(apart.values()) - min(apart.values()) < 1e-3
            if "nll" in first:
                assert second["nll"] == pytest.approx(first["nll"], abs=1e-3)
                assert (second["tokens"], second["bytes"]) == (first["tokens"], first["bytes"])
            if kind == "written":
                assert second["prediction"] == first["prediction"]


def test_the_harness_s_protocol_is_refused(tmp_path):
    with pytest.raises(DataError, match="lm-eval"):
        Evaluator(recipe("protocol=lm-eval"), examples(), tmp_path, can=ENGINE)


def test_a_rule_that_engines_dont_follow_is_refused(tmp_path):
    with pytest.raises(DataError, match="Set it to null"):
        Evaluator(recipe("no_repeat=6"), examples(), tmp_path, can=ENGINE)


def test_the_rule_holds_for_models_that_are_loaded_here(tmp_path):
    loaded = tiny.loaded()
    made = recipe("max_new_tokens=60", "no_repeat=3")
    Evaluator(made, examples(), tmp_path).measure(WeightsBackend(loaded, made), "model")
    found = {row["id"]: row["prediction"] for row in read_rows(tmp_path / "model-answer.jsonl")}
    prompts = [loaded.encoder(made.prompt).prompt(example, "answer") for example in examples()]
    assert found == generate_answers(loaded, prompts, 60, "Writing", once=3)
    assert found != generate_answers(loaded, prompts, 60, "Writing")


class Stopping(Backend):
    """A back end that is interrupted after some decisions."""

    def __init__(self, most):
        self.most, self.asked = most, []

    def score(self, decided, answered, label, keep):  # noqa: ARG002
        for example in decided[: self.most]:
            self.asked.append(example.id)
            keep("decision", {"id": example.id, "reference": example.decision, "prediction": "yes"})
        if len(decided) > self.most:
            raise KeyboardInterrupt
        for example in answered:
            keep("likelihood", {"id": example.id, "nll": 1.0, "tokens": 2, "bytes": 3})

    def write(self, examples, task, max_new_tokens, label, keep):  # noqa: ARG002
        for example in examples:
            keep(example.id, "Yes.", 0)


def test_rows_of_an_interrupted_evaluation_are_not_computed_again(tmp_path, capsys):
    evaluator = Evaluator(recipe("written_decisions=false"), examples(), tmp_path, can=ENGINE)
    with pytest.raises(KeyboardInterrupt):
        evaluator.measure(Stopping(4), "model")
    assert not (tmp_path / "model-decision.jsonl").exists()
    backend = Stopping(99)
    evaluator.measure(backend, "model")
    assert backend.asked[:2] == ["q4", "q5"], "the closed-book decisions follow"
    assert "Resuming the decisions of model: 4 of 6 are done." in capsys.readouterr().err
    assert [row["id"] for row in read_rows(tmp_path / "model-decision.jsonl")] == [each.id for each in examples()]
    assert evaluator.is_done("model")
    assert not list(tmp_path.glob("*.begun"))
