"""The audit: what is in the data, and which rows are left out and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from meditune.data.diversity.profile import diversity
from meditune.data.example import Example
from meditune.data.rejects import Rejects
from meditune.data.splits import Splits, question_key

BINS = 20


def without_duplicates(examples: Iterable[Example], rejects: Rejects) -> list[Example]:
    """Examples whose question, context and answer didn't come before; the others go to `rejects`."""
    first: dict[tuple[str, ...], str] = {}
    kept = []
    for example in examples:
        key = (
            question_key(example.question),
            question_key(" ".join(passage.text for passage in example.context)),
            question_key(example.answer),
            example.decision or "",
        )
        if key in first:
            reason = f"exact duplicate of {first[key]}"
            rejects.add(example.source, example.id, "exact duplicate", {"id": example.id, "duplicate": reason})
        else:
            first[key] = example.id
            kept.append(example)
    return kept


def facts(splits: Splits, read: dict[str, dict[str, Any]], duplicates: int) -> dict[str, Any]:
    """What `quality.json` holds: counts per source and split, repeated questions, lengths, diversity."""
    everything = [*splits.train, *splits.dev, *splits.test]
    questions = Counter(question_key(example.question) for example in everything)
    return {
        "sources": read,
        "dropped": {"exact duplicate": duplicates},
        "repeated_questions": sum(count - 1 for count in questions.values()),
        "test_set": splits.test_set,
        "splits": {name: _facts(examples) for name, examples in splits.named().items()},
        "lengths": {
            "question": {"words": _histogram([len(example.question.split()) for example in everything])},
            "context": {
                "words": _histogram([sum(len(p.text.split()) for p in example.context) for example in everything])
            },
            "answer": {"words": _histogram([len(example.answer.split()) for example in everything if example.answer])},
        },
        "diversity": diversity(splits),
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


def _histogram(values: Sequence[int]) -> list[dict[str, int]]:
    """Up to BINS bins of equal width: {"from", "to" (not included), "count"}."""
    if not values:
        return []
    low, high = min(values), max(values)
    width = max(1, -(-(high - low + 1) // BINS))
    counts = Counter((value - low) // width for value in values)
    return [
        {"from": low + slot * width, "to": low + (slot + 1) * width, "count": counts[slot]}
        for slot in range(max(counts) + 1)
    ]
