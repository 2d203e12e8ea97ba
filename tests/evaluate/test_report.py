"""The report as its readers meet it: what it says, and that it opens anywhere and runs nothing.

The scale of school grades in the report.
"""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from meditune.errors import DataError
from meditune.evaluate.metrics import METRICS
from meditune.evaluate.report import render
from meditune.evaluate.report.run_sections import reading
from meditune.files import read_json, write_json, write_jsonl

REFERENCE = "aspirin lowers the risk of a second heart attack in most adults"
WORSE = {"delta": -6.2, "ci95": [-9.0, -3.4], "p": 0.0004, "better": False, "test": "McNemar, exact"}
NOISE = {"delta": -0.4, "ci95": [-2.1, 1.3], "p": 0.61, "better": None, "test": "paired bootstrap"}
BETTER = {"delta": -7.5, "ci95": [-8.1, -6.9], "p": 0.0002, "better": True, "test": "paired bootstrap"}


def finished_run(folder: Path, count: int = 20, **changes: Any) -> Path:
    """A run's folder with invented figures; `changes` replace keys of report.json."""
    decision = {"confusion": [[9, 1, 0], [4, 3, 0], [2, 1, 0]], "recall": {"yes": 90.0, "no": 42.9, "maybe": None}}
    report: dict[str, Any] = {
        "meditune": "0.1.0", "recipe": "quickstart", "seed": 17, "base_model": "smollm2-135m", "strategy": "lora",
        "data": {"train": 40, "dev": 5, "test": count, "test_set": "invented", "sha256": "ab" * 32, "synthetic": False},
        "base": {"accuracy": 61.2, "macro_f1": 30.4, "perplexity": 23.94},
        "tuned": {"accuracy": 60.8, "macro_f1": 30.0, "perplexity": 16.44},
        "comparison": {"accuracy": NOISE, "macro_f1": NOISE, "perplexity": BETTER},
        "worse": ["accuracy", "macro_f1"],
        "baselines": [
            {"name": "Always yes", "accuracy": 55.2, "macro_f1": 23.7, "source": "computed"},
            {"name": "Human", "accuracy": 78.0, "macro_f1": 72.2, "source": "Jin et al. 2019, arXiv:1909.06146"},
        ],
        "decision": {"base": decision, "tuned": decision}, "items": {"decision": count, "answer": count},
        "training": {"steps": 3, "epochs": 1.0, "seconds": 75.0, "shortened": 7, "cut": 0, "dropped": 2},
        "stages": {"train": 75.0}, "versions": {"torch": "2.9.0"}, "machine": {"cores": 2, "memory_gb": 24},
        "command": "meditune run quickstart --output runs/quickstart",
    }  # fmt: skip
    write_json(folder / "report.json", report | changes)
    (folder / "recipe.yaml").write_text("name: quickstart\nprompt:\n  max_tokens: 64\n  answer_tokens: 16\n")
    write_json(
        folder / "data" / "quality.json",
        {
            "sources": {"pubmedqa": {"read": 70, "licence": "MIT", "rejected": {"no question": 3}}},
            "dropped": {"exact duplicate": 2, "in the test set already": 0},
            "splits": {"train": {"examples": 40, "decisions": {"yes": 30, "no": 10}}},
            "lengths": {"question": {"words": [{"from": 3, "to": 6, "count": 4}, {"from": 6, "to": 9, "count": 2}]}},
        },
    )
    write_json(folder / "tokens.json", {"train": {"prompt": [20, 31, 48, 48], "target": [5, 9, 12, 16]}})
    step = {"epoch": 1.0, "grad_norm": 1.0, "tokens": 90, "supervised_tokens": 30, "seconds": 25.0}
    write_jsonl(
        folder / "training.jsonl", (step | {"step": n, "loss": 3 / n, "learning_rate": 5e-5 / n} for n in (1, 2, 3))
    )
    write_jsonl(folder / "data" / "test.jsonl", (_example(n) for n in range(count)))
    for model in ("base", "tuned"):
        write_jsonl(folder / "predictions" / f"{model}-decision.jsonl", (_decided(model, n) for n in range(count)))
        write_jsonl(folder / "predictions" / f"{model}-answer.jsonl", (_answered(model, n) for n in range(count)))
    return folder


