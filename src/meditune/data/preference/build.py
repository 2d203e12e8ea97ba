"""Pairs out of examples: each answer is preferred to a corruption of itself."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from meditune.data.example import Example
from meditune.data.preference.corrupt import corrupt
from meditune.data.preference.pair import Pair
from meditune.data.restrictions import is_restricted
from meditune.recipe import Corruption, PreferenceSpec


def build(examples: Sequence[Example], spec: PreferenceSpec, seed: int) -> tuple[list[Pair], int]:
    """Up to `spec.per_example` pairs of each example with an answer, and how many of those examples gave none.

    Of the kinds that an answer allows, those come first that were rarest until then, so that the kinds stay as even as
    the answers let them be. `other` takes answers from among these examples only.
    """
    answered = [example for example in examples if example.answer.strip()]
    counts: Counter[Corruption] = Counter()
    pairs: list[Pair] = []
    barren = 0
    for example in answered:
        chance = random.Random(f"{seed}/pairs/{example.id}")
        before = len(pairs)
        for kind in sorted(dict.fromkeys(spec.corruptions), key=lambda kind: counts[kind]):
            rejected = corrupt(kind, example, answered, chance)
            if rejected is None:
                continue
            counts[kind] += 1
            pairs.append(
                Pair(
                    id=f"{example.id}/{kind}",
                    question=example.question,
                    context=example.context,
                    chosen=example.answer,
                    rejected=rejected,
                    group=example.group,
                    style=example.style,
                    source=example.source,
                    restricted=is_restricted(example),
                    kind=kind,
                )
            )
            if len(pairs) - before == spec.per_example:
                break
        barren += len(pairs) == before
    return pairs, barren
