"""Training pairs of structured abstracts, without test items.

Titles as questions: few and surely right rather than many.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from meditune.operate.literature.abstract_questions import is_supported_by_conclusion, question_of_title
from tests import layouts
from tests.operate.literature.pubmed_server import (
    METHODS,
    Paper,
    PubMed,
    documents_found,
    library_rows,
    update_by_query,
)

pytest.importorskip("lancedb")


def test_test_items_are_kept_out_of_the_pairs(served: PubMed, tmp_path: Path) -> None:
    item = layouts.pubmedqa_item(1)
    sections = [
        ("METHODS", "METHODS", f"{' '.join(item['CONTEXTS'])} {METHODS.format(n=200)}"),
        ("CONCLUSIONS", "CONCLUSIONS", "The treatment lowers pain in adults of both groups."),
    ]
    served.add(
        Paper(20_000_000),  # by id
        Paper(301, title=item["QUESTION"], parts=sections),  # by its question
        Paper(302),
    )
    result = update_by_query(served, tmp_path).ok()
    assert [each["id"] for each in library_rows(tmp_path, "pairs.jsonl")] == ["302"]
    assert "2 excluded as test items" in result.out
    card = (tmp_path / "library" / "README.md").read_text()
    assert "2 articles are left out because they match test items exactly or nearly" in card
    assert "National Library of Medicine" in card


def test_without_pubmedqa_no_pairs_are_written(served: PubMed, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("MEDITUNE_DATA", str(tmp_path / "nothing"))
    monkeypatch.setenv("MEDITUNE_CACHE", str(tmp_path / "nothing"))
    served.add(Paper(101))
    result = update_by_query(served, tmp_path, "--index", tmp_path / "index")
    assert result.code == 3
    assert "No training pairs were written" in result.err
    assert not (tmp_path / "library" / "pairs.jsonl").exists()
    assert "pubmed:101" in documents_found(tmp_path, "treatment 101")


def test_the_pairs_are_a_source_that_a_recipe_reads(served: PubMed, tmp_path: Path) -> None:
    from meditune.data.readers import user_files
    from meditune.data.readers.tables import Rejects

    served.add(
        Paper(101, copyright="(c) 2025 The Authors."),
        Paper(102, title="Does treatment 102 reduce attacks? A trial."),
        Paper(
            103, title="Treatment 103 does not reduce attacks.", conclusion="Attacks were not less frequent after it."
        ),
        Paper(104, conclusion="Treatment 104 may lower the number of attacks."),
    )
    update_by_query(served, tmp_path).ok()
    rejects = Rejects()
    examples = {each.group: each for each in user_files.read(tmp_path / "library" / "pairs.jsonl", rejects)}
    assert len(rejects) == 0
    assert {pmid: example.decision for pmid, example in examples.items()} == {
        "101": "yes",
        "102": None,
        "103": "no",
        "104": None,
    }
    assert examples["103"].question == "Does treatment 103 reduce attacks?"
    assert examples["102"].question == "Does treatment 102 reduce attacks?"
    assert [passage.label for passage in examples["101"].context] == ["METHODS", "RESULTS"]
    assert examples["101"].meta["licence"] == "(c) 2025 The Authors."
    assert "lowers the number" not in " ".join(passage.text for passage in examples["101"].context)
    assert json.loads((tmp_path / "library" / "quality.json").read_text())["rows"] == 4


WRITTEN = "we asked whether statins, smoking, diet and early mobilisation"


@pytest.mark.parametrize(
    ("title", "question", "decision"),
    [
        ("Vitamin D deficiency is associated with asthma.", "Is vitamin D deficiency associated with asthma?", "yes"),
        (
            "Statins reduce atrial fibrillation after surgery",
            "Do statins reduce atrial fibrillation after surgery?",
            "yes",
        ),
        ("Metformin does not reduce mortality: a trial.", "Does Metformin reduce mortality?", "no"),
        ("Hip fractures are not more frequent in users", "Are hip fractures more frequent in users?", "no"),
        ("Crohn disease is common in Sweden", "Is Crohn disease common in Sweden?", "yes"),
        ("Helicobacter pylori causes peptic ulcers", "Does Helicobacter pylori cause peptic ulcers?", "yes"),
        ("Smoking causes lung cancer", "Does smoking cause lung cancer?", "yes"),
        ("Early mobilisation results in shorter stay", "Does early mobilisation result in shorter stay?", "yes"),
        ("Diet and exercise reduce weight", "Do diet and exercise reduce weight?", "yes"),
        ("Diabetes modifies the effect of age", "Does diabetes modify the effect of age?", "yes"),
        ("Does aspirin prevent cancer? A cohort study.", "Does aspirin prevent cancer?", None),
        ("Antibiotics for sore throat: do they help?", "Antibiotics for sore throat: do they help?", None),
    ],
)
def test_questions_and_statements(title: str, question: str, decision: str | None) -> None:
    asked = question_of_title(title, WRITTEN)
    assert asked is not None
    assert (asked.question, asked.decision) == (question, decision)
    assert asked.was_question == title.split(".")[0].rstrip().endswith("?") or decision is None


@pytest.mark.parametrize(
    "title",
    [
        "Inhaled Combined Budesonide-Formoterol as Needed in Mild Asthma.",
        "Causes of fatigue in older adults",
        "Common causes and effects of anemia",
        "Efforts to reduce mortality in sepsis",
        "Factors that predict survival after stroke",
        "Obesity is no risk factor for it",
        "Screening reduces mortality but not incidence",
        "IL-6 inhibits growth and improves survival",
        "Aspirin may reduce the risk of cancer",
        "Trends and increases in hospital admissions",
        "Low back pain: exercise improves function",
        "Why?",
        "",
    ],
)
def test_titles_that_are_left_alone(title: str) -> None:
    assert question_of_title(title, WRITTEN) is None


@pytest.mark.parametrize(
    ("decision", "conclusion", "holds"),
    [
        ("yes", "Statins lower the risk of atrial fibrillation.", True),
        ("yes", "Statins may lower the risk.", False),
        ("yes", "Statins did not lower the risk.", False),
        ("yes", "Statins lower the risk; however, they cost much.", False),
        ("yes", "Statins lower the risk. Larger randomized trials are needed.", False),
        ("yes", "Statins are more effective than placebo.", True),
        ("no", "Metformin didn't lower mortality.", True),
        ("no", "Mortality was alike in both groups.", False),
        ("no", "Metformin did not lower mortality, but evidence is limited.", False),
    ],
)
def test_a_decision_needs_a_conclusion_that_bears_it_out(decision, conclusion: str, holds: bool) -> None:
    assert is_supported_by_conclusion(decision, conclusion) is holds
