"""Titles as questions: few and surely right rather than many."""

from __future__ import annotations

import pytest

from meditune.operate.literature.abstract_questions import borne_out, of_title

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
    asked = of_title(title, WRITTEN)
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
    assert of_title(title, WRITTEN) is None


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
    assert borne_out(decision, conclusion) is holds
