"""Two prepared sets side by side: what a filter, rebalancing or mixing changed in the training split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from meditune.data.diversity.dimensions import DIMENSIONS
from meditune.data.diversity.numbers import distance, rarefied
from meditune.data.diversity.profile import counted_groups
from meditune.data.example import Example

SHOWN = 8
"""Groups listed of each dimension: those whose share changed most"""


def compared(before: Sequence[Example], after: Sequence[Example], seed: int) -> dict[str, Any]:
    """`examples` of both, `gone` and `new` (by id), and for each dimension what changed.

    A dimension has its total variation `distance`, `effective` (exp of Shannon's entropy of both, drawn down to the
    size of the smaller one, because more rows show more groups), and `groups`: the shares of both in percent of all
    examples: the largest changes, first or in their groups' order.
    """
    ids = {example.id for example in before}, {example.id for example in after}
    counts = counted_groups(before), counted_groups(after)
    least = min(len(before), len(after))
    dimensions = {}
    for dimension in DIMENSIONS:
        name = dimension.name
        sides = counts[0][name].groups, counts[1][name].groups
        if not any(sides):
            continue
        shares: list[dict[str, Any]] = [
            {
                "group": group,
                "before": round(100 * sides[0][group] / len(before), 2),
                "after": round(100 * sides[1][group] / len(after), 2),
            }
            for group in sides[0].keys() | sides[1].keys()
        ]
        shares.sort(key=lambda row: (-abs(row["after"] - row["before"]), row["group"]))
        listed = [row for row in shares if row["before"] != row["after"]][:SHOWN]
        if dimension.kind == "ordered":
            listed.sort(key=lambda row: dimension.order.index(row["group"]))
        dimensions[name] = {
            "distance": round(distance(*sides), 4),
            "effective": [
                round(rarefied(side, least / len(examples), seed), 2)
                for side, examples in zip(sides, (before, after), strict=True)
            ],
            "groups": listed,
        }
    return {
        "examples": [len(before), len(after)],
        "gone": len(ids[0] - ids[1]),
        "new": len(ids[1] - ids[0]),
        "dimensions": dimensions,
    }
