"""Pairs out of several answers to one example: the most faithful to its sources is to be preferred to the least."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from meditune.data.example import Example
from meditune.data.preference.own import SOURCE
from meditune.data.preference.pair import SAMPLED, Pair
from meditune.data.rejects import Rejects
from meditune.data.restrictions import is_restricted
from meditune.faithfulness.detect import detect
from meditune.faithfulness.sources import Sources
from meditune.recipe import SampledSpec
from meditune.text import sentences


def usable(examples: Sequence[Example]) -> list[Example]:
    """The examples with sources to be faithful to."""
    return [example for example in examples if any(passage.text for passage in example.context)]


def judged(example: Example, text: str, ended: bool) -> dict[str, Any]:
    """One answer with how faithful it is: `id` of the example, `text`, `score`, and the `kinds` of its spans.

    Of an answer that hadn't `ended` the last sentence is left out, or a model would learn to stop in the middle of one.
    """
    kept = text.strip() if ended else " ".join(sentences(text.strip())[:-1])
    found = detect(kept, Sources((passage.text for passage in example.context), example.question))
    return {"id": example.id, "text": kept, "score": found.score or 0.0, "kinds": [span.kind for span in found.spans]}


def paired(
    examples: Sequence[Example], answers: Iterable[Mapping[str, Any]], spec: SampledSpec, rejects: Rejects
) -> list[Pair]:
    """A pair of each example whose best and worst answers differ by `spec.margin`, from the rows that `judged` gives.

    Of answers that score the same the first counts. What gives no pair is counted in `rejects`.
    """
    written: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for answer in answers:
        if answer["text"]:
            written[answer["id"]].append(answer)
        else:
            rejects.count_only(SOURCE, "answers of the model without a whole sentence")
    pairs: list[Pair] = []
    for example in examples:
        found = written[example.id]
        best = max(found, key=lambda each: each["score"], default=None)
        worst = min(found, key=lambda each: each["score"], default=None)
        if best is None or worst is None:
            rejects.count_only(SOURCE, "examples without a whole answer of the model")
        elif best["score"] - worst["score"] < spec.margin:
            rejects.count_only(SOURCE, "examples whose answers are too equally faithful (sampled.margin)")
        else:
            pairs.append(
                Pair(
                    id=f"{example.id}/{SAMPLED}",
                    question=example.question,
                    context=example.context,
                    chosen=best["text"],
                    rejected=worst["text"],
                    group=example.group,
                    style=example.style,
                    source=example.source,
                    restricted=is_restricted(example),
                    kind=SAMPLED,
                )
            )
    return pairs