def _example(n: int) -> dict[str, Any]:
    return {
        "id": f"invented:{n:02}", "source": "invented", "question": f"Question number {n}?", "group": str(n),
        "context": [{"label": "RESULTS", "text": f"What was found in study {n}."}], "answer": REFERENCE,
        "decision": "yes", "meta": {"url": f"https://example.org/{n}"},
    }  # fmt: skip


def _decided(model: str, n: int) -> dict[str, Any]:
    """Item 13 is the one whose decision tuning loses."""
    said = "no" if model == "tuned" and n == 13 else "yes"
    return {"id": f"invented:{n:02}", "reference": "yes", "prediction": said, "logits": {"yes": 1.0, "no": 0.5}}


def _answered(model: str, n: int) -> dict[str, Any]:
    """Tuning loses words in items 0 to 4, the most in 4, and gains words in 15 to 19, the most in 19."""
    words = REFERENCE.split()
    kept = 8 + (n - 14 if n > 14 else -n - 1 if n < 5 else 0) * (model == "tuned")
    return {"id": f"invented:{n:02}", "reference": REFERENCE, "prediction": " ".join(words[:kept])}


def shown(folder: Path) -> str:
    """The page's words, without markup and runs of white space."""
    page = re.sub(r"<(style|title)>.*?</\1>", "", render(folder).read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page)))


def verdict(folder: Path) -> str:
    found = re.search(r'<p class="verdict">(.*?)</p>', render(folder).read_text(encoding="utf-8"), re.DOTALL)
    assert found, "the page has no verdict"
    return re.sub(r"\s+", " ", html.unescape(found[1]))


def test_the_verdict_gives_what_improved_with_figures(tmp_path: Path) -> None:
    said = verdict(finished_run(tmp_path))
    assert said.startswith("Significantly better: perplexity (23.94 → 16.44). ")
    assert "No metric got significantly worse; no significant change: accuracy and macro-F1." in said


def test_a_metric_that_fell_is_called_worse_in_the_verdict_and_in_its_box(tmp_path: Path) -> None:
    folder = finished_run(
        tmp_path, tuned={"accuracy": 55.0, "macro_f1": 30.0}, comparison={"accuracy": WORSE, "macro_f1": NOISE}
    )
    assert verdict(folder).startswith("No metric got significantly better. Significantly worse: accuracy (61.2 → 55.0)")
    box = shown(folder).partition("Metrics that got worse")[2].partition("Before and after")[0]
    assert "Accuracy , 61.2 → 55.0 (−6.2, 95% interval −9.0 to −3.4): significantly worse." in box
    assert re.search(r"Macro-F1 , .* worse, but the change isn't significant", box)


def test_no_box_where_nothing_moved_the_wrong_way(tmp_path: Path) -> None:
    assert "got worse" not in shown(finished_run(tmp_path, worse=[], comparison={"perplexity": BETTER}))


@pytest.mark.parametrize(("accuracy", "below"), [(54.0, True), (55.2, False), (70.0, False)])
def test_the_verdict_says_when_always_yes_would_do_better(tmp_path: Path, accuracy: float, below: bool) -> None:
    folder = finished_run(tmp_path, tuned={"accuracy": accuracy})
    assert ("below the 55.2% that a constant answer of “yes”" in verdict(folder)) is below


def test_a_synthetic_run_says_so_first_and_in_every_section(tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "made-up", data={"train": 4, "test": 4, "synthetic": True})
    words, page = shown(folder), render(folder).read_text(encoding="utf-8")
    assert words.index("made-up examples") < words.index("Did tuning help?")
    assert page.count('<p class="reminder">') == page.count("<section")
    assert "Synthetic" not in shown(finished_run(tmp_path / "real"))


