"""Answers are graded against their own sources; what can't be graded is counted, and the figures follow from the rows.

Similarity in meaning: the best reference counts, an empty answer has none, and a missing model is no failure.
"""

import re

import numpy as np
import pytest

from meditune.cli.metrics_tables import print_comparison, print_worse
from meditune.config.recipe import EvaluateSpec
from meditune.data.example import STYLE, Example, Passage
from meditune.evaluate.compare import caveats, compare, got_worse
from meditune.evaluate.faithfulness_and_similarity import compared, grade, matched, overview
from meditune.evaluate.metrics import summarize, summarize_references
from meditune.evaluate.metrics.written_answers import agreement
from meditune.evaluate.predictions import Predictions, read
from meditune.evaluate.quality_gate import Policy, check
from meditune.evaluate.report import render
from meditune.evaluate.subgroups import subgroups
from meditune.evaluate.summary import conditions
from meditune.files import read_json, read_jsonl, write_json, write_jsonl
from meditune.models.sentence_encoder import TokenVectors, load
from tests import tiny
from tests.evaluate.test_llm_judge import judge_folder
from tests.evaluate.test_report import finished_run, shown
from tests.models.test_nli import judge

TEXT = "Severe headaches increased in 30 adults. Aspirin did not lower blood pressure. The dose was 75 mg."
ANSWERS = {
    "a": "Severe headaches increased in 30 adults. Aspirin did not lower blood pressure.",
    "b": "Severe headaches decreased in 31 adults.",
    "c": "Ibuprofen did not lower blood pressure.",
    "d": "",
    "e": "Anything.",
}


def example(name, context=TEXT):
    passages = (Passage(text=context),) if context else ()
    return Example(id=name, source="test", question="Does it help?", context=passages, answer="Yes.", group=name)


EXAMPLES = [example(name) for name in "abcd"] + [example("e", context="")]


def graded(folder, answers=ANSWERS, **spec):
    rows = [{"id": name, "reference": "Yes.", "prediction": text} for name, text in answers.items()]
    write_jsonl(folder / "base-answer.jsonl", rows)
    grade(folder, "base", EXAMPLES, EvaluateSpec(similarity=False, **spec))
    return read(folder, "base")


def test_rows_say_where_what_and_why(tmp_path):
    rows = {row["id"]: row for row in graded(tmp_path).faithfulness}
    assert list(rows) == ["a", "b", "c", "d"]
    assert rows["a"]["score"] > 0.9 > 0.2 > rows["b"]["score"]
    assert [(ANSWERS["b"][s["start"] : s["end"]], s["kind"]) for s in rows["b"]["spans"]] == [
        ("decreased", "direction"), ("31", "number"),
    ]  # fmt: skip
    assert rows["b"]["spans"][1]["source"].startswith("Severe headaches increased in 30")
    assert (rows["d"]["score"], rows["d"]["sentences"], rows["d"]["spans"]) == (None, [], [])


def test_what_was_not_graded_is_counted(tmp_path):
    found = overview(graded(tmp_path))
    assert (found["graded"], found["without_sources"], found["nothing_said"]) == (4, 1, 1)
    assert found["spans"] == {"number": 1, "direction": 1, "name": 1}
    assert found["by"] == "words"


def test_figures_count_sentences_and_answers(tmp_path):
    predictions = graded(tmp_path)
    figures = summarize(predictions)
    scores = [row["score"] for row in predictions.faithfulness if row["score"] is not None]
    assert figures["faithfulness"] == pytest.approx(sum(scores) / 3)
    assert figures["contradictions"] == pytest.approx(100 / 4)
    assert figures["unsupported_numbers"] == pytest.approx(100 / 3)
    assert figures["unsupported_names"] == pytest.approx(100 / 3)
    unsupported = sum(not each["supported"] for row in predictions.faithfulness for each in row["sentences"])
    assert figures["unsupported_sentences"] == pytest.approx(100 * unsupported / 4)


def test_two_models_are_compared_though_one_says_nothing_somewhere(tmp_path):
    first = graded(tmp_path / "first")
    second = graded(tmp_path / "second", ANSWERS | {"b": ANSWERS["a"], "d": ANSWERS["a"]})
    found = compare(first, second, 200, 17)
    assert found["faithfulness"]["delta"] > 0.2
    assert found["unsupported_numbers"]["delta"] == pytest.approx(-100 / 3)


