"""How much each supervised token counts in the loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from meditune.data.example import Example
from meditune.models.rows import Row
from meditune.recipe import TrainSpec


class TokenWeights:
    """Weight of every supervised token: 1, unless the recipe balances tasks or decision classes.

    With `decision_share` s, decision tokens together get the share s of the loss over the data set and answer tokens
    the rest, however many of each there are. With `class_balance` b, a decision of a class with frequency f weighs
    f ** -b, scaled so that the mean over examples stays 1.
    """

    def __init__(self, examples: Sequence[Example], rows: Sequence[Row], spec: TrainSpec) -> None:
        self.decisions = {example.id: example.decision for example in examples if example.decision}
        counts = Counter(self.decisions.values())
        total = sum(counts.values())
        raw = {label: (count / total) ** -spec.class_balance for label, count in counts.items()}
        mean = sum(raw[label] for label in self.decisions.values()) / total if total else 1.0
        self.by_class = {label: value / mean for label, value in raw.items()}
        tokens: Counter[str] = Counter()
        for row in rows:
            for item in row.encoded:
                tokens[item.task] += len(item.target)
        share = spec.decision_share
        self.by_task = {"decision": 1.0, "answer": 1.0}
        if share is not None and tokens["decision"] and tokens["answer"]:
            every = sum(tokens.values())
            self.by_task = {
                "decision": share * every / tokens["decision"],
                "answer": (1 - share) * every / tokens["answer"],
            }

    def of(self, row: Row) -> list[float]:
        """One weight for each of the row's targets."""
        weights = []
        for number in row.of:
            item = row.encoded[number]
            weight = self.by_task[item.task]
            if item.task == "decision":
                weight *= self.by_class[self.decisions[item.id]]
            weights.append(weight)
        return weights