def test_texts_from_data_and_models_are_shown_and_never_run(tmp_path: Path) -> None:
    folder, evil = finished_run(tmp_path, count=1), "<script>alert(1)</script>"
    example = _example(0) | {"question": evil, "answer": evil, "meta": {"url": "javascript:alert(1)"}}
    example["context"] = [{"label": evil, "text": evil}]
    write_jsonl(folder / "data" / "test.jsonl", [example])
    row = _answered("tuned", 0) | {"prediction": evil}
    write_jsonl(folder / "predictions" / "tuned-answer.jsonl", [row])
    report = read_json(folder / "report.json") | {"recipe": evil, "command": evil, "base_model": evil}
    write_json(folder / "report.json", report)
    page = render(folder).read_text(encoding="utf-8")
    assert "<script" not in page
    assert "javascript:" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 8


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.headings: list[int] = []
        self.unnamed: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.ids += [found["id"]] if "id" in found else []
        self.headings += [int(tag[1])] if re.fullmatch("h[1-6]", tag) else []
        addresses = [found.get(name, "") for name in ("src", "href", "xlink:href", "srcset", "data", "action")]
        self.loads += [address for address in addresses if address and tag != "a" and not address.startswith("#")]
        if tag in ("link", "script", "iframe", "object", "img"):
            self.loads.append(tag)


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    page = render(finished_run(tmp_path)).read_text(encoding="utf-8")
    elements = _Elements()
    elements.feed(page)
    assert elements.loads == []
    assert "default-src 'none'" in page
    assert not re.search(r"url\(\s*['\"]?(?!#)|@import", page)
    links = re.findall(r'href="(http[^"]+)"', page)
    assert "https://arxiv.org/abs/1909.06146" in links
    assert "https://example.org/13" in links


def test_headings_follow_each_other_and_every_plot_has_words(tmp_path: Path) -> None:
    page = render(finished_run(tmp_path)).read_text(encoding="utf-8")
    elements = _Elements()
    elements.feed(page)
    assert elements.headings[0] == 1
    steps = zip(elements.headings, elements.headings[1:], strict=False)
    assert all(later - earlier <= 1 for earlier, later in steps), elements.headings
    assert len(elements.ids) == len(set(elements.ids))
    drawings = re.findall(r"<svg[^>]*>(<title>[^<]+</title>)?", page)
    assert len(drawings) == 8, "three intervals, two curves, three histograms"
    assert all(drawings)
    assert "Training loss over 3 steps" in page
    assert "The limit is 48." in page


def test_figures_that_were_not_measured_say_so(tmp_path: Path) -> None:
    folder = finished_run(
        tmp_path, base={"perplexity": 23.94}, tuned={"perplexity": 16.44}, comparison={"perplexity": BETTER},
        worse=[], baselines=[], decision=None, items={"answer": 20},
    )  # fmt: skip
    words = shown(folder)
    row = re.search(r"Accuracy (.*?) Macro-F1", words)
    assert row
    assert row[1].count("not measured") == 3
    assert "no yes/no/maybe decisions" in words
    assert "run didn't measure whether the model forgot general English" in verdict(folder)


def test_a_folder_with_only_its_figures_still_gives_a_page(tmp_path: Path) -> None:
    bare = ("meditune", "recipe", "seed", "base_model", "strategy")
    whole = read_json(finished_run(tmp_path / "whole") / "report.json")
    write_json(tmp_path / "bare" / "report.json", {key: whole[key] for key in bare})
    assert "nothing could be compared" in shown(tmp_path / "bare").lower()


def test_a_folder_without_figures_is_told_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no report\.json.*meditune run"):
        render(tmp_path)


def test_worked_examples_hold_the_worst_the_best_and_the_middle(tmp_path: Path) -> None:
    folder = finished_run(tmp_path)
    words = shown(folder).partition("Side by side")[2]
    found = re.findall(r"(worse after tuning|better after tuning|near the middle) Question number (\d+)\?", words)
    sorts = {kind: [int(n) for name, n in found if name.startswith(kind)] for kind in ("worse", "better", "near")}
    assert sorts["worse"] == [13, 4, 3, 2], "the lost decision first, then the answers that lost most"
    assert sorts["better"] == [19, 18, 17]
    assert len(sorts["near"]) == 3
    assert set(sorts["near"]) <= set(range(5, 15)), "where tuning changed nothing"
    assert "10 of 20 questions, selected by rule" in words
    assert render(folder).read_text() == render(folder).read_text()


