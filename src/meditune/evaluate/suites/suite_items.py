"""The items of a run's public tests, stored once in its folder, and their check against the training data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from meditune.config.recipe import Recipe, SuiteName
from meditune.data import leakage
from meditune.data.example import Example, read_examples, write_examples
from meditune.data.readers.tables import Rejects
from meditune.data.splits import Splits
from meditune.errors import DataError
from meditune.evaluate.suites.medical_suites import SUITES, read_labels, read_suite
from meditune.files import read_json, read_jsonl, sha256, write_json, write_jsonl

FOLDER = "suites"
FACTS = "suites.json"
"""File in FOLDER: suite -> title, licence, homepage, place, items, rejected rows by reason, SHA-256 and scoring"""
Suites = dict[SuiteName, list[Example]]


def prepare_suites(recipe: Recipe, folder: Path) -> Suites:
    """Return the items of the recipe's suites, read now or earlier, and store them in the run's folder.

    Raises DataError if a suite's files are missing or unusable.
    """
    place = folder / FOLDER
    facts: dict[str, Any] = read_json(place / FACTS) if (place / FACTS).is_file() else {}
    for spec in recipe.evaluate.suites:
        path = place / f"{spec.name}.jsonl"
        if spec.name in facts and path.is_file():
            continue
        suite, rejects = SUITES[spec.name], Rejects()
        examples, origin = read_suite(spec, recipe.seed, rejects)
        write_examples(path, examples)
        labels = read_labels(suite, origin, recipe.seed, rejects)
        if labels:
            write_jsonl(labels_file(folder, spec.name), labels)
        facts[spec.name] = {
            "title": suite.title,
            "licence": suite.licence,
            "homepage": suite.homepage,
            "from": origin,
            "items": len(examples),
            "rejected": rejects.counts().get(spec.name, {}),
            "labels": len(labels),
            "scoring": suite.scoring,
            "sha256": sha256(path),
        }
        write_json(place / FACTS, facts)
    return stored_suites(recipe, folder)


def stored_suites(recipe: Recipe, folder: Path) -> Suites:
    """Return the stored items. Raises DataError if they were changed since."""
    if not recipe.evaluate.suites:
        return {}
    facts, found = suite_facts(folder), {}
    for spec in recipe.evaluate.suites:
        path = folder / FOLDER / f"{spec.name}.jsonl"
        if spec.name not in facts or not path.is_file():
            raise DataError(f"{path} is missing. Run the same command again in another folder.")
        if sha256(path) != facts[spec.name]["sha256"]:
            raise DataError(f"{path} was changed after it was written. Remove the run's folder and start again.")
        found[spec.name] = read_examples(path)
    return found


def suite_examples(recipe: Recipe, folder: Path) -> list[Example]:
    """Return the items of all suites."""
    return [example for examples in stored_suites(recipe, folder).values() for example in examples]


def suite_facts(folder: Path) -> dict[str, Any]:
    """Return the content of suites.json; empty if no suites were measured."""
    path = folder / FOLDER / FACTS
    found: dict[str, Any] = read_json(path) if path.is_file() else {}
    return found


def labels_file(folder: Path, name: SuiteName) -> Path:
    """Return the file with the physicians' labels of a suite."""
    return folder / FOLDER / f"{name}-labels.jsonl"


def stored_labels(folder: Path, name: SuiteName) -> list[dict[str, Any]]:
    """Return the physicians' labels of a suite; empty without any."""
    path = labels_file(folder, name)
    return read_jsonl(path) if path.is_file() else []


def check_suites(
    suites: Mapping[SuiteName, Sequence[Example]],
    splits: Splits,
    records: Sequence[leakage.Record],
    trained: Sequence[Example],
) -> dict[str, Any]:
    """Return suite -> number of `items`, and what was `found` in the training data, as in leakage.json.

    The training data are the run's train and dev splits, the records of the model, and its own run's examples. A
    choice stands in its prompt by design, so prompts aren't searched for answers.
    """
    # All suites are compared at once, because most of the time is spent on reading the training data.
    every = [item for items in suites.values() for item in items]
    leaks = [
        leak
        for leak in leakage.find([*splits.train, *splits.dev], every)
        if leak.kind in ("group", "question", "context")
    ]
    leaks += leakage.known_test_items(records, trained, every)
    of_test: dict[str, list[leakage.Leak]] = defaultdict(list)
    for leak in leaks:
        of_test[leak.test].append(leak)
    return {
        name: {"items": len(items), "found": leakage.facts([leak for item in items for leak in of_test[item.id]])}
        for name, items in suites.items()
    }
