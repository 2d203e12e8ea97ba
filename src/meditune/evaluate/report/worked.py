"""Ten worked examples, picked by rule and not by taste: the worst, the best and the usual."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from meditune.data.example import Example, Passage
from meditune.evaluate.changes import rouge
from meditune.evaluate.measured import examples_of
from meditune.evaluate.predictions import Kind, path_of
from meditune.evaluate.report.wording import web_address
from meditune.files import read_jsonl

Sort = Literal["lost", "gained", "usual"]
LOST, GAINED, ALL = 4, 3, 10


@dataclass(frozen=True)
class Side:
    """What one model said; None where it wasn't asked."""

    answer: str | None
    decision: str | None
    right: bool
    rouge: float | None
    """ROUGE-L F against the reference answer."""


@dataclass(frozen=True)
class Worked:
    """One test question with both models' words."""

    id: str
    sort: Sort
    question: str
    context: tuple[Passage, ...]
    url: str | None
    answer: str
    decision: str | None
    base: Side
    tuned: Side

    @property
    def change(self) -> tuple[int, float]:
        """Decision turned right (1), wrong (-1) or neither (0); then tuned minus base ROUGE-L."""
        flip = int(self.tuned.right) - int(self.base.right)
        return flip, (self.tuned.rouge or 0.0) - (self.base.rouge or 0.0)


def worked_examples(folder: Path) -> tuple[list[Worked], int]:
    """The chosen examples, worst first, and how many they were chosen from.

    All items that both models answered (or, where there are no answers, decided) are ordered by `Worked.change`, ties
    by id. From the bottom come up to LOST that really fell, from the top up to GAINED that really rose, and the rest
    of ALL are those nearest the median.
    """
    answers = {model: _by_id(folder, model, "answer") for model in ("base", "tuned")}
    decisions = {model: _by_id(folder, model, "decision") for model in ("base", "tuned")}
    asked = answers if answers["base"] and answers["tuned"] else decisions
    examples = examples_of(folder)
    pool = [_worked(id, examples.get(id), answers, decisions) for id in asked["base"] if id in asked["tuned"]]
    pool.sort(key=lambda item: (item.change, item.id))
    return _chosen(pool), len(pool)


def _chosen(pool: list[Worked]) -> list[Worked]:
    lost = [item for item in pool if item.change < (0, 0.0)][:LOST]
    gained = [item for item in pool if item.change > (0, 0.0)][::-1][:GAINED]
    taken = {item.id for item in (*lost, *gained)}
    middle = (len(pool) - 1) / 2
    near = sorted(range(len(pool)), key=lambda index: (abs(index - middle), index))
    usual = [pool[index] for index in near if pool[index].id not in taken][: ALL - len(taken)]
    return [
        *(_as(item, "lost") for item in lost),
        *(_as(item, "gained") for item in gained),
        *(_as(item, "usual") for item in usual),
    ]


def _as(item: Worked, sort: Sort) -> Worked:
    return Worked(**{**vars(item), "sort": sort})


def _worked(
    id: str,
    example: Example | None,
    answers: dict[str, dict[str, dict[str, Any]]],
    decisions: dict[str, dict[str, dict[str, Any]]],
) -> Worked:
    said, chose = answers["tuned"].get(id, {}), decisions["tuned"].get(id, {})
    return Worked(
        id=id,
        sort="usual",
        question=example.question if example else id,
        context=example.context if example else (),
        url=web_address(example.meta.get("url")) if example else None,
        answer=example.answer if example else said.get("reference", ""),
        decision=example.decision if example else chose.get("reference"),
        base=_side(answers["base"].get(id), decisions["base"].get(id)),
        tuned=_side(answers["tuned"].get(id), decisions["tuned"].get(id)),
    )


def _side(answer: dict[str, Any] | None, decision: dict[str, Any] | None) -> Side:
    return Side(
        answer=answer["prediction"] if answer else None,
        decision=(decision["prediction"] or "none of the three") if decision else None,
        right=bool(decision and decision["prediction"] == decision["reference"]),
        rouge=rouge(answer["reference"], answer["prediction"]) if answer else None,
    )


def _by_id(folder: Path, model: str, kind: Kind) -> dict[str, dict[str, Any]]:
    path = path_of(folder / "predictions", model, kind)
    return {row["id"]: row for row in read_jsonl(path)} if path.is_file() else {}
