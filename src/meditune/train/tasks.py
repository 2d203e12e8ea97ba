"""Which tasks an example can teach."""

from __future__ import annotations

from collections.abc import Sequence

from meditune.data.example import Example
from meditune.errors import DataError
from meditune.recipe import TASKS, Task


def able(example: Example, tasks: Sequence[Task]) -> list[Task]:
    """The tasks that the example can teach."""
    return [task for task in tasks if (example.decision if task == "decision" else example.answer.strip())]


def check_teaches(examples: Sequence[Example], tasks: Sequence[Task]) -> None:
    """Raise DataError where no example teaches any of the tasks; needs no tokenizer, so it can come first."""
    if not any(able(example, tasks) for example in examples):
        others: list[Task] = [task for task in TASKS if task not in tasks]
        hint = f" --set 'train.tasks=[{others[0]}]' trains on what they have." if others else ""
        raise DataError(f"None of the {len(examples)} training examples has {named(tasks)} to learn from.{hint}")


def named(tasks: Sequence[Task]) -> str:
    """Tasks inside a sentence: "an answer or a decision"."""
    return " or ".join({"answer": "an answer", "decision": "a decision"}[task] for task in tasks)
