"""Measuring: through the engine that serves a model the figures are those of the model itself.

Models, items and stored predictions that can't be measured, or only in part, are named in a sentence.

Decisions asked for in other ways, through the whole journey of a tiny model.
"""

import json
import shutil

import pytest
import torch

from meditune.config.data_options import PromptFormat
from meditune.config.load_recipe import load_recipe
from meditune.config.recipe import EvaluateSpec, Recipe
from meditune.config.training_options import ModelSpec
from meditune.data.example import DECISIONS, Example, Passage
from meditune.data.preference_pairs import Pair
from meditune.engines.transformers_engine import TransformersEngine
from meditune.errors import DataError, ModelError, RecipeError
from meditune.evaluate import likelihood
from meditune.evaluate.backends import EngineBackend
from meditune.evaluate.compare import compare
from meditune.evaluate.evaluator import ENGINE, Backend, Evaluator, coverage_remarks, decided_on, unmeasured_ids
from meditune.evaluate.likelihood import decisions, score
from meditune.evaluate.metrics import summarize
from meditune.evaluate.predictions import Predictions, read, write_pubmedqa
from meditune.evaluate.summary import empty_answers
from meditune.evaluate.weights_backend import WeightsBackend, generate_answers
from meditune.files import read_json, write_jsonl
from meditune.models.adapters import make_trainable
from meditune.models.shared_prefix_batch import rows_of
from tests import tiny
from tests.commands import meditune, read_rows
from tests.evaluate.test_report import shown
from tests.models.test_forward import EXAMPLES as ROW_EXAMPLES

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
    assert found == generate_answers(loaded, prompts, 60, "Writing", no_repeat=3)
    assert found != generate_answers(loaded, prompts, 60, "Writing")


def test_samples_are_refused_for_a_model_with_virtual_tokens():
    loaded = tiny.loaded()
    spec = ModelSpec(base="tiny", strategy="prefix", virtual_tokens=4)
    adapted = tiny.with_model(loaded, make_trainable(loaded.model, spec, seed=1))
    with pytest.raises(RecipeError, match="samples doesn't work with the virtual tokens"):
        WeightsBackend(adapted, recipe("samples=2"))


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


def test_a_row_that_arrives_after_the_end_of_an_interrupted_evaluation_is_kept(tmp_path):
    class Late(Stopping):
        def score(self, decided, answered, label, keep):
            self.keep = keep
            super().score(decided, answered, label, keep)

    backend = Late(2)
    with pytest.raises(KeyboardInterrupt):
        Evaluator(recipe(), examples(), tmp_path, can=ENGINE).measure(backend, "model")
    backend.keep("decision", {"id": "q5", "reference": "yes", "prediction": "yes"})
    assert [row["id"] for row in read_rows(tmp_path / "model-decision.jsonl.begun")] == ["q0", "q1", "q5"]


DEFAULT_RECIPE = Recipe(name="test")
EXAMPLES = [
    Example(id=f"own:{n}", source="own", question=f"Is it {n}?", answer=f"It is {n}.", decision="yes", group=str(n))
    for n in range(8)
]


def decided(ids, prediction="yes", reference="yes"):
    return [{"id": f"own:{n}", "reference": reference, "prediction": prediction} for n in ids]


def answered(ids, reference="It is {}."):
    return [{"id": f"own:{n}", "reference": reference.format(n), "prediction": "It is."} for n in ids]


def stored(folder, **kinds):
    for kind, rows in kinds.items():
        write_jsonl(folder / f"tuned-{kind}.jsonl", rows)
    return read(folder, "tuned")


def test_whole_predictions_need_no_remark():
    whole = Predictions(decision=decided(range(8)), answer=answered(range(8)))
    assert coverage_remarks(whole, "tuned", EXAMPLES, DEFAULT_RECIPE) == []


def test_missing_items_are_named_and_counted():
    said = coverage_remarks(Predictions(decision=decided(range(2, 8))), "tuned", EXAMPLES, DEFAULT_RECIPE)
    assert said == [
        "2 of 8 items have no prediction in tuned-decision.jsonl (own:0, own:1); the metrics cover only the others."
    ]


def test_unknown_items_and_other_references_are_refused():
    with pytest.raises(DataError, match=r"tuned-decision\.jsonl: 1 of 9 .*test data \(own:8\)"):
        coverage_remarks(Predictions(decision=decided(range(9))), "tuned", EXAMPLES, DEFAULT_RECIPE)
    with pytest.raises(DataError, match=r"base-answer\.jsonl: 8 of 8 predictions have a different reference"):
        coverage_remarks(Predictions(answer=answered(range(8), "It was {}.")), "base", EXAMPLES, DEFAULT_RECIPE)


