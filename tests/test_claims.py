"""From a file of claims to a judge: metrics by source, the stored correction, and answers judged by it."""

import math
import random
import re
import shutil
import sys
import time
from dataclasses import replace

import pytest

from meditune.data.example import LABELS
from meditune.engines.evidence_judge import least_supported, load_judge, load_support_model
from meditune.errors import ModelError
from meditune.evaluate.metrics.decision import fit_correction, fit_threshold, known_to_be_true
from meditune.evidence.support_model import ClaimVerdict
from meditune.export import verify
from meditune.export.verify import ClaimDeviation
from meditune.files import read_json
from meditune.models.nli import check
from meditune.retrieve.citations import Citer
from meditune.retrieve.context_packing import PackedPassage
from meditune.retrieve.documents.document import IndexedPassage
from meditune.retrieve.hybrid_search import Hit
from tests.commands import bench, jsonl, meditune, read_rows, rows
from tests.waiting import output_of

WORDS = {"supported": "fell", "refuted": "rose", "not_enough_information": "was not measured"}


def claims(count: int, labels=LABELS, seed: int = 0) -> list[dict[str, str]]:
    """Claims that pain fell, each with evidence that says what happened."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        label, group = labels[number % len(labels)], draw.randrange(10_000)
        evidence = f"We asked {group} adults in group {seed}-{number}. Pain {WORDS[label]} in this group."
        made.append({"claim": f"In group {seed}-{number}, pain fell.", "evidence": evidence, "label": label})
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on two sources of claims, one without the third label, and a dev source with a claim that is too long."""
    with bench(tmp_path_factory.mktemp("claims"), "qwen2") as place:
        three = jsonl(place.folder / "three.jsonl", claims(60))
        two = jsonl(place.folder / "two.jsonl", claims(40, ("supported", "refuted"), seed=1))
        true = claims(6, ("supported",), seed=2)
        true[0]["claim"] += " As before." * 300
        known = jsonl(place.folder / "known.jsonl", true)
        sources = f"[{{name: own/three, path: '{three}'}}, {{name: own/two, path: '{two}'}}, "
        sources += f"{{name: own/known, path: '{known}', split: dev}}]"
        changes = {"data__sources": sources, "data__sources__0__limit": None, "train__tasks": "[claim]"}
        extra = {"train__replay__share": 0, "train__decision_share": None, "train__class_balance": 0}
        extra |= {"train__end_weight": 1, "data__split": "group", "data__test_share": 0.3, "data__dev_share": 0.3}
        extra |= {"train__learning_rate": 0.02, "train__epochs": 6, "model__top_layers": None}
        result = place.run("judge", *place.settings(**changes, **extra)).ok()
        assert " dev claims are longer than prompt.max_tokens" in result.err
        yield place, place.folder / "judge", place.report("judge")


def test_a_run_measures_claims_by_source_with_the_labels_of_each(run):
    _, folder, report = run
    stored = read_rows(folder / "predictions" / "tuned-claim.jsonl")
    assert {(row["source"], len(row["logits"])) for row in stored} == {("own/three", 3), ("own/two", 2)}
    assert all(row["prediction"] == max(row["logits"], key=row["logits"].get) for row in stored)
    right = sum(row["prediction"] == row["reference"] for row in stored)
    assert report["tuned"]["claim_accuracy"] == pytest.approx(100 * right / len(stored))
    assert set(report["comparison"]) >= {"claim_accuracy", "claim_macro_f1", "claim_auroc", "claim_ece"}
    by_source = report["claims"]["tuned"]
    assert sum(each["claims"] for each in by_source.values()) == len(stored) == report["items"]["claim"]
    chances = {row["id"]: math.exp(row["logits"]["supported"]) for row in stored}
    chances = {row["id"]: chances[row["id"]] / sum(map(math.exp, row["logits"].values())) for row in stored}
    good = [chances[row["id"]] for row in stored if row["reference"] == "supported"]
    other = [chances[row["id"]] for row in stored if row["reference"] != "supported"]
    wins = sum((a > b) + (a == b) / 2 for a in good for b in other)
    assert report["tuned"]["claim_auroc"] == pytest.approx(wins / (len(good) * len(other)))
    page = (folder / "report.html").read_text(encoding="utf-8")
    section = page[page.index('id="claims"') :].partition("</section>")[0]
    for source, each in by_source.items():
        (row,) = re.findall(rf"<tr[^>]*><th[^>]*>{source}</th>(.*?)</tr>", section, re.DOTALL)
        assert f"→ {each['claim_auroc']:.3f}" in row
    # The correction that was fitted to dev claims is tested on these claims.
    correction, tested = load_judge(str(folder)).correction, report["claim_correction"]
    shares = [correction.probabilities(row["logits"]) for row in stored]
    known = [each for each, row in zip(shares, stored, strict=True) if row["reference"] == "supported"]
    below = 100 * sum(each["supported"] < correction.threshold for each in known) / len(known)
    assert (tested["threshold"], tested["supported"]) == (correction.threshold, len(known))
    assert tested["false_alarms"] == pytest.approx(below)
    bins = {}
    for each, row in zip(shares, stored, strict=True):
        sure, right = max(each.values()), each[row["reference"]] == max(each.values())
        bins.setdefault(min(9, int(10 * sure)), []).append(sure - right)
    assert tested["ece"] == pytest.approx(sum(abs(sum(each)) for each in bins.values()) / len(stored))
    assert f"calibration error of the tuned model is {tested['ece']:.3f}" in section
    assert f"{tested['threshold']:.3f}: {below:.1f}% of the {len(known)} supported claims" in section


