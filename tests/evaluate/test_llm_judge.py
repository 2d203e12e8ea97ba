"""Written answers to public tests: graded by a judge behind an API or a local one, and the judge beside physicians."""

import json

import pytest

from meditune.config.data_options import PromptFormat
from meditune.config.load_recipe import load_recipe
from meditune.config.training_options import ApiSpec
from meditune.errors import ModelError
from meditune.evaluate.metrics import summarize
from meditune.evaluate.predictions import Predictions
from meditune.evaluate.suites.llm_judge import (
    ApiJudge,
    Graded,
    Grading,
    LocalJudge,
    agreement,
    agreement_file,
    grade_suites,
    refuse_unusable_judge,
    suite_remarks,
    verdict_on,
)
from meditune.evidence.support_model import ClaimCorrection, ClaimVerdict
from meditune.files import write_jsonl
from meditune.http_client import Backoff
from meditune.models.api_client import ApiError, find_api_model
from meditune.prompts import save_format
from tests import tiny
from tests.commands import bench, jsonl, meditune, read_rows
from tests.hosted_api import KEY, serving


def k_qa(count=4):
    """Rows as in K-QA's `questions_w_answers.jsonl`."""
    return [
        {
            "Question": f"What helps with pain number {number}?",
            "Free_form_answer": f"Drug {number} helps. Rest helps, too.",
            "Must_have": [f"Drug {number} helps.", "Rest helps."],
            "Nice_to_have": ["Pain is common."],
            "Sources": ["https://example.org"],
        }
        for number in range(count)
    ]


def healthbench(count=2):
    """Rows as in HealthBench."""
    rubrics = [
        {"criterion": "Advises rest", "points": 6, "tags": []},
        {"criterion": "Is rude", "points": -4, "tags": []},
    ]
    return [
        {
            "prompt_id": f"p{number}",
            "prompt": [{"role": "user", "content": f"What helps with pain number {number}?"}],
            "rubrics": rubrics,
            "example_tags": ["theme:pain"],
        }
        for number in range(count)
    ]


def labels(folder):
    """Physicians' labels as K-QA publishes them: two entailed, one neutral, one contradicted."""
    words = ("Entailment", "Entailment", "Neutral", "Contradiction")
    lines = [f"{n},Why?,m,Rest helps {n}.,Claim {n},Must_have,{word},x,x,x" for n, word in enumerate(words)]
    head = ",Question,llm_x,answer,claim,category_x,majority_label,label_0,label_1,label_2"
    (folder / "NLI_medical_annotator.csv").write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr("meditune.models.api_client.BACKOFF", Backoff(attempts=3, first_wait=0.02))
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with bench(tmp_path) as made:
        for name, file, rows in (("k-qa", "questions_w_answers", k_qa()), ("healthbench", "x_oss_eval", healthbench())):
            (tmp_path / "data" / name).mkdir()
            jsonl(tmp_path / "data" / name / f"{file}.jsonl", rows)
        labels(tmp_path / "data" / "k-qa")
        yield made


def verdict_of(prompt, _):
    """Every rest is in the answer, every criterion about rudeness isn't met, and claim 1 gets no clear verdict."""
    if "Claim 1" in prompt:
        return "Perhaps"
    asked = prompt.rpartition("\n\n")[0]
    return "Yes." if "Rest" in asked.rpartition(": ")[2] or "Advises rest" in asked else "no"


def run(place, name, judge, suites="[k-qa]", **more):
    settings = {"evaluate__suites": suites, "evaluate__suite_judge": judge}
    return place.run(name, *place.settings(**settings, evaluate__choices=0, evaluate__answers=4, **more))


