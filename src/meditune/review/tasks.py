"""What people are asked to do with a set's items: rate answers, or validate data. Each task is one entry here.

The page, its server, the files and the agreement know no task by name; they ask the set's task for what differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from meditune.errors import DataError
from meditune.review.axes import DECISION, EXPERT, LAY, VERDICT, Axis


@dataclass(frozen=True)
class Words:
    """The page's words, in plain English."""

    title: str
    purpose: str
    settling: str
    """The purpose, where disagreements are settled"""
    text: str
    """What stands above the text that is judged"""
    better: str
    """What the rater may write in its place"""
    better_hint: str
    keys: str
    """What the number keys do"""
    none: str
    """Said to whom nothing was given"""


@dataclass(frozen=True)
class Task:
    """One kind of human judgement."""

    name: str
    axes: Mapping[str, tuple[Axis, ...]]
    """The forms that it can take"""
    words: Words
    made_by: str
    """The command that makes such a set, for errors"""
    edits: bool = False
    """Whether the better text starts as the one that is shown, so that the rater changes what is wrong in it"""
    shows_sources: bool = False
    """Whether the passages are open from the start"""

    def form(self, name: str) -> tuple[Axis, ...]:
        """The axes of that name. Raises DataError for an unknown one."""
        if name not in self.axes:
            raise DataError(f"There are no axes {name!r}. Choose from {', '.join(self.axes)}.")
        return self.axes[name]

    def told(self) -> dict[str, Any]:
        """What the page is told of it."""
        return {"words": asdict(self.words), "edits": self.edits, "shows_sources": self.shows_sources}


RATE = Task(
    name="rate",
    axes={"expert": EXPERT, "lay": LAY},
    made_by="meditune review create RUN --output",
    words=Words(
        title="Rating answers",
        purpose="You will read questions with one answer each and say what you make of the answer. Who or what wrote "
        "it isn't shown. The same question comes again with other answers; please judge each on its own.",
        settling="You will see the answers on which raters disagreed, and only the lines on which they did. What they "
        "chose is shown; your word settles it.",
        text="Answer to rate",
        better="Better answer",
        better_hint="optional: what should have been said",
        keys="choose; 1 is always the good end",
        none="Nothing to rate",
    ),
)
VALIDATE = Task(
    name="validate",
    axes={"verdict": (VERDICT,), "label": (DECISION, VERDICT)},
    made_by="meditune annotate create SOURCE --output",
    words=Words(
        title="Checking data",
        purpose="You will read questions with the answer that a data set or a model gives. A model is to learn from "
        "them. Say whether each answer is right, and put right what you can.",
        settling="You will see the rows on which raters disagreed, with what they chose and wrote, but not who did. "
        "Your word settles it.",
        text="Answer to check",
        better="Explanation",
        better_hint="change it where it should say something else",
        keys="correct, incomplete, wrong, unsafe, off-topic",
        none="Nothing to check",
    ),
    edits=True,
    shows_sources=True,
)
TASKS = {task.name: task for task in (RATE, VALIDATE)}