def test_without_sources_there_is_no_figure(tmp_path):
    predictions = graded(tmp_path, {"e": "Anything."})
    assert predictions.faithfulness == []
    assert "faithfulness" not in summarize(predictions)


def test_a_model_gives_the_scores_and_the_spans_of_the_detector_stay(tmp_path):
    judge(tmp_path / "nli", ["entailment", "neutral", "contradiction"])
    predictions = graded(tmp_path / "run", faithfulness_model=str(tmp_path / "nli"))
    by_words = graded(tmp_path / "words")
    for row, same in zip(predictions.faithfulness, by_words.faithfulness, strict=True):
        assert row["by"] == str(tmp_path / "nli")
        assert row["score"] == min((each["score"] for each in row["sentences"]), default=None)
        assert [s for s in row["spans"] if s["kind"] != "unsupported"] == [
            s for s in same["spans"] if s["kind"] != "unsupported"
        ]
    assert predictions.faithfulness[0]["score"] != by_words.faithfulness[0]["score"]


@pytest.mark.parametrize(("logits", "percent"), [([0.0, 0.0, 2.0], 100), ([2.0, 0.0, 0.0], 0)])
def test_a_model_that_knows_contradictions_decides_about_them(tmp_path, logits, percent):
    folder = tmp_path / "nli"
    made = judge(folder, ["entailment", "neutral", "contradiction"])
    tiny.sure(folder, made, logits)
    figures = summarize(graded(tmp_path / "run", faithfulness_model=str(folder)))
    assert figures["contradictions"] == percent
    assert figures["unsupported_sentences"] == percent


def marked(count, often, kind="direction"):
    """Graded answers of one sentence each, of which so many are marked."""
    span = {"start": 0, "end": 4, "kind": kind, "why": "", "source": ""}
    return [
        {"id": str(n), "score": 0.9 - 0.5 * (n in often), "by": "words", "spans": [span] if n in often else [],
         "sentences": [{"start": 0, "end": 9, "score": 0.5, "supported": n not in often}]}
        for n in range(count)
    ]  # fmt: skip


def model(often, references=None, count=200):
    beside = [] if references is None else marked(count, set(references))
    return Predictions(faithfulness=marked(count, set(often)), reference_faithfulness=beside)


def test_conditions_are_compared_on_the_answers_that_have_sources_under_both():
    """Only 20 of 30 items have a context, and for two of these no passage fits."""
    graded, references = marked(30, set(range(0, 30, 2))), marked(30, {0})
    measured = Predictions(
        answer=[{"id": str(n), "reference": "Yes.", "prediction": "Yes."} for n in range(30)],
        retrieved_answer=[{"id": str(n), "reference": "Yes.", "prediction": "Yes."} for n in range(30)],
        faithfulness=graded[:20],
        reference_faithfulness=references[:20],
        retrieved_faithfulness=graded[2:],
        retrieved_reference_faithfulness=references[2:],
    )
    found = conditions({"tuned": measured}, 200, 1, {})["tuned"]["retrieved"]
    row = found["comparison"]["faithfulness"]
    assert (row["items"], row["delta"]) == (18, 0)
    assert row["references"]["figure"] == pytest.approx(0.9)
    assert found["comparison"]["rougeL"]["items"] == 30


def test_references_are_graded_by_the_same_sources(tmp_path):
    rows = [{"id": each, "reference": ANSWERS["b"], "prediction": ANSWERS["a"]} for each in "abe"]
    write_jsonl(tmp_path / "base-answer.jsonl", rows)
    grade(tmp_path, "base", EXAMPLES, EvaluateSpec(similarity=False))
    predictions = read(tmp_path, "base")
    assert [row["id"] for row in predictions.reference_faithfulness] == ["a", "b"]
    assert summarize(predictions)["contradictions"] == 0
    assert summarize_references(predictions)["contradictions"] == 100


@pytest.mark.parametrize(
    ("base", "tuned", "references", "better"),
    [
        (2, 12, 9, None),  # more than the base, but no more than in true answers
        (2, 24, 4, False),
        (80, 14, 18, True),  # fewer than in true answers is no further gain, but the base had more
        (14, 2, 10, None),  # fewer marks, but the base had no more than true answers have
    ],
)
def test_a_change_is_claimed_only_beyond_the_references(base, tuned, references, better):
    true = range(150, 150 + references)
    row = compare(model(range(base), true), model(range(tuned), true), 1000, 17)["contradictions"]
    assert row["better"] is better
    assert row["difference"] is (tuned < base)
    assert row["references"]["figure"] == pytest.approx(references / 2)
    assert row["references"]["of"] == ("tuned" if tuned > base else "base")
    assert bool(row["p_holm"] < 0.05) is (better is not None)


