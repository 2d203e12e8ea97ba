"""Recipe keys that were removed or renamed, so that recipes and run folders of earlier versions can still be read.

The recipe.yaml of a run lists every key of the version that wrote it. A removed key at its old default has no effect
and is dropped; any other value is a problem, because the run would differ from what the recipe asks for.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

_PAIRS = "pairs come from corrupted answers, or from the file in train.preference.path"
_WHOLE_INDEX = "search an index that has only the wanted sources (meditune index build)"
_SHOWN_WORDS = "400 words around each passage are shown"

REMOVED: Mapping[str, tuple[Any, str]] = {
    "data.balance.share": (None, "set data.balance.cap, the maximum number of examples per group"),
    "data.balance.weights": (
        {},
        "for rare decisions, use train.class_balance and remove data.balance.by; for large groups, use "
        "data.balance.cap",
    ),
    "data.quality.max_answer_words": (2000, "the rule too_long applies to answers of more than 2,000 words"),
    "data.quality.min_answer_words": (3, "the rule too_short applies to answers of fewer than 3 words"),
    "evaluate.retrieve.sources": ([], _WHOLE_INDEX),
    "evaluate.retrieve.words": (400, _SHOWN_WORDS),
    "evaluate.sampled_answers": (50, "50 questions get sampled answers"),
    "model.api.poll_seconds": (15.0, "a training job is checked every 15 seconds"),
    "model.api.timeout_seconds": (120.0, "a request is repeated after 120 seconds"),
    "model.prune.rows": (64, "wanda and layers use 64 rows of calibration text"),
    "train.ewc.samples": (64, "the weights' importance is estimated on 64 rows"),
    "train.mix.curriculum": ("none", "every epoch is shuffled"),
    "train.mix.quota": ({}, "set train.mix.weights, or data.sources.N.limit"),
    "train.mix.temperature": (None, "set train.mix.weights"),
    "train.mix.unit": ("rows", "train.mix.weights counts rows"),
    "train.preference.held_out_share": (0.2, "a fifth of the file's groups is used for evaluation"),
    "train.preference.rated.margin": (1.0, "two ratings in a pair differ by at least 1"),
    "train.preference.rated.per_question": (10, "one question gives at most 10 pairs"),
    "train.preference.sampled.answers": (4, _PAIRS),
    "train.preference.sampled.margin": (0.1, _PAIRS),
    "train.preference.sampled.temperature": (1.0, _PAIRS),
    "train.preference.source": ("corrupted", _PAIRS),
    "train.replay.tokens": (128, "rows of the sources self and general have at most 128 tokens"),
    "train.retrieve.sources": ([], _WHOLE_INDEX),
    "train.retrieve.words": (400, _SHOWN_WORDS),
    # Groups come after their keys.
    "train.preference.rated": ({}, "two ratings in a pair differ by at least 1"),
    "train.preference.sampled": ({}, _PAIRS),
}
"""Dotted key -> its last default, and what took its place"""
REMOVED_KEY = "this key was removed; {}"
REMOVED_VALUES: Mapping[tuple[str, str], str] = {("train.objective", "orpo"): "use dpo"}
"""Dotted key and removed value -> what took the value's place"""
REMOVED_RECIPES: Mapping[str, str] = {
    name: f"use a recipe for your machine with this base, for example gpu-24gb with --set model.base={name}"
    for name in ("llama2-7b", "mistral-7b")
}
"""Recipe that was removed -> what took its place"""
RENAMED: Mapping[str, str] = {"data.quality.alike": "data.quality.near_duplicate_similarity"}
"""Dotted key -> its present name; both are read for one version"""


def rename_keys(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Move renamed keys to their present names in place, and yield both names of each."""
    for old, new in RENAMED.items():
        group, name = _group_of(values, old), old.rpartition(".")[2]
        target = _group_of(values, new)
        if group is not None and target is not None and name in group and new.rpartition(".")[2] not in target:
            target[new.rpartition(".")[2]] = group.pop(name)
            yield old, new


def drop_removed_keys(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Drop removed keys and values in place; yield the key of each that had an effect, with an error message."""
    for key, (default, replacement) in REMOVED.items():
        group, name = _group_of(values, key), key.rpartition(".")[2]
        if group is not None and name in group:
            value = group.pop(name)
            if value is not None and value != default:
                yield key, REMOVED_KEY.format(replacement)
    for (key, value), replacement in REMOVED_VALUES.items():
        group, name = _group_of(values, key), key.rpartition(".")[2]
        if group is not None and group.get(name) == value:
            del group[name]
            yield key, f"{value} was removed; {replacement}"


def _group_of(values: Any, key: str) -> dict[str, Any] | None:
    """Return the group that holds a dotted key; None if the values don't have it."""
    for part in key.split(".")[:-1]:
        values = values.get(part) if isinstance(values, dict) else None
    return values if isinstance(values, dict) else None


@cache
def note_renamed(old: str, new: str) -> None:
    """Tell the user once that a key has another name now."""
    print(f"Note: the recipe key {old} is now {new}. The next version doesn't read the old name.", file=sys.stderr)
