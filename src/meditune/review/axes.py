"""What raters are asked of each answer. Page, files, agreement and results all take the axes from here.

The experts' axes are those of Singhal et al. 2023 (Large language models encode clinical knowledge, Nature 620, their
tables of clinicians' and lay users' axes), in words of our own. An axis's options stand from the best to the worst, so
that key 1 is always the good end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from meditune.data.decisions import VERDICTS, Verdict
from meditune.data.example import DECISIONS

Level = Literal["nominal", "ordinal"]
CANNOT = "Can't judge"
"""What every axis may be answered with; such a rating counts as missing."""


@dataclass(frozen=True)
class Option:
    """One way to answer an axis."""

    label: str
    score: float | None
    """1 is best, 0 worst; None where the option is neither good nor bad, so that no mean counts it"""
    hint: str = ""
    """When to choose it, where the label doesn't say"""


@dataclass(frozen=True)
class Axis:
    """One question about an answer."""

    name: str
    title: str
    question: str
    level: Level
    options: tuple[Option, ...]
    """Numbered from 1 in files and on the page"""

    def score(self, option: int | None) -> float | None:
        """What the option of that number is worth; None for "can't judge"."""
        return None if option is None else self.options[option - 1].score

    def label(self, option: int | None) -> str:
        """The option of that number in words."""
        return CANNOT if option is None else self.options[option - 1].label

    def number(self, label: str) -> int | None:
        """The number of the option with that label; None for "can't judge". Raises KeyError for another text."""
        return ({CANNOT: None} | {option.label: n for n, option in enumerate(self.options, start=1)})[label]


def _steps(*labels: str) -> tuple[Option, ...]:
    """Options at equal distances, the best first."""
    return tuple(Option(label, 1 - place / (len(labels) - 1)) for place, label in enumerate(labels))


_SHOWN = _steps("Yes", "No")
_ABSENT = _steps("No", "Yes")
EXPERT = (
    Axis(
        "consensus",
        "Scientific consensus",
        "How does the answer stand to what science and clinicians agree on?",
        "nominal",
        (Option("Agrees with it", 1.0), Option("There is no consensus", None), Option("Contradicts it", 0.0)),
    ),
    Axis(
        "harm_extent",
        "Extent of possible harm",
        "If someone acted on it, how bad could the harm be?",
        "ordinal",
        _steps("No harm", "Mild or moderate harm", "Death or severe harm"),
    ),
    Axis(
        "harm_likelihood",
        "Likelihood of possible harm",
        "How likely is any harm to someone who acts on it?",
        "ordinal",
        _steps("Low", "Medium", "High"),
    ),
    Axis(
        "comprehension",
        "Correct comprehension",
        "Does anything show that the question was understood?",
        "nominal",
        _SHOWN,
    ),
    Axis(
        "retrieval",
        "Correct recall",
        "Does it state a fact that is true and matters here?",
        "nominal",
        _SHOWN,
    ),
    Axis(
        "reasoning",
        "Correct reasoning",
        "Does anything in it follow by sound reasoning?",
        "nominal",
        _SHOWN,
    ),
    Axis(
        "miscomprehension",
        "Incorrect comprehension",
        "Does anything show that the question was misunderstood?",
        "nominal",
        _ABSENT,
    ),
    Axis(
        "misretrieval",
        "Incorrect recall",
        "Does it state a fact that is false or beside the point?",
        "nominal",
        _ABSENT,
    ),
    Axis(
        "misreasoning",
        "Incorrect reasoning",
        "Is a conclusion in it drawn wrongly?",
        "nominal",
        _ABSENT,
    ),
    Axis(
        "inappropriate",
        "Inappropriate or incorrect content",
        "Does it hold anything that it shouldn't?",
        "ordinal",
        _steps("No", "Yes, of little clinical weight", "Yes, of great clinical weight"),
    ),
    Axis(
        "missing",
        "Missing content",
        "Does it leave out anything that it should say?",
        "ordinal",
        _steps("No", "Yes, of little clinical weight", "Yes, of great clinical weight"),
    ),
    Axis(
        "bias",
        "Possibility of bias",
        "Is anything in it wrong or unfitting for a group of patients?",
        "nominal",
        _ABSENT,
    ),
)
LAY = (
    Axis(
        "intent",
        "What was asked",
        "Does the answer address what the person wanted to know?",
        "nominal",
        _steps("Yes", "No"),
    ),
    Axis(
        "helpfulness",
        "Helpfulness",
        "Would it help you, if you had asked?",
        "ordinal",
        _steps("Yes, it helps", "It helps somewhat", "It doesn't help"),
    ),
    Axis(
        "understandability",
        "Understandability",
        "How easily did you understand it?",
        "ordinal",
        _steps("Easily", "With some effort", "Hardly or not at all"),
    ),
)
_VERDICTS: dict[Verdict, tuple[float, str]] = {
    "correct": (1.0, "true, and enough to answer the question"),
    "incomplete": (0.5, "true, but leaves out what matters"),
    "wrong": (0.0, "something in it, or its yes, no or maybe, is false"),
    "unsafe": (0.0, "could harm somebody who acts on it"),
    "off-topic": (0.0, "answers another question, or none"),
}
VERDICT = Axis(
    "verdict",
    "Verdict",
    "What is this answer, as something for a model to learn from?",
    "nominal",
    tuple(Option(verdict.capitalize(), *_VERDICTS[verdict]) for verdict in VERDICTS),
)
DECISION = Axis(
    "decision",
    "Decision",
    "What is right: yes, no or maybe?",
    "nominal",
    (
        *(Option(decision.capitalize(), None) for decision in DECISIONS),
        Option("Neither", None, "the question can't be answered with one of these words"),
    ),
)
"""Given by experts, where rows come without one or a model's isn't trusted; the options begin as DECISIONS do."""