def test_the_run_is_a_judge_whose_correction_was_fitted_on_dev(run):
    _, folder, _ = run
    assert (folder / "model" / "claims.json").is_file()
    judge = load_judge(str(folder))
    assert judge.correction.temperature > 0
    evidence = "Pain fell in this group."
    (verdict,) = judge.supports(["Pain fell."], [evidence])
    assert verdict.supported + verdict.refuted + verdict.unclear == pytest.approx(1)
    assert verdict.sentence == evidence
    check(str(folder))
    assert load_support_model(str(folder)).threshold == judge.threshold


def dev_row(number: int, source: str, reference: str, margin: float) -> dict:
    logits = {"supported": margin, "refuted": 0.0, "not_enough_information": -9.0}
    return {"id": f"{source}:{number}", "source": source, "reference": reference, "logits": logits}


def test_at_most_one_in_twenty_of_the_claims_known_to_be_true_falls_below_the_threshold():
    mixed = [dev_row(n, "mixed", ("supported", "refuted")[n % 2], (-1) ** n * (0.5 + n / 50)) for n in range(60)]
    true = [dev_row(n, "true", "supported", n / 20 - 2.5) for n in range(100)]
    assert known_to_be_true([*mixed, *true]) == {row["id"] for row in true}
    assert known_to_be_true(mixed) == {row["id"] for row in mixed if row["reference"] == "supported"}
    support = [n / 200 for n in range(100)]
    assert sum(each < fit_threshold(support) for each in support) == 5
    assert fit_threshold([0.9] * 20) == 0.5
    # What is always true says nothing about how certain the judge may be.
    fitted, alone = fit_correction([*mixed, *true]), fit_correction(mixed)
    assert (fitted.temperature, fitted.bias) == (alone.temperature, alone.bias)
    assert fit_correction(true).temperature == 1.0


def test_the_threshold_is_fitted_to_the_sentences_of_true_dev_claims_that_fit_into_the_prompt(run):
    place, folder, _ = run
    judge = load_judge(str(folder))
    known = read_rows(place.folder / "known.jsonl")[1:]
    found = least_supported(judge, [(row["claim"], (row["evidence"],)) for row in known], "Known")
    assert judge.threshold == pytest.approx(min(0.5, *(each.score for each in found)), abs=1e-4)


def test_a_judge_grades_the_answers_of_another_run(run):
    place, folder, _ = run
    place.run("graded", **{"evaluate__faithfulness_model": folder, "evaluate__answers": 8}).ok()
    rows = read_rows(place.folder / "graded" / "predictions" / "tuned-faithfulness.jsonl")
    assert {row["by"] for row in rows} == {str(folder)}
    assert all(0 <= sentence["score"] <= 1 for row in rows for sentence in row["sentences"])
    assert {type(sentence["contradicting"]) for row in rows for sentence in row["sentences"]} == {bool}


def cross_entropy(folder, model, kind):
    """The mean over stored predictions, in nats: of a label, or of an answer's token."""
    rows = read_rows(folder / "predictions" / f"{model}-{kind}.jsonl")
    if kind == "likelihood":
        return sum(row["nll"] for row in rows) / sum(row["tokens"] for row in rows)
    losses = [math.log(sum(map(math.exp, row["logits"].values()))) - row["logits"][row["reference"]] for row in rows]
    return sum(losses) / len(losses)