def test_an_id_that_comes_twice_or_not_at_all_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"tuned-decision\.jsonl: 1 ids occur more than once \(own:3\)"):
        stored(tmp_path, decision=decided([1, 3, 3]))
    with pytest.raises(DataError, match=r"1 of 1 rows have no id"):
        stored(tmp_path, decision=[{"reference": "yes", "prediction": "yes"}])


def test_an_empty_reference_is_counted_and_not_scored(tmp_path):
    rows = answered(range(8))
    whole = summarize(Predictions(answer=rows[1:]))
    rows[0]["reference"] = " "
    found = stored(tmp_path, answer=rows)
    assert summarize(found) == whole
    assert coverage_remarks(found, "tuned", EXAMPLES, DEFAULT_RECIPE) == [
        "1 answers in tuned-answer.jsonl have an empty reference (own:0) and are left out of the metrics."
    ]


def test_items_with_nothing_to_measure_are_counted():
    bare = EXAMPLES[0].model_copy(update={"answer": " ", "decision": None})
    assert unmeasured_ids(EXAMPLES) == []
    assert unmeasured_ids([bare, *EXAMPLES[1:]]) == [
        "1 of 8 items have neither an answer nor a decision to measure (own:0)."
    ]


def test_the_order_of_rows_means_nothing():
    base = Predictions(decision=decided(range(6), "no") + decided([6, 7]))
    tuned = decided(range(7)) + decided([7], "no")
    forwards, backwards = (compare(base, Predictions(decision=rows), 200, 1) for rows in (tuned, tuned[::-1]))
    assert forwards == backwards
    assert forwards["accuracy"]["delta"] == pytest.approx(100 * 5 / 8)


def test_a_comparison_names_the_items_that_only_one_side_has():
    with pytest.raises(DataError, match=r"1 only in the first \(own:0\), 1 only in the second \(own:7\)"):
        compare(Predictions(decision=decided(range(7))), Predictions(decision=decided(range(1, 8))), 200, 1)


FORM = PromptFormat(max_tokens=256, answer_tokens=32)
RECIPE = Recipe.model_validate({"name": "x", "prompt": FORM, "evaluate": {"max_new_tokens": 4, "general_tokens": 0}})


def broken():
    """A model that gives NaN on the second of two examples, the only one with an omega."""
    loaded = tiny.loaded()
    example = ROW_EXAMPLES[1].model_copy(update={"id": "odd", "question": "Ω?"})
    token = loaded.tokenizer("Ω")["input_ids"][0]
    with torch.no_grad():
        weight = loaded.model.get_input_embeddings().weight
        loaded.model.get_output_embeddings().weight = torch.nn.Parameter(weight.detach().clone())
        weight[token] = float("nan")
    return loaded, [ROW_EXAMPLES[0], example]


def says(where: str) -> str:
    return rf"llama computes infinite or NaN values on {where} \(in float32\), so it can't be evaluated"


@pytest.mark.parametrize("task", ["decision", "answer"])
def test_likelihoods_that_are_no_numbers_name_the_item_and_the_model(task):
    loaded, examples = broken()
    encoder = loaded.encoder(FORM)
    rows = rows_of([encoder.supervised(example, task) for example in examples])
    with pytest.raises(ModelError, match=says("odd")):
        score(loaded, rows, 512, "Scoring", encoder.label_ids())


def test_answers_are_never_chosen_among_what_is_no_number():
    loaded, examples = broken()
    prompts = [loaded.encoder(FORM).prompt(example, "answer") for example in examples]
    with pytest.raises(ModelError, match=says("odd")):
        generate_answers(loaded, prompts, 4, "Writing")


def test_pairs_that_can_t_be_compared_are_named():
    loaded, examples = broken()
    pair = Pair(
        id="odd-pair",
        question=examples[1].question,
        context=(),
        chosen="The drug helps.",
        rejected="The drug hurts.",
        kind="own",
        group="g",
    )
    with pytest.raises(ModelError, match=says("odd-pair")):
        list(likelihood.score_pairs(loaded, [pair], loaded.encoder(FORM), 512, "Pairs"))


def test_a_model_in_a_small_number_format_is_to_be_tried_in_a_larger_one():
    loaded, examples = broken()
    loaded.model.to(torch.bfloat16)
    with pytest.raises(ModelError, match=r"--set model\.dtype=float32"):
        list(decisions(loaded, examples, 512, "Scoring"))