def test_worked_examples_of_a_run_that_measured_on_dev_show_its_questions(tmp_path: Path) -> None:
    folder = finished_run(tmp_path)
    (folder / "data" / "test.jsonl").rename(folder / "data" / "dev.jsonl")
    with (folder / "recipe.yaml").open("a", encoding="utf-8") as recipe:
        recipe.write("evaluate:\n  split: dev\n")
    assert "worse after tuning Question number 13?" in shown(folder).partition("Side by side")[2]


def test_a_report_on_dev_counts_development_examples(tmp_path: Path) -> None:
    report = read_json(finished_run(tmp_path) / "report.json")
    report["data"] |= {"test": 12, "dev": 15, "test_set": "dev-15"}
    write_json(tmp_path / "report.json", report)
    assert "tested on 15 development examples" in shown(tmp_path)


def test_the_small_print_names_the_tests_and_intervals_that_were_used(tmp_path: Path) -> None:
    change = {"delta": 0.1, "ci95": [0.0, 0.2], "p": 0.5, "p_holm": 0.5, "better": None, "test": "paired permutation"}
    figures = {"rougeL": 0.5}
    for groups, t_intervals in ((12, True), (40, False)):
        comparison = {"rougeL": change | {"groups": groups}}
        folder = finished_run(tmp_path / str(groups), base=figures, tuned=figures, comparison=comparison, worse=[])
        page = shown(folder)
        assert "p comes from this test: paired permutation." in page
        assert ("they are t intervals" in page) == t_intervals
        assert ("on the bad side and, with fewer than 20 groups, that the uncorrected p" in page) == t_intervals


def test_a_metric_this_version_does_not_know_is_shown_by_its_name(tmp_path: Path) -> None:
    figures = {"tastefulness": 0.5}
    folder = finished_run(tmp_path, base=figures, tuned=figures, comparison={}, worse=[])
    assert "tastefulness" not in METRICS
    assert "tastefulness 0.500 0.500" in shown(folder)


def sure_decisions(**changes: Any) -> dict[str, Any]:
    """What report.json says of one model's decisions and their confidence."""
    return {
        "confusion": [[9, 1, 0], [4, 3, 0], [2, 1, 0]],
        "recall": {"yes": 90.0, "no": 42.9, "maybe": 0.0},
        "reliability": [{"from": 0.6, "to": 0.7, "items": 20, "confidence": 0.64, "right": 0.6}],
        "risk_coverage": [{"threshold": 0.61, "coverage": 1.0, "risk": 0.4}],
    } | changes


def test_confidence_is_drawn_and_said_for_those_who_cant_see(tmp_path: Path) -> None:
    both = {"base": sure_decisions(), "tuned": sure_decisions()}
    page = render(finished_run(tmp_path, decision=both)).read_text(encoding="utf-8")
    assert "<title>Share of correct decisions by confidence: Base 0.60 at 0.64; Tuned 0.60 at 0.64.</title>" in page
    assert "<title>Share of wrong decisions at full coverage: Base 0.40 at 1.00; Tuned 0.40 at 1.00.</title>" in page
    words = shown(tmp_path)
    assert "Confidence and correctness" in words
    assert "Abstention" not in words
    assert "Calibrated and written" not in words


def test_a_threshold_that_none_reaches_is_said(tmp_path: Path) -> None:
    none = {"target": 0.75, "raw": {"threshold": None, "dev": None, "test": None}}
    dev = {"kept": 12, "of": 50, "coverage": 24.0, "accuracy": 75.0, "ci95": [46.8, 91.1]}
    test = {"kept": 0, "of": 500, "coverage": 0.0, "accuracy": None, "ci95": None}
    some = {"target": 0.75, "raw": {"threshold": 0.9, "dev": dev, "test": test}}
    both = {"base": sure_decisions(abstention=none), "tuned": sure_decisions(abstention=some)}
    words = shown(finished_run(tmp_path, decision=both))
    assert "for which at least 75% of the development split’s decisions" in words
    assert "Base model no threshold reaches this target on dev" in words
    assert "Tuned model 0.900 12 of 50 75.0 0 of 500 0.0 nothing kept –" in words
    assert "Test: kept" in words
    report = read_json(tmp_path / "report.json")
    report["decision"]["tuned"]["abstention"]["folds"] = 5
    report["data"]["test_set"] = "dev-5"
    write_json(tmp_path / "report.json", report)
    assert "Dev: kept" in shown(tmp_path)