def test_an_api_grades_after_the_cost_was_approved_and_its_agreement_stands_beside_the_score(place):
    with serving(answer=verdict_of) as api:
        more = {"evaluate__suite_judge_api__url": api.url, "evaluate__suite_judge_api__key_variable": "JUDGE_KEY"}
        more |= {"evaluate__suite_judge_api__prices": "{input: 2}"}
        suites = "[k-qa, healthbench]"
        refused = run(place, "run", "api:strict-judge", suites, **more)
        # 4 questions with 3 statements and 2 with 2 criteria, for two models, and 4 labels.
        refused.refused(1, "36 questions to the judge of answers", "Cost: about", "--yes")
        assert api.chats == [], "nothing is sent before"
        settings = place.settings(
            evaluate__suites=suites, evaluate__suite_judge="api:strict-judge",
            evaluate__choices=0, evaluate__answers=4, **more,
        )  # fmt: skip
        place.run("run", "--yes", *settings).ok()
        asked = len(api.chats)
        place.run("run", "--yes", *settings).ok()
        assert len(api.chats) == asked, "what is graded isn't paid for twice"
    report = place.report("run")
    rows = read_rows(place.folder / "run" / "predictions" / "tuned-suite_k_qa_grades.jsonl")
    answers = read_rows(place.folder / "run" / "predictions" / "tuned-suite_k_qa.jsonl")
    written = [bool(row["prediction"].strip()) for row in answers]
    verdicts = [[each["verdict"] for each in row["statements"]] for row in rows]
    assert verdicts == [["no", "yes", "no"] if text else ["maybe"] * 3 for text in written]
    share = sum(written) / len(written)
    assert report["tuned"]["k_qa_comprehensiveness"] == pytest.approx(50 * share)
    assert report["tuned"]["k_qa_contradictions"] == pytest.approx(2 * share)
    assert report["comparison"]["k_qa_comprehensiveness"]["items"] == 4
    judge = report["suites"]["k-qa"]["judge"]
    assert judge["name"] == "api:strict-judge"
    # Of the labels yes, yes, maybe, no, the judge says no, none of the three, no, no.
    assert (judge["agreement"]["items"], judge["agreement"]["agree"], judge["agreement"]["unclear"]) == (4, 50, 1)
    (remark,) = (each for each in report["remarks"] if each.startswith("K-QA"))
    assert "agrees with the physicians on 50.0% of 4 labels" in remark
    assert any("HealthBench" in each and "unknown agreement" in each for each in report["remarks"])
    page = (place.folder / "run" / "report.html").read_text(encoding="utf-8")
    assert "agrees with physicians on 50.0% of 4 labels" in page
    prompts = [chat["messages"][-1]["content"] for chat in api.chats]
    assert any(
        "Question: What helps with pain number 0?" in prompt and "Criterion: Is rude" in prompt for prompt in prompts
    )


def test_verdicts_that_were_paid_for_survive_an_error_of_the_judge(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    statements = tuple({"text": text, "kind": "must"} for text in ("Rest helps.", "Drug 1 helps.", "Rest is good."))
    items = tuple(Graded(f"k-qa:{n}", "k-qa", f"Question: {n}?", "Rest helps.", statements) for n in range(2))
    grading = Grading(tmp_path / "grades.jsonl", items, "Judging")

    def then_broken(prompt, tuned):
        if len(api.chats) == 2:
            api.trouble("POST /chat/completions", status=400)
        return verdict_of(prompt, tuned)

    with serving(answer=then_broken) as api:
        model = find_api_model("api:judge", ApiSpec(url=api.url, key_variable="JUDGE_KEY", concurrency=1))
        with model.client("") as client, pytest.raises(ApiError, match="k-qa:0/2"):
            grade_suites([grading], ApiJudge(model, client))
        assert not grading.path.exists()
        with model.client("") as client:
            grade_suites([grading], ApiJudge(model, client))
        assert len(api.chats) == 6, "no statement is asked about twice"
    rows = read_rows(grading.path)
    assert [row["id"] for row in rows] == ["k-qa:0", "k-qa:1"]
    found = [{"kind": "must", "verdict": verdict} for verdict in ("yes", "no", "yes")]
    assert [row["statements"] for row in rows] == [found] * 2


def judge_folder(folder, threshold):
    """A judge that was never trained, which refutes nothing and calls what its threshold allows supported."""
    tiny.save(folder, "qwen2")
    save_format(PromptFormat(max_tokens=256, answer_tokens=32), folder)
    ClaimCorrection(bias={"refuted": -100.0}, threshold=threshold).save(folder)
    return folder


def test_a_local_judge_reads_the_answer_as_the_passage(place, tmp_path):
    for name, threshold, share in (("lenient", 0.0, 100), ("strict", 1.1, 0)):
        result = run(place, name, judge_folder(tmp_path / name, threshold)).ok()
        report = place.report(name)
        rows = read_rows(place.folder / name / "predictions" / "base-suite_k_qa.jsonl")
        written = sum(bool(row["prediction"].strip()) for row in rows) / len(rows)
        assert report["base"]["k_qa_comprehensiveness"] == pytest.approx(share * written)
        found = report["suites"]["k-qa"]["judge"]["agreement"]
        assert (found["items"], found["agree"]) == (4, 50), "half of the labels are entailed"
        # 4 questions with 3 statements for two models, and 4 labels.
        assert f"{name} grades 12 answers on this machine: up to 28 statements to decide." in result.err
    assert "needs --yes" not in result.err
    done = meditune("compare", place.folder / "lenient", place.folder / "strict")
    said = " ".join((done.out + done.err).split())
    for name in ("lenient", "strict"):
        assert f"{place.folder / name}: K-QA: the judge {tmp_path / name} agrees with the physicians on 50.0%" in said


def test_models_that_others_trained_grade_suites_and_random_ones_are_refused(tmp_path):
    folder = tmp_path / "mini"
    made = tiny.classifier(folder, ["0", "1"], ["Rest helps. Drug 1 helps."])
    items = (Graded("k-qa:0", "k-qa", "Question: 0?", "Rest helps.", ({"text": "Rest helps.", "kind": "must"},)),)
    tiny.sure(folder, made, [0.0, 2.0])
    recipe = load_recipe("quickstart", [f"evaluate.suite_judge=minicheck:{folder}", "evaluate.suites=[k-qa]"]).recipe
    refuse_unusable_judge(recipe)
    grade_suites([Grading(tmp_path / "grades.jsonl", items, "Judging")], LocalJudge(f"minicheck:{folder}"))
    (row,) = read_rows(tmp_path / "grades.jsonl")
    assert (row["statements"][0]["verdict"], row["refutes"]) == ("yes", False)
    figures = summarize(Predictions(suite_k_qa_grades=[row]))
    assert figures == {"k_qa_comprehensiveness": 100}, "contradictions, which the model can't tell, aren't measured"
    made.bert.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"evaluate.suite_judge minicheck:.*no weights for classifier") as refused:
        refuse_unusable_judge(recipe)
    assert "detector" not in str(refused.value)