def test_answers_stop_at_every_end_token_of_the_generation_config():
    loaded = tiny.loaded()
    prompts = [loaded.encoder(PromptFormat()).prompt(examples()[0], "answer")]
    (usual,) = generate_answers(loaded, prompts, 6, "Writing").values()
    loaded.model.generation_config.eos_token_id = list(range(500))
    (found,) = generate_answers(loaded, prompts, 6, "Writing").values()
    assert usual
    assert not found


def test_neither_chat_template_nor_padding_token_is_needed(tmp_path):
    loaded = tiny.loaded()
    loaded.tokenizer.pad_token = None
    assert loaded.tokenizer.chat_template is None
    assert loaded.pad_id == loaded.tokenizer.eos_token_id
    Evaluator(RECIPE, ROW_EXAMPLES, tmp_path).measure(WeightsBackend(loaded, RECIPE), "model")
    assert len(read(tmp_path, "model").answer) == len(ROW_EXAMPLES)


def test_without_an_end_token_only_the_protocol_without_one_works(tmp_path):
    loaded = tiny.loaded()
    loaded.tokenizer.pad_token = loaded.tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        Evaluator(RECIPE, ROW_EXAMPLES, tmp_path).measure(WeightsBackend(loaded, RECIPE), "model")
    assert len(list(decisions(loaded, ROW_EXAMPLES, 512, "Scoring"))) == len(ROW_EXAMPLES)


def test_empty_answers_and_missing_references_are_said(tmp_path, capsys):
    loaded = tiny.loaded()
    with torch.no_grad():
        # The final norm leaves no hidden state: all logits are equal, and the first token, a special one, is likeliest.
        loaded.model.model.norm.weight.zero_()
    examples = [*ROW_EXAMPLES, Example(id="bare", source="t", question="Is it?", decision="no", group="bare")]
    Evaluator(RECIPE, examples, tmp_path).measure(WeightsBackend(loaded, RECIPE), "model")
    said = capsys.readouterr().err
    assert "1 of 4 items, such as bare, have no reference answer, so only decisions on them are measured." in said
    assert "model gave empty answers to 3 items, such as e0: it stopped at once, or wrote only whitespace." in said
    assert empty_answers(read(tmp_path, "model")) == 3
    assert empty_answers(Predictions(answer=[{"prediction": "Yes."}, {"prediction": " "}])) == 1