def test_a_model_that_tells_only_words_has_no_plots_of_confidence(tmp_path: Path) -> None:
    words_only = {"confusion": [[9, 1, 0], [4, 3, 0], [2, 1, 0]], "recall": {"yes": 90.0, "no": 42.9, "maybe": 0.0}}
    both = {"base": words_only, "tuned": words_only | {"abstention": {"target": 0.8}}}
    words = shown(finished_run(tmp_path, decision=both))
    assert "Confidence and" not in words
    assert "Not measured: the development split has no decisions with likelihoods." in words


def test_what_was_dropped_and_shortened_is_counted(tmp_path: Path) -> None:
    words = shown(finished_run(tmp_path))
    assert "Exact duplicate 2" in words
    assert "In the test set already" not in words, "what never happened is left out"
    assert "No question: 3" in words
    assert "Training examples with sources shortened to fit 7" in words
    assert "1 min 15 s" in words


@pytest.mark.parametrize(
    ("peaks", "said"),
    [
        ({"peak_rss_gb": 4.24}, "900 tokens a second, with at most 4.2 GB of memory."),
        (
            {"peak_rss_gb": 4.24, "peak_gpu_gb": 11.5},
            "900 tokens a second, with at most 11.5 GB of GPU memory and 4.2 GB of main memory.",
        ),
    ],
)
def test_the_peak_of_memory_is_that_of_the_device(tmp_path: Path, peaks: dict[str, float], said: str) -> None:
    training = {"steps": 3, "epochs": 1.0, "seconds": 75.0, "tokens_per_s": 900.0}
    assert said in shown(finished_run(tmp_path, training=training | peaks))


def test_sacrebleus_signatures_stand_in_the_small_print(tmp_path):
    signature = "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"
    page = render(finished_run(tmp_path, signatures={"bleu": signature})).read_text("utf-8")
    assert f"<dt>sacrebleu, BLEU</dt><dd>{signature}</dd>" in page
    assert "sacrebleu, chrF" not in page


SPREAD = {
    "texts": 9, "empty": 0, "p10": 9.0, "p25": 10.0, "median": 12.0, "p75": 14.0, "p90": 26.0,
    "below": 0.0, "inside": 11.1, "above": 88.9, "unexplained": [["COPD", 4], ["dyspnea", 2]],
}  # fmt: skip


def report(**changes):
    return {"readability": {"base": SPREAD, "tuned": SPREAD | changes, "references": SPREAD}}


def test_the_scale_holds_every_strip_and_orders_its_places():
    found = reading(report(median=7.0, p25=6.0, p10=-3.0))
    tuned = found["strips"][1]
    assert tuned["most"] == (0, 100)
    assert 0 < tuned["middle"][0] < tuned["place"] < tuned["middle"][1] < 100
    assert found["band"][0] < tuned["place"] < found["band"][1], "grade 7 lies in the band from 6 to 8"


def test_the_page_shows_medians_targets_terms_and_empty_answers(tmp_path):
    page = shown(finished_run(tmp_path, **report(median=7.3, empty=3)))
    section = page.partition("Reading difficulty of the answers")[2]
    assert "Tuned model" in section
    assert "7.3" in section
    assert "tuned model 11%" in section
    assert "Tuned model 3" in section
    assert "COPD and dyspnea" in section


def test_a_model_that_wrote_nothing_is_named_with_its_empty_answers():
    found = reading({"readability": {"base": SPREAD, "tuned": {"texts": 9, "empty": 9}, "references": SPREAD}})
    assert found["empty"] == [("Tuned model", 9)]


@pytest.mark.parametrize("found", [{}, {"readability": {"base": {"texts": 2, "empty": 2}}}])
def test_without_answers_there_is_no_section(tmp_path, found):
    assert "Reading difficulty" not in shown(finished_run(tmp_path, **found))