def test_what_is_not_claimed_is_said():
    true = range(150, 159)
    within = compare(model(range(2), true), model(range(12), true), 1000, 17)
    assert any("Contradicting sentences: no change is claimed" in each and "4.5" in each for each in caveats(within))
    ungraded = compare(model(range(2)), model(range(24)), 1000, 17)
    assert ungraded["contradictions"]["better"] is None
    assert any("meditune report" in each and "Contradicting sentences" in each for each in caveats(ungraded))
    one_side = compare(model(range(2)), model(range(24), range(150, 154)), 1000, 17)
    assert one_side["contradictions"]["better"] is False


def test_grades_by_different_judges_are_not_compared():
    true = range(150, 154)
    base, tuned = model(range(2), true), model(range(60), true)
    for row in tuned.faithfulness:
        row["by"] = "runs/evidence"
        for sentence in row["sentences"]:
            sentence["contradicting"] = False
    facts = [{"id": str(n), "statements": [{"kind": "must", "verdict": ("no", "yes")[n > 20]}]} for n in range(60)]
    base, tuned = (
        Predictions(
            faithfulness=each.faithfulness, reference_faithfulness=each.reference_faithfulness,
            facts=[row | {"by": by} for row in facts[:: 1 if by == "one" else -1]],
        )
        for each, by in ((base, "one"), (tuned, "other"))
    )  # fmt: skip
    rows = compare(base, tuned, 500, 17)
    for name in ("faithfulness", "unsupported_sentences", "contradictions", "facts_kept"):
        assert (rows[name]["better"], rows[name].get("difference"), rows[name]["p"]) == (None, None, 1.0), name
    assert rows["facts_kept"]["other_judges"] == ["one", "other"]
    assert "other_judges" not in rows["unsupported_numbers"], "the detector always checks numbers and names"
    (first, second) = (each for each in caveats(rows) if "the same judge" in each)
    assert (
        "Contradicting sentences, because the lexical detector graded the first model's answers, and runs/ev" in first
    )
    assert "Facts kept" in second
    (named, *_) = check(Policy(not_worse=["contradictions"]), rows, {})
    assert (named.passed, named.why) == (
        False,
        "not comparable: graded by different judges, lexical detector and runs/evidence",
    )
    assert "contradictions" not in {each.metric for each in check(Policy(not_worse="all"), rows, {})}
    same = compare(tuned, Predictions(faithfulness=tuned.faithfulness), 500, 17)
    assert "other_judges" not in same["contradictions"]


def test_a_judge_is_the_same_however_its_folder_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/evidence").mkdir(parents=True)

    def graded(by):
        return Predictions(faithfulness=[row | {"by": by} for row in marked(200, set(range(2)))])

    for other in (f"{tmp_path}/runs/evidence", "runs/evidence/"):
        assert "other_judges" not in compare(graded("runs/evidence"), graded(other), 200, 17)["faithfulness"]
    rows = compare(graded("words"), graded("hhem:owner/model"), 200, 17)
    assert "other_judges" in rows["faithfulness"]
    assert "other_judges" not in rows["contradictions"], "the detector decides them if a judge can't"


def test_a_report_of_an_older_run_needs_no_judge_for_the_facts(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MEDITUNE_OFFLINE", "1")  # the hub would be asked several times
    spec = {"faithfulness_model": "owner/judge"}
    graded = [{"id": each, "score": 1.0, "by": "owner/judge", "sentences": [], "spans": []} for each in "abd"]
    write_jsonl(tmp_path / "base-faithfulness.jsonl", graded)
    write_jsonl(tmp_path / "base-reference_faithfulness.jsonl", graded)
    assert graded_plain(tmp_path, **spec).facts == []
    assert "Which facts are kept is not measured: " in capsys.readouterr().err


def test_a_gate_warns_of_a_change_within_the_references():
    true = range(150, 159)
    rows = compare(model(range(2), true), model(range(12), true), 1000, 17)
    checks = check(Policy(not_worse=["contradictions"]), rows, {})
    assert [each.passed for each in checks] == [False]


def test_the_terminal_shows_the_references_beside_both_models(capsys):
    true = range(150, 159)
    sides = {"base": model(range(2), true), "tuned": model(range(12), true)}
    comparison = compare(sides["base"], sides["tuned"], 1000, 17)
    figures = {name: summarize(each) for name, each in sides.items()}
    print_comparison(figures | {"comparison": comparison})
    print_worse(figures | {"comparison": comparison, "worse": got_worse(comparison)})
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if line.startswith("Contradicting"))
    assert line.split()[2:6] == ["200", "1.0", "6.0", "4.5"]
    assert "no significant change" in line
    assert "not significantly worse than the references" in said
    assert "SIGNIFICANTLY WORSE" not in said