def test_the_command_ends_with_a_sentence(tmp_path):
    folder = tiny.save(tmp_path / "model")
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    name = next(key for key in weights if key.endswith("norm.weight"))
    weights[name].fill_(float("inf"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    given = ("--set", "data.sources=[{name: sample, limit: 20}]", "--set", "data.split=group")
    done = meditune("evaluate", folder, "--output", tmp_path / "out", *given, "--set", "model.dtype=float32")
    done.refused(4, str(folder), "infinite or NaN values on sample:synthetic-", "can't be evaluated")
    assert not list((tmp_path / "out" / "predictions").glob("*.jsonl"))


ALL = {
    "evaluate__closed_book": "true",
    "evaluate__written_decisions": "true",
    "evaluate__calibrate": "prior",
    "evaluate__abstain_target": "0.3",
    "data__dev_share": "0.45",
    "data__sources__0__limit": "60",
}
CONDITION_KINDS = ("decision", "dev_decision", "closed", "written", "calibration")


@pytest.fixture(scope="module")
def folder(place):
    place.run("run", **ALL).ok()
    return place.folder / "run"


def stored_by_kind(folder, name):
    return {kind: read_rows(folder / "predictions" / f"{name}-{kind}.jsonl") for kind in CONDITION_KINDS}


@pytest.mark.parametrize("name", ["base", "tuned"])
def test_every_way_is_measured_on_its_items(folder, name):
    rows = stored_by_kind(folder, name)
    ids = {split: {row["id"] for row in read_rows(folder / "data" / f"{split}.jsonl")} for split in ("dev", "test")}
    assert {row["id"] for row in rows["dev_decision"]} == ids["dev"]
    for kind in ("decision", "closed", "written"):
        assert {row["id"] for row in rows[kind]} == ids["test"]
    assert rows["calibration"][0].keys() >= {"method", "temperature", "bias", "items"}
    assert rows["calibration"][0]["items"] == len(ids["dev"])
    for closed, given in zip(rows["closed"], rows["decision"], strict=True):
        assert closed["logits"] != given["logits"], "without the context the model finds other things likely"


def test_the_figures_follow_from_what_is_stored(folder):
    report = read_json(folder / "report.json")
    for name in ("base", "tuned"):
        rows = stored_by_kind(folder, name)
        for prefix, kind in (("", "decision"), ("closed_", "closed"), ("written_", "written")):
            right = sum(row["reference"] == row["prediction"] for row in rows[kind])
            assert report[name][f"{prefix}accuracy"] == pytest.approx(100 * right / len(rows[kind]))
        assert {"calibrated_accuracy", "calibrated_macro_f1", "calibrated_ece"} <= report[name].keys()
        said = report["decision"][name]
        assert said["written"]["without_label"] == sum(row["prediction"] is None for row in rows["written"])
        assert said["calibration"]["bias"].keys() == set(DECISIONS)
        assert said["abstention"].keys() == {"target", "folds", "raw", "calibrated"}
        assert said["risk_coverage"][-1]["risk"] == pytest.approx(1 - report[name]["accuracy"] / 100)
    assert report["comparison"].keys() == report["base"].keys()


def test_the_page_shows_raw_beside_corrected_figures(folder):
    words = shown(folder)
    assert "By likelihood Base model" in words
    assert "By likelihood, calibrated Base model" in words
    assert "With and without sources" in words
    assert "Prior calibration: each label" in words
    assert "Abstention" in words
    verdict = words.partition("Before and after")[0]
    for row in ("closed book", "calibrated"):
        assert row not in verdict.partition("Metrics that got worse")[0], "details stay out of the verdict"


def test_the_report_needs_no_model_and_goes_on_after_a_stop_between_the_two(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "predictions" / "tuned-calibration.jsonl").unlink()
    meditune("report", copy).ok()
    assert read_json(copy / "report.json")["tuned"] == read_json(folder / "report.json")["tuned"]


def test_an_evaluation_measures_them_too(place, folder, tmp_path):
    settings = place.settings(**ALL)
    meditune("evaluate", folder, "--recipe", "quickstart", "-o", tmp_path / "one", *settings).ok()
    figures = json.loads((tmp_path / "one" / "evaluation.json").read_text(encoding="utf-8"))["figures"]
    assert figures == pytest.approx(read_json(folder / "report.json")["tuned"])


def test_nothing_of_it_is_measured_unasked(place, tmp_path):
    meditune("evaluate", place.base, "-o", tmp_path / "plain", *place.settings()).ok()
    there = {path.name for path in (tmp_path / "plain" / "predictions").iterdir()}
    assert "model-decision.jsonl" in there
    assert not there & {f"model-{kind}.jsonl" for kind in ("dev_decision", "closed", "written", "calibration")}


def example(number, **changes):
    given = {"context": (Passage(text="Pain fell."),), "decision": "yes"} | changes
    return Example(id=f"pubmedqa:{number}", source="pubmedqa", question=f"Does {number} help?", group=number, **given)


def test_closed_book_takes_only_the_context_away():
    examples = [example("1"), example("2", context=()), example("3", decision=None)]
    kinds = decided_on(examples, [], EvaluateSpec(closed_book=True))
    assert [each.id for each in kinds["decision"]] == ["pubmedqa:1", "pubmedqa:2"]
    assert kinds["closed"] == [examples[0].model_copy(update={"context": ()})], "the second has none to take away"
    assert decided_on(examples[1:2], [], EvaluateSpec(closed_book=True)).keys() == {"decision"}


def test_a_written_decision_without_a_label_is_wrong_and_no_class_of_its_own():
    rows = [{"id": str(n), "reference": "yes", "prediction": said} for n, said in enumerate(("yes", None, None, "no"))]
    figures = summarize(Predictions(written=rows))
    assert figures["written_accuracy"] == 25
    assert figures["written_macro_f1"] == pytest.approx(100 * (2 / 5 + 0) / 2)


def test_the_publishers_file_maps_pubmed_ids_to_labels(tmp_path):
    rows = [{"id": "pubmedqa:12345678", "prediction": "yes"}, {"id": "pubmedqa:9", "prediction": None}]
    other = {"id": "own:1", "prediction": "no"}
    write_jsonl(tmp_path / "base-decision.jsonl", [*rows, other])
    test = [example("12345678"), example("9"), example("1").model_copy(update={"id": "own:1", "source": "own"})]
    path = write_pubmedqa(tmp_path, "base", test)
    assert path == tmp_path / "base-pubmedqa.json"
    assert read_json(path) == {"12345678": "yes", "9": "none"}
    assert write_pubmedqa(tmp_path, "base", test[2:]) is None
