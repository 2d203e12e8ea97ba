"""Likelihoods with and without the question, and figures that don't depend on how a tokenizer cuts text."""

import math

import pytest
import torch

from meditune.config.data_options import PromptFormat
from meditune.config.load_recipe import load_recipe
from meditune.evaluate.evaluator import Measuring, Scoring
from meditune.evaluate.likelihood import general_rows, score, scored_bytes, unconditional_rows
from meditune.evaluate.metrics import statistics_of, summarise
from meditune.evaluate.predictions import Predictions
from meditune.files import read_jsonl
from meditune.prompts import Encoded
from tests import tiny
from tests.models.test_rows import EXAMPLES

FORM = PromptFormat(max_tokens=256, answer_tokens=32)


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_answers_without_questions_are_scored_as_texts_of_their_own(architecture):
    loaded = tiny.loaded(architecture)
    encoded = [loaded.encoder(FORM).supervised(example, "answer") for example in EXAMPLES]
    rows = unconditional_rows(loaded, encoded)
    scores = score(loaded, rows, 512, "Alone")
    start = loaded.start_ids()
    assert bool(start) == (architecture == "gemma3")
    for item in encoded:
        ids = torch.tensor([[*start, *item.target[:-1]]])
        with torch.no_grad():
            found = loaded.model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
        nll = -float(found.gather(1, ids[0, 1:, None]).sum())
        assert scores.answers[item.id].tokens == ids.shape[1] - 1
        assert scores.answers[item.id].nll == pytest.approx(nll, rel=1e-4)


def test_an_answer_of_one_token_has_nothing_to_score_where_no_token_begins_a_text():
    encoded = [Encoded("a", "answer", prompt=[7, 8, 9], target=[10, 1])]
    assert unconditional_rows(tiny.loaded("llama"), encoded) == []
    assert len(unconditional_rows(tiny.loaded("gemma3"), encoded)) == 1


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_bytes_are_those_of_the_text_that_is_scored(architecture):
    loaded = tiny.loaded(architecture)
    text = "The drug — très bien — helps 3 of 4 adults. " * 20
    rows = general_rows(loaded, text, tokens=10_000, window=64)
    counted = sum(scored_bytes(loaded.tokenizer, row.encoded[0]) for row in rows)
    unscored = [] if loaded.start_ids() else [loaded.tokenizer.decode(row.encoded[0].prompt) for row in rows]
    exact = len(text.encode()) - sum(len(piece.encode()) for piece in unscored)
    # A character that a window's border cuts is counted on both sides.
    assert counted == pytest.approx(exact, abs=4 * len(rows))


def test_bytes_of_an_answer_leave_out_what_was_cut_off():
    loaded = tiny.loaded()
    long = EXAMPLES[0].model_copy(update={"answer": "The drug helps with pain in adults. " * 60})
    whole, cut = (Scoring(loaded.encoder(form), [], [long]) for form in (PromptFormat(max_tokens=2048), FORM))
    assert whole.bytes[long.id] == len(long.answer.strip())
    assert 0 < cut.bytes[long.id] < whole.bytes[long.id]
    kept = cut.rows[0].encoded[0].target
    assert cut.bytes[long.id] == len(loaded.tokenizer.decode(kept))


def test_bits_per_byte_dont_depend_on_how_a_text_was_cut_into_tokens():
    fine = [{"id": "a", "nll": 8 * math.log(2), "tokens": 16, "bytes": 16}]
    coarse = [{"id": "a", "nll": 8 * math.log(2), "tokens": 4, "bytes": 16}]
    for rows in (fine, coarse):
        figures = summarise(Predictions(likelihood=rows, general=rows))
        assert figures["bits_per_byte"] == figures["general_bits_per_byte"] == pytest.approx(0.5)
    assert (
        summarise(Predictions(likelihood=fine))["perplexity"] < summarise(Predictions(likelihood=coarse))["perplexity"]
    )


def test_predictions_of_earlier_versions_have_no_bits_per_byte():
    old = [{"id": "a", "nll": 8.0, "tokens": 16}]
    assert summarise(Predictions(likelihood=old, general=old)).keys() == {"perplexity", "general_perplexity"}


def test_a_measurement_stores_both_with_their_bytes(tmp_path):
    recipe = load_recipe("quickstart", ["evaluate.general_tokens=0", "evaluate.max_new_tokens=2"]).recipe
    loaded = tiny.loaded()
    measuring = Measuring(recipe, EXAMPLES, tmp_path)
    measuring.measure(loaded, "model")
    assert measuring.is_done("model")
    alone, given = (read_jsonl(tmp_path / f"model-{kind}.jsonl") for kind in ("unconditional", "likelihood"))
    answers = {example.id: example.answer for example in EXAMPLES}
    assert [row["bytes"] for row in given] == [len(answers[row["id"]].encode()) for row in given]
    assert all(0 < row["bytes"] <= full["bytes"] for row, full in zip(alone, given, strict=True))
    (tmp_path / "model-unconditional.jsonl").unlink()
    assert not measuring.is_done("model")
    found = statistics_of(Predictions(unconditional=alone))["unconditional_perplexity"]
    assert found.ids == tuple(answers)
