"""Find and read a recipe's public medical tests, store them in the run's folder, and check them for leakage.

`suites.yaml` describes the tests; `suite_readers` has their readers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from meditune.config.recipe import Recipe, SuiteName, SuiteSpec
from meditune.data import leakage
from meditune.data.example import Example, read_examples, write_records
from meditune.data.readers import pubmedqa
from meditune.data.readers.tables import Rejects, Row
from meditune.data.readers.user_files import hub_rows
from meditune.data.sources import data_places, locate_own, locate_source
from meditune.data.splits import Splits, sample
from meditune.errors import DataError
from meditune.evaluate.predictions import Kind, suite_kind
from meditune.evaluate.suites import suite_readers as readers
from meditune.files import package_table, read_json, read_jsonl, sha256, write_json, write_jsonl
from meditune.text import counted_reasons

FOLDER = "suites"
FACTS = "suites.json"
"""File in FOLDER: suite -> title, licence, homepage, origin, items, rejects by reason, labels, scoring, SHA-256"""
MAX_LABELS = 200
"""Maximum number of physicians' labels (a seeded sample) on which a judge's agreement is measured"""
Suites = dict[SuiteName, list[Example]]


class Suite(BaseModel):
    """A public medical test, with the fields of suites.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: SuiteName
    title: str
    licence: str
    homepage: str
    scoring: str
    how: str
    files: tuple[str, ...]
    hub: tuple[tuple[str | None, str], ...]
    hub_files: str | None = None
    labels: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        """The kind of the predictions on this suite."""
        return suite_kind(self.name)


_DESCRIBED = package_table(Path(__file__).with_name("suites.yaml"))
SUITES: dict[SuiteName, Suite] = {row["name"]: Suite.model_validate(row) for row in _DESCRIBED}


def read_suite(spec: SuiteSpec, seed: int, rejects: Rejects) -> tuple[list[Example], str]:
    """Return the items to measure (a seeded sample if the recipe limits their number) and their path or hub id.

    Raises DataError, which explains how to get the files, if there are no files or no usable rows.
    """
    suite = SUITES[spec.name]
    place = _locate(suite, spec.path)
    if suite.name != "pubmedqa":
        examples = readers.examples_of(suite.name, _rows(suite, place, rejects), readers.MAKE[suite.name], rejects)
    elif isinstance(place, Path):
        examples = readers.read_pubmedqa(place, rejects)
    else:
        examples = readers.official_pubmedqa(pubmedqa.from_rows(_rows(suite, place, rejects), rejects))
    if not examples:
        reasons = counted_reasons(rejects.counts().get(suite.name, {}))
        raise DataError(
            f"evaluate.suites: no usable rows of {suite.name} in {place}{f' ({reasons})' if reasons else ''}. "
            f"{suite.how}."
        )
    return sample(examples, spec.limit, f"{seed}/{suite.name}"), str(place)


def _locate(suite: Suite, path: str | None) -> Path | str:
    """Return the path of the suite's file or folder, or a hub id as given. Raises DataError if there are no files."""
    if path is not None:
        found = locate_own(path, suite.homepage)
        return Path(found) if Path(found).exists() else found
    if suite.name == "pubmedqa":
        return locate_source("pubmedqa")
    places = data_places(suite.name)
    for place in places:
        if _files(suite, place):
            return place
    raise DataError(
        f"evaluate.suites: no files of {suite.name} in {' or '.join(map(str, places))}. {suite.how}, and put it into "
        f"{places[-1]}, or specify its path: --set 'evaluate.suites=[{{name: {suite.name}, path: FOLDER}}]'."
    )


def _files(suite: Suite, place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    for pattern in suite.files if place.is_dir() else ():
        found = sorted(place.glob(pattern))
        if suite.name == "mmlu-medical":
            subjects = readers.MMLU_SUBJECTS
            found = [
                file
                for file in found
                if file.suffix == ".jsonl"
                or file.stem.removesuffix("_test") in subjects
                or file.parent.name in subjects
            ]
        if found:
            return found
    return []


def _rows(suite: Suite, place: Path | str, rejects: Rejects) -> Iterator[Row]:
    if isinstance(place, str):
        for config, split in suite.hub:
            yield from hub_rows(place, split, config, suite.hub_files)
        return
    files = _files(suite, place)
    if not files:
        raise DataError(f"{place} contains none of the files {', '.join(suite.files)}. {suite.how}.")
    for file in files:
        if suite.name == "mmlu-medical" and file.suffix == ".csv":
            yield from readers.mmlu_csv_rows(file)
        elif suite.name == "medmcqa":
            yield from readers.medmcqa_rows(readers.table_rows(file, suite.name, rejects))
        else:
            yield from readers.table_rows(file, suite.name, rejects)


def read_labels(suite: Suite, place: str, seed: int, rejects: Rejects) -> list[dict[str, Any]]:
    """Return physicians' labels of answers: `id`, `question`, `turns`, `answer`, `statement` and `label`.

    The label is yes, no or maybe. The result is empty if the suite has no such labels or their file is missing.
    """
    folder = Path(place) if Path(place).is_dir() else Path(place).parent
    if not suite.labels or not folder.is_dir() or not Path(place).exists():
        return []
    files = next((some for pattern in suite.labels if (some := sorted(folder.glob(pattern)))), [])
    label = readers.LABEL[suite.name]
    found = [label(row) for file in files for _, row in readers.table_rows(file, suite.name, rejects)]
    labels = [dict(row, id=f"label-{number}") for number, row in enumerate(found) if row]
    return sample(labels, MAX_LABELS, f"{seed}/{suite.name}/labels")


def prepare_suites(recipe: Recipe, folder: Path) -> Suites:
    """Read the items of the recipe's suites, store those that aren't stored in the run's folder, and return all items.

    Raises DataError if a suite's files are missing or unusable.
    """
    place = folder / FOLDER
    facts = suite_facts(folder)
    for spec in recipe.evaluate.suites:
        path = place / f"{spec.name}.jsonl"
        if spec.name in facts and path.is_file():
            continue
        suite, rejects = SUITES[spec.name], Rejects()
        examples, origin = read_suite(spec, recipe.seed, rejects)
        write_records(path, examples)
        labels = read_labels(suite, origin, recipe.seed, rejects)
        if labels:
            write_jsonl(place / f"{spec.name}-labels.jsonl", labels)
        facts[spec.name] = suite.model_dump(include={"title", "licence", "homepage"}) | {
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
    """Return the stored items. Raises DataError if a file is missing or was changed after it was written."""
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
    """Return the stored items of all suites in one list."""
    return [example for examples in stored_suites(recipe, folder).values() for example in examples]


def suite_facts(folder: Path) -> dict[SuiteName, Any]:
    """Return the content of suites.json; empty if no suites were measured."""
    path = folder / FOLDER / FACTS
    found: dict[SuiteName, Any] = read_json(path) if path.is_file() else {}
    return found


def stored_labels(folder: Path, name: SuiteName) -> list[dict[str, Any]]:
    """Return the physicians' labels of a suite; empty without any."""
    path = folder / FOLDER / f"{name}-labels.jsonl"
    return read_jsonl(path) if path.is_file() else []


def check_suites(
    suites: Mapping[SuiteName, Sequence[Example]],
    splits: Splits,
    records: Sequence[leakage.Record],
    trained: Sequence[Example],
) -> dict[str, Any]:
    """Return suite -> the number of `items`, and the leaks `found` in the training data, in the format of leakage.json.

    Prompts contain the choices by design, so prompts aren't searched for answers.
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