def test_one_run_learns_decisions_answers_and_claims(run):
    place, _, _ = run
    questions = [row | {"decision": ("yes", "yes", "no")[row["id"] % 3]} for row in rows(60)]
    files = {"claims": claims(60, seed=3), "questions": questions}
    paths = {name: jsonl(place.folder / f"{name}.jsonl", each) for name, each in files.items()}
    sources = ", ".join(f"{{name: own/{name}, path: '{path}'}}" for name, path in paths.items())
    changes = {"data__sources": f"[{sources}]", "data__sources__0__limit": None, "data__test_share": 0.3}
    changes |= {"train__tasks": "[decision, answer, claim]", "train__claim_share": 0.4, "train__epochs": 6}
    changes |= {"model__top_layers": None, "evaluate__answers": 6}
    place.run("three-tasks", *place.settings(**changes)).ok()
    folder = place.folder / "three-tasks"
    for kind in ("decision", "likelihood", "claim"):
        before, after = (cross_entropy(folder, model, kind) for model in ("base", "tuned"))
        assert after < 0.95 * before, kind
    assert len(read_rows(folder / "predictions" / "tuned-answer.jsonl")) == 6
    assert load_judge(str(folder)).correction.temperature > 0
    assert {"accuracy", "perplexity", "rougeL", "claim_accuracy"} <= place.report("three-tasks")["comparison"].keys()


def test_a_file_of_claims_without_a_task_for_them_says_how_to_train_on_it(run):
    place, _, _ = run
    path = jsonl(place.folder / "three-again.jsonl", claims(30))
    place.run("none", *place.own(path, train__tasks="[decision]")).refused(3, "train.tasks=[claim]")
    path = jsonl(place.folder / "unknown.jsonl", [row | {"label": "perhaps"} for row in claims(9)])
    refused = meditune("data", "prepare", "quickstart", "-o", place.folder / "unknown", *place.own(path))
    refused.refused(3, "no usable rows", "rejected.jsonl")
    assert "unknown label" in (place.folder / "unknown" / "rejected.jsonl").read_text(encoding="utf-8")


def packed(text: str) -> PackedPassage:
    return PackedPassage(Hit(IndexedPassage("own:1#0", "own:1", "own", text), 1.0, 1.0, 1.0), "Pain", text)


def test_citations_follow_the_judge_but_not_against_names_nor_beyond_its_time(run):
    _, folder, _ = run
    judge = load_judge(str(folder))
    passages = [packed("Pain fell in group 7 with Zolpimetin."), packed("Sleep was not measured in group 8.")]
    statement = "In group 7, pain fell."
    assert Citer(passages, judge, threshold=1.1).judge(statement).places == ()
    found = Citer(passages, judge, threshold=0.0).judge(statement)
    (verdict,) = judge.supports([statement], [passages[0].shown])
    assert 0 in found.places
    assert found.score >= verdict.supported
    assert Citer(passages, judge, threshold=0.0).judge("In group 7, pain fell with Metazolamine.").places == ()
    assert Citer(passages, judge, seconds=0).judge(statement) == Citer(passages).judge(statement)


class SlowOrBroken:
    """A judge that takes its time, or fails, for every passage."""

    name = "slow or broken"
    citing_threshold = 0.65

    def __init__(self, seconds: float, error: Exception | None = None, supported: float = 0.9) -> None:
        self.seconds, self.error, self.supported, self.asked = seconds, error, supported, 0

    def supports(self, statements, _, wait_s, __):
        self.asked += 1
        time.sleep(min(self.seconds, wait_s))
        if self.error:
            raise self.error
        return [ClaimVerdict(self.supported, 0.0, 1 - self.supported, "") for _ in statements]


