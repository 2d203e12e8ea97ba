"""What is in the data: counts, lengths, years, and that splits have nothing in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from meditune.data.diversity.profile import diversity
from meditune.data.example import Example
from meditune.data.near import LEAST_WORDS
from meditune.data.splits import Splits, backgrounds, context_key, instructions, question_key

BINS = 20


def facts(splits: Splits, read: dict[str, dict[str, Any]], dropped: dict[str, int]) -> dict[str, Any]:
    """What `quality.json` holds: counts per source and split, rows each rule dropped, what splits share, lengths,
    diversity."""
    everything = [*splits.train, *splits.dev, *splits.test]
    questions = Counter(question_key(example.question) for example in everything)
    return {
        "sources": read,
        "dropped": dropped,
        "repeated_questions": sum(count - 1 for count in questions.values()),
        "test_set": splits.test_set,
        "shared": shared(splits),
        "splits": {name: _facts(examples) for name, examples in splits.named().items()},
        "lengths": {
            "question": {"words": histogram(Counter(len(example.question.split()) for example in everything))},
            "context": {
                "words": histogram(Counter(sum(len(p.text.split()) for p in example.context) for example in everything))
            },
            "answer": {
                "words": histogram(Counter(len(example.answer.split()) for example in everything if example.answer))
            },
        },
        "diversity": diversity(splits),
    }


def shared(splits: Splits) -> dict[str, dict[str, int]]:
    """For each pair of splits how many ids, groups, questions and contexts both have, counted after the split.

    Questions that are put to many groups ("What is the diagnosis at discharge?"), contexts that most rows share, and
    those of a few words aren't counted: they don't tell items apart.
    """
    everything = [*splits.train, *splits.dev, *splits.test]
    asked, common = instructions(everything), backgrounds(everything)
    found: dict[str, dict[str, set[Any]]] = {}
    for name, examples in splits.named().items():
        contexts = {context_key(example) for example in examples}
        found[name] = {
            "ids": {example.id for example in examples},
            "groups": {(example.source, example.group) for example in examples},
            "questions": {question_key(example.question) for example in examples} - asked,
            "contexts": {key for key in contexts - common if len(key.split()) >= LEAST_WORDS},
        }
    return {
        f"{one} and {two}": {trait: len(found[one][trait] & found[two][trait]) for trait in found[one]}
        for one, two in combinations(found, 2)
    }


def _facts(examples: Sequence[Example]) -> dict[str, Any]:
    years = [example.meta["year"] for example in examples if isinstance(example.meta.get("year"), int)]
    return {
        "examples": len(examples),
        "groups": len({(example.source, example.group) for example in examples}),
        "sources": dict(Counter(example.source for example in examples)),
        "decisions": dict(Counter(example.decision for example in examples if example.decision)),
        "with_answer": sum(bool(example.answer) for example in examples),
        "years": [min(years), max(years)] if years else None,
    }


def histogram(values: Counter[int]) -> list[dict[str, int]]:
    """Up to BINS bins of equal width: {"from", "to" (not included), "count"}; `values` says how often each comes."""
    if not values:
        return []
    low, high = min(values), max(values)
    width = max(1, -(-(high - low + 1) // BINS))
    counts: Counter[int] = Counter()
    for value, times in values.items():
        counts[(value - low) // width] += times
    return [
        {"from": low + slot * width, "to": low + (slot + 1) * width, "count": counts[slot]}
        for slot in range(max(counts) + 1)
    ]