def test_the_report_shows_the_references_and_claims_nothing_within_them(tmp_path):
    true = range(150, 159)
    sides = {"base": model(range(2), true), "tuned": model(range(12), true)}
    rows = compare(sides["base"], sides["tuned"], 1000, 17)
    figures = {name: {"contradictions": summarize(each)["contradictions"]} for name, each in sides.items()}
    folder = finished_run(
        tmp_path, **figures, comparison={"contradictions": rows["contradictions"]}, worse=["contradictions"]
    )
    page = shown(folder)
    assert "Reference answers: 4.5 (" in page
    assert "not significantly worse than the reference answers" in page
    assert ": significantly worse." not in page


def test_a_subgroup_is_flagged_only_beyond_its_references():
    examples = [example(str(n)).model_copy(update={"source": "one" if n < 60 else "other"}) for n in range(200)]
    bad = model(range(30), range(2))
    alike = model(range(30), range(28))

    def flags(predictions):
        rows = subgroups(examples, model(range(1)), predictions, 17)["metrics"]["contradictions"]
        return next(row["flags"] for row in rows if row["group"] == "one")

    assert flags(bad) == ["below the others", "got worse"]
    assert flags(alike) == []


def test_agreement_is_that_of_sentences_with_samples():
    answer = "Aspirin lowers fever. Bananas cure colds."
    assert agreement(answer, [answer, answer]) == pytest.approx(1)
    half = agreement(answer, ["Aspirin lowers fever."])
    assert half == pytest.approx(0.5)
    assert agreement(answer, ["Aspirin lowers fever.", answer]) == pytest.approx(0.75)
    assert agreement(answer, ["Nobody knew."]) == 0
    assert agreement("", [answer]) is None
    assert agreement(answer, ["", " "]) is None


def test_self_consistency_is_measured_where_there_are_samples():
    answers = [{"id": name, "reference": "x", "prediction": "Aspirin lowers fever."} for name in "ab"]
    samples = [{"id": "a", "predictions": ["Aspirin lowers fever.", "Bananas cure colds."]}]
    assert summarize(Predictions(answer=answers, samples=samples))["self_consistency"] == pytest.approx(0.5)
    assert "self_consistency" not in summarize(Predictions(answer=answers))


def test_the_report_marks_what_is_not_borne_out(tmp_path):
    folder = finished_run(tmp_path)
    span = {"start": 0, "end": 4, "kind": "number", "why": "No source has <9>.", "source": "It was 8 & more."}
    for model in ("base", "tuned"):
        rows = [
            {"id": f"invented:{n:02}", "score": n / 20, "by": "words", "spans": [span] if n < 9 else [],
             "sentences": [{"start": 0, "end": 9, "score": 0.5, "supported": True}]}
            for n in range(20)
        ]  # fmt: skip
        write_jsonl(folder / "predictions" / f"{model}-faithfulness.jsonl", rows)
        write_jsonl(folder / "predictions" / f"{model}-reference_faithfulness.jsonl", rows[8:])
    page = render(folder).read_text("utf-8")
    section = page[page.index('id="unsupported"') :]
    section = section[: section.index("</section>")]
    assert section.count("<article") == 6
    counted = re.findall(r'">(\d+|Reference answers)</t[hd]>', section)
    assert counted[:4] == ["Reference answers", "9", "9", "1"]
    assert section.index("Question number 0?") < section.index("Question number 1?")
    assert '<mark class="span number">' in section
    assert "No source has &lt;9&gt;." in section
    assert "It was 8 &amp; more." in section
    assert "by a detector" in section
    for model, judges in (("tuned", "by runs/b (tuned model) and"), ("base", "by runs/a (base model), runs/b (tuned")):
        path = folder / "predictions" / f"{model}-faithfulness.jsonl"
        write_jsonl(path, [row | {"by": "runs/a" if model == "base" else "runs/b"} for row in rows])
        assert judges in render(folder).read_text("utf-8")


