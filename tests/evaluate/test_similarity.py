"""Similarity in meaning: the best reference counts, an empty answer has none, and a missing model is no failure."""

import numpy as np
import pytest

from meditune.config.recipe import EvaluateSpec
from meditune.evaluate.answer_grading import compared, grade, matched
from meditune.evaluate.metrics import summarise
from meditune.evaluate.predictions import Predictions, read
from meditune.files import read_jsonl, write_jsonl
from meditune.models.sentence_encoder import Reading, load
from tests import tiny

ROWS = [
    {"id": "same", "reference": "The drug helps.", "prediction": "The drug helps."},
    {"id": "second", "reference": "No.", "references": ["No.", "Pain fell."], "prediction": "Pain fell."},
    {"id": "empty", "reference": "The drug helps.", "prediction": " "},
    {"id": "other", "reference": "The drug helps.", "prediction": "0123 xyz 9"},
]


def reading(*tokens):
    vectors = np.array(tokens, dtype=np.float32).reshape(-1, 2)
    return Reading(np.array([1, 0], dtype=np.float32), vectors)


def test_tokens_are_matched_greedily_both_ways():
    said, meant = reading([1, 0], [0.6, 0.8]), reading([1, 0], [0, 1], [0, 1])
    precision, recall = (1 + 0.8) / 2, (1 + 0.8 + 0.8) / 3
    assert matched(said, meant) == pytest.approx(2 * precision * recall / (precision + recall))
    assert matched(said, said) == pytest.approx(1)
    assert matched(reading(), meant) == matched(meant, reading()) == 0
    assert matched(reading([1, 0]), reading([-1, 0])) == 0


def test_answers_are_held_to_the_nearest_reference(tmp_path):
    model = load(tiny.sentence_model(tmp_path / "model"))
    found = {row["id"]: row for row in compared(model, ROWS)}
    assert list(found) == ["same", "second", "empty", "other"]
    for key in ("similarity", "token_similarity"):
        assert found["same"][key] == pytest.approx(1, abs=1e-5)
        assert found["second"][key] == pytest.approx(1, abs=1e-5)
        assert found["empty"][key] == 0
        assert found["other"][key] < 0.999
    figures = summarise(Predictions(similarity=list(found.values())))
    assert figures["similarity"] == pytest.approx(np.mean([row["similarity"] for row in found.values()]))
    assert figures.keys() == {"similarity", "token_similarity"}


def test_where_the_model_cant_be_had_it_is_said_once_and_the_figures_are_absent(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MEDITUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MEDITUNE_OFFLINE", "1")
    for name in ("base", "tuned"):
        write_jsonl(tmp_path / f"{name}-answer.jsonl", ROWS)
        grade(tmp_path, name, [], EvaluateSpec())
        assert "similarity" not in summarise(read(tmp_path, name))
    assert capsys.readouterr().err.count("Similarity in meaning is not measured") == 1
    assert len(list(tmp_path.glob("*.jsonl"))) == 2


def test_a_recipe_can_do_without_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MEDITUNE_CACHE", str(tmp_path / "cache"))
    write_jsonl(tmp_path / "base-answer.jsonl", ROWS)
    grade(tmp_path, "base", [], EvaluateSpec(similarity=False))
    assert [path.name for path in tmp_path.glob("*.jsonl")] == ["base-answer.jsonl"]
    assert capsys.readouterr().err == ""


@pytest.mark.model
def test_the_real_model_ranks_by_meaning_and_cant_tell_true_from_false(tmp_path):
    reference = "Aspirin lowers the risk of a heart attack."
    texts = {
        "paraphrase": "Taking aspirin makes heart attacks less likely.",
        "opposite": "Aspirin raises the risk of a heart attack.",
        "elsewhere": "The train to Berlin leaves at noon.",
    }
    rows = [{"id": name, "reference": reference, "prediction": text} for name, text in texts.items()]
    write_jsonl(tmp_path / "model-answer.jsonl", rows)
    grade(tmp_path, "model", [], EvaluateSpec())
    found = {row["id"]: row for row in read_jsonl(tmp_path / "model-similarity.jsonl")}
    for key in ("similarity", "token_similarity"):
        assert found["opposite"][key] > found["paraphrase"][key] > found["elsewhere"][key] + 0.3