def test_a_local_judge_s_verdict_is_no_if_contradiction_is_most_likely_whatever_the_threshold():
    chances = {(0.4, 0.3, 0.3): "yes", (0.3, 0.6, 0.1): "no", (0.1, 0.3, 0.6): "maybe", (0.3, 0.1, 0.6): "yes"}
    for (supported, refuted, unclear), expected in chances.items():
        assert verdict_on(ClaimVerdict(supported, refuted, unclear, ""), 0.2) == expected


def test_a_judge_that_can_t_be_used_is_told_before_training(place, tmp_path):
    refused = run(place, "run", tmp_path / "nowhere")
    refused.refused(4, "isn't the folder of an evidence judge's run", "meditune run evidence")
    assert not (place.folder / "run" / "predictions").exists()


def test_points_are_summed_as_in_healthbench():
    def row(id, *verdicts):
        points = (6, 4, -5)
        return {"id": id, "statements": [{"points": p, "verdict": v} for p, v in zip(points, verdicts, strict=True)]}

    rows = [row("a", "yes", "no", "no"), row("b", "yes", "yes", "yes"), row("c", "no", None, "yes")]
    found = summarize(Predictions(suite_healthbench_grades=rows))
    assert found["healthbench_score"] == pytest.approx(100 * (0.6 + 0.5 - 0.5) / 3)
    assert summarize(Predictions(suite_healthbench_grades=rows[2:]))["healthbench_score"] == 0, "never below 0"


def test_agreement_counts_whether_both_find_the_statement_in_the_answer(tmp_path):
    pairs = [("yes", "yes"), ("yes", "no"), ("maybe", "no"), ("no", "maybe"), ("no", None)]
    rows = [
        {"id": f"label-{n}", "by": "j", "statements": [{"label": label, "verdict": verdict}]}
        for n, (label, verdict) in enumerate(pairs)
    ]
    write_jsonl(agreement_file(tmp_path, "k-qa"), rows)
    found = agreement(tmp_path, "k-qa")
    assert (found["items"], found["agree"], found["unclear"]) == (5, 80, 1)
    chance = 0.4 * 0.2 + 0.6 * 0.8
    assert found["kappa"] == pytest.approx((0.8 - chance) / (1 - chance))
    assert agreement(tmp_path, "healthbench") is None
    facts = {"title": "K-QA", "judge": {"name": "j", "agreement": found, "unclear": {"tuned": 0}}}
    (remark,) = suite_remarks({"k-qa": facts})
    assert "80.0% of 5 labels" in remark
    (skipped,) = suite_remarks({"medqa": {"title": "MedQA", "measured": False}})
    assert skipped.startswith("MedQA (evaluate.suites: medqa) was not measured: it needs the likelihood of given text")
    assert "count as not met: 1." in remark
    assert json.dumps(found)


def test_without_physicians_labels_the_remark_says_why():
    judged = {"title": "HealthBench", "judge": {"name": "judge", "agreement": None, "unclear": {"base": 0}}}
    (here,) = suite_remarks({"healthbench": judged | {"from": "."}})
    assert "because *meta_eval*.jsonl isn't among the suite's files" in here
    (hub,) = suite_remarks({"healthbench": judged | {"from": "someone/healthbench"}})
    assert "labels are read only from a folder with *meta_eval*.jsonl, not from someone/healthbench" in hub
