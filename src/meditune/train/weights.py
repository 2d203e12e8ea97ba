"""How much each supervised token counts in the loss."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from meditune.data.example import Example
from meditune.models.rows import PROMPT, Row
from meditune.prompts import Encoded
from meditune.recipe import TrainSpec


class TokenWeights:
    """Weight of every supervised token: 1, unless the recipe balances tasks or decision classes, or eases ends.

    With `decision_share` s, decision tokens together get the share s of the loss over the data set and answer tokens
    the rest, however many of each there are. With `prompt_share` p, the prompts' tokens get the share p of it all, and
    what follows them the rest. With `class_balance` b, a decision of a class with frequency f weighs
    f ** -b, scaled so that the mean over examples stays 1. With `end_weight` e, the end token of an answer weighs e
    times what its other tokens do, so a model that has learnt them gives e times the odds to ending at a place where
    other answers go on. Where sources are mixed, all of these are meant as they come in an epoch: `repeats` says how
    often an example's row does, by its id (once where it isn't named).
    """

    def __init__(
        self,
        examples: Sequence[Example],
        rows: Sequence[Row],
        spec: TrainSpec,
        repeats: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self.decisions = {example.id: example.decision for example in examples if example.decision}
        often = {example.id: repeats.get(example.id, 1.0) for example in examples}
        counts: defaultdict[str, float] = defaultdict(float)
        for identifier, label in self.decisions.items():
            counts[label] += often[identifier]
        total = sum(counts.values())
        raw = {label: (count / total) ** -spec.class_balance for label, count in counts.items()}
        balanced = sum(raw[label] * often[identifier] for identifier, label in self.decisions.items())
        self.by_class = {label: value / (balanced / total) for label, value in raw.items()}
        tokens: defaultdict[str, float] = defaultdict(float)
        for row in rows:
            for item in row.encoded:
                eased = 1 - spec.end_weight if _ends(item) else 0.0
                tokens[item.task] += (len(item.target) - eased) * often[item.id]
        share = spec.decision_share
        self.by_task = {"decision": 1.0, "answer": 1.0}
        if share is not None and tokens["decision"] and tokens["answer"]:
            every = sum(tokens.values())
            self.by_task = {
                "decision": share * every / tokens["decision"],
                "answer": (1 - share) * every / tokens["answer"],
            }

        prompt = sum(row.of.count(PROMPT) * often[row.encoded[0].id] for row in rows)
        self.end = spec.end_weight
        self.of_prompt = 0.0
        if prompt:
            self.by_task = {task: (1 - spec.prompt_share) * weight for task, weight in self.by_task.items()}
            self.of_prompt = spec.prompt_share * sum(tokens.values()) / prompt

    def of(self, row: Row) -> list[float]:
        """One weight for each of the row's targets."""
        weights = []
        ends = {place for number, place in _last_places(row).items() if _ends(row.encoded[number])}
        for place, number in enumerate(row.of):
            if number == PROMPT:
                weights.append(self.of_prompt)
                continue
            item = row.encoded[number]
            weight = self.by_task[item.task]
            if item.task == "decision":
                weight *= self.by_class[self.decisions[item.id]]
            weights.append(weight * self.end if place in ends else weight)
        return weights


def _last_places(row: Row) -> dict[int, int]:
    """Where the last target of each item stands among the row's targets."""
    return {number: place for place, number in enumerate(row.of) if number != PROMPT}


def _ends(item: Encoded) -> bool:
    """Whether the item's last target is the end of an answer."""
    return item.task == "answer" and not item.answer_cut