def test_a_report_without_graded_answers_has_no_such_section(tmp_path):
    folder = finished_run(tmp_path)
    write_json(folder / "report.json", read_json(folder / "report.json"))
    assert 'id="unsupported"' not in render(folder).read_text("utf-8")


ROWS = [
    {"id": "same", "reference": "The drug helps.", "prediction": "The drug helps."},
    {"id": "second", "reference": "No.", "references": ["No.", "Pain fell."], "prediction": "Pain fell."},
    {"id": "empty", "reference": "The drug helps.", "prediction": " "},
    {"id": "other", "reference": "The drug helps.", "prediction": "0123 xyz 9"},
]


def reading(*tokens):
    vectors = np.array(tokens, dtype=np.float32).reshape(-1, 2)
    return TokenVectors(np.array([1, 0], dtype=np.float32), vectors)


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
    figures = summarize(Predictions(similarity=list(found.values())))
    assert figures["similarity"] == pytest.approx(np.mean([row["similarity"] for row in found.values()]))
    assert figures.keys() == {"similarity", "token_similarity"}


def test_where_the_model_cant_be_had_it_is_said_once_and_the_figures_are_absent(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MEDITUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MEDITUNE_OFFLINE", "1")
    for name in ("base", "tuned"):
        write_jsonl(tmp_path / f"{name}-answer.jsonl", ROWS)
        grade(tmp_path, name, [], EvaluateSpec())
        assert "similarity" not in summarize(read(tmp_path, name))
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


# Plain versions of a source text


def graded_plain(folder, **spec):
    """Graded answers: "a" and "d" in plain style with a source, "b" in expert style, "e" plain without a source."""
    plain = {each.id: each.model_copy(update={"meta": {STYLE: "plain"}}) for each in EXAMPLES}
    examples = [plain[name] if name != "b" else EXAMPLES[1] for name in "abde"]
    stated = "Headaches rose. Aspirin didn't lower blood pressure."
    rows = [{"id": each.id, "reference": stated, "prediction": ANSWERS[each.id]} for each in examples]
    write_jsonl(folder / "base-answer.jsonl", rows)
    grade(folder, "base", examples, EvaluateSpec(similarity=False, **spec))
    return read(folder, "base")


def test_only_plain_answers_with_a_source_are_measured_as_plain_versions(tmp_path):
    predictions = graded_plain(tmp_path)
    assert [row["id"] for row in predictions.sari] == ["a", "d"]
    assert predictions.facts == [], "the detector isn't a judge"
    figures = summarize(predictions)
    assert 0 < figures["sari"] < 100
    assert "facts_kept" not in figures
    assert compare(predictions, predictions, 200, 17)["sari"]["ci95"] == [0, 0]


def test_a_judge_looks_for_the_references_sentences_in_the_answer(tmp_path):
    for name, threshold, kept in (("lenient", 0.0, 50), ("strict", 1.1, 0)):
        judge_name = str(judge_folder(tmp_path / name, threshold))
        predictions = graded_plain(tmp_path / f"run-{name}", faithfulness_model=judge_name)
        answered, empty = predictions.facts
        assert [each["text"] for each in answered["statements"]] == [
            "Headaches rose.", "Aspirin didn't lower blood pressure.",
        ]  # fmt: skip
        assert {each["verdict"] for each in empty["statements"]} == {"maybe"}, "an empty answer contains nothing"
        assert summarize(predictions)["facts_kept"] == kept


@pytest.mark.parametrize(
    ("kind", "labels"),
    [("", ["entailment", "contradiction"]), ("minicheck:", ["0", "1"]), ("lettucedetect:", ["good", "bad"])],
)
def test_other_support_models_look_for_facts_but_only_some_tell_contradictions(tmp_path, kind, labels):
    made = judge(tmp_path / "model", labels, "Token" if kind == "lettucedetect:" else "Sequence")
    tiny.sure(tmp_path / "model", made, [0.0, 2.0] if kind == "minicheck:" else [2.0, 0.0])
    predictions = graded_plain(tmp_path / "run", faithfulness_model=f"{kind}{tmp_path / 'model'}")
    figures = summarize(predictions)
    assert figures["facts_kept"] == 50
    assert figures.get("facts_contradicted") == (0 if kind == "" else None)