@pytest.mark.parametrize(
    ("judge", "reasons", "asked"),
    [
        (SlowOrBroken(0.3, supported=0.1), {"time": 3}, 2),  # the time ends between the passages of the first sentence
        (SlowOrBroken(0.3), {"time": 2}, 2),  # the passage that was read in time supports the first sentence
        (SlowOrBroken(0.3, ModelError("broken")), {"failure": 2, "time": 1}, 2),
        (SlowOrBroken(0.0, TimeoutError()), {"time": 3}, 3),
    ],
)
def test_a_slow_or_failing_judge_costs_no_more_than_its_time_and_the_detector_goes_on(judge, reasons, asked):
    passages = [packed(f"Pain fell in group 7, said report {text}.") for text in ("A", "B", "C")]
    citer, plain = Citer(passages, judge, seconds=0.5), Citer(passages)
    started = time.monotonic()
    found = [citer.judge(f"{word}, pain fell in group 7.") for word in ("Then", "Later", "Finally")]
    assert time.monotonic() - started < 1.0
    assert citer.unjudged == reasons
    assert judge.asked == asked
    assert found[-1] == plain.judge("Finally, pain fell in group 7.")


def test_a_passage_that_the_judge_rejected_in_time_is_not_cited_when_the_time_ends():
    passages = [packed("Pain fell in group 7, said report A."), packed("Pain fell in group 7, said report B.")]
    assert Citer(passages).judge("Pain fell in group 7.").places == (0, 1)
    found = Citer(passages, SlowOrBroken(0.3, supported=0.02), seconds=0.2).judge("Pain fell in group 7.")
    assert found.places == (1,)


def test_an_exported_judge_says_the_same_without_torch_and_reads_shared_passages_once(run, tmp_path):
    pytest.importorskip("openvino_genai")
    _, folder, _ = run
    copy = tmp_path / "judge"
    shutil.copytree(folder, copy)
    expected = load_judge(str(copy))
    result = meditune("export", copy, "--to", "openvino").ok()
    # The export is checked on claims, which the judge can do, and not on written answers.
    assert "% of the verdicts the same; mean difference in the probability of support " in result.out
    assert "perplexity" not in result.out
    drift = read_json(copy / "export" / "openvino" / "export.json")["drift"]["claims"]
    assert 0.9 * verify.COUNT < drift["items"] <= verify.COUNT, "claims that don't fit are left out"
    assert drift["agreement"] >= 0.9
    assert 0 < drift["difference"] <= drift["largest"] < 0.2
    exported = load_judge(str(copy))
    assert exported.name == "judge (openvino int8)"
    assert exported.threshold == expected.threshold
    passages = ["Pain fell by 30 percent in the group with the drug.", "Sleep was not measured in this study."]
    statements = ["The drug helps with pain.", "Sleep was measured.", "The drug helps with sleep."]
    first = exported.supports(statements, passages)
    for one, other in zip(first, expected.supports(statements, passages), strict=True):
        assert one.supported == pytest.approx(other.supported, abs=0.1)
    # What a server does with `--judge` loads no torch.
    program = (
        "import math, sys; from meditune.engines.evidence_judge import open_judge; "
        f"judge = open_judge({str(copy)!r}); judge.supports(['Pain fell.'], {passages!r}, math.inf, 'Did pain fall?'); "
        "sys.exit(f'loaded: {found}' if (found := {'torch', 'transformers'} & set(sys.modules)) else 0)"
    )
    output_of(sys.executable, "-c", program)
    # The remembered passages change nothing: each statement alone, in another order, with other passages between.
    for place in (2, 0, 1):
        exported.supports(["Exercise helps."], passages[::-1])
        (alone,) = exported.supports(statements[place : place + 1], passages)
        assert alone.supported == pytest.approx(first[place].supported, abs=5e-3)
    meditune("export", copy, "--to", "openvino", "--quantization", "int4").ok()
    coarse = load_judge(str(copy / "export" / "openvino-int4"))
    assert coarse.name == "judge (openvino int4)"
    for one, other in zip(coarse.supports(statements, passages), first, strict=True):
        assert one.supported == pytest.approx(other.supported, abs=0.3)
        assert one.supported != other.supported
    meditune("export", copy, "--to", "openvino", "--quantization", "Q4_K_M").refused(4, "have int8 or int4 weights")


def test_an_exported_judge_may_deviate_only_so_far_however_coarse_its_weights():
    fine = ClaimDeviation(items=50, agreement=0.92, difference=0.04, largest=0.4)
    assert fine.problems() == []
    (problem,) = replace(fine, agreement=0.86).problems()
    assert "only 86% of the verdicts on claims are the same (at least 90% required)" in problem
    assert replace(fine, agreement=0.86, difference=0.08).problems(2.0) == []
    assert len(replace(fine, agreement=0.7, difference=0.2).problems(5.0)) == 2
    assert replace(fine, difference=math.nan).problems(5.0)
