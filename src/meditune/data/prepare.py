"""The data stage: find, read, check, split, and write down what was done."""

from __future__ import annotations

import hashlib
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meditune.data import leakage, mimic, own
from meditune.data.card import data_card
from meditune.data.deidentify import Findings, cleaner, deidentify
from meditune.data.example import Example, read_examples, write_examples
from meditune.data.locate import known, locate
from meditune.data.quality import facts, without_duplicates
from meditune.data.rejects import Rejects
from meditune.data.sources import SOURCES
from meditune.data.splits import OFFICIAL, Splits, split
from meditune.errors import DataError
from meditune.files import read_json, replacing, replacing_folder, sha256, write_json
from meditune.recipe import DataSpec, Recipe, SourceSpec

SAMPLE_TEST_SHARE = 0.4


@dataclass(frozen=True)
class Prepared:
    """The prepared data of a run, as stored in its `data/`."""

    splits: Splits
    quality: dict[str, Any]

    @property
    def synthetic(self) -> bool:
        """Whether the invented sample took the place of real data."""
        return bool(self.quality["synthetic"])

    @property
    def sha256(self) -> str:
        """Of the three splits' content."""
        return str(self.quality["sha256"])


def prepare(recipe: Recipe, folder: Path) -> Prepared:
    """Read the recipe's sources, audit and split them, and leave the result in `folder`, whole or not at all.

    Raises DataError where a source can't be found, nothing is left, or items that are measured leaked and the
    recipe doesn't own up to it. What was refused is then in `rejected.jsonl` beside the folder, too.
    """
    spec, synthetic = _available(recipe.data)
    rejects, phi = Rejects(cleaner(recipe.data.phi)), Findings(recipe.data.phi)
    beside = folder.parent / "rejected.jsonl"
    try:
        splits, found = _read_and_split(spec, recipe.seed, rejects, phi)
        measured = recipe.evaluate.split
        checked = leakage.check(splits, measured, recipe.model.base)
        leakage.refuse(checked, recipe.evaluate.allow_leakage, folder.parent)
    except DataError as error:
        if not any(True for _ in rejects.rows()):
            raise
        rejects.write(beside)
        raise DataError(f"{error} Rows that were refused, and why: {beside}.") from error
    quality = {"synthetic": synthetic, **found, "leakage": checked, "phi": phi.facts()}
    with replacing_folder(folder) as partial:
        phi.write(partial)
        rejects.write(partial / "rejected.jsonl")
        for name, examples in splits.named().items():
            write_examples(partial / f"{name}.jsonl", examples)
        quality["sha256"] = _digest([partial / f"{name}.jsonl" for name in splits.named()])
        write_json(partial / "quality.json", quality)
        with replacing(partial / "README.md") as stream:
            stream.write(data_card(recipe, quality))
    beside.unlink(missing_ok=True)
    return Prepared(splits, quality)


def stored(folder: Path) -> Prepared:
    """What `prepare` left in `folder`. Raises DataError where it isn't whole or was changed since."""
    quality = read_json(folder / "quality.json")
    paths = {name: folder / f"{name}.jsonl" for name in ("train", "dev", "test")}
    missing = [path.name for path in paths.values() if not path.is_file()]
    if missing:
        raise DataError(f"{folder}: {', '.join(missing)} is missing. Remove the run's folder and start again.")
    if _digest(list(paths.values())) != quality["sha256"]:
        raise DataError(
            f"{folder}: the prepared splits were changed after they were made (their SHA-256 differs from "
            "quality.json). Remove the run's folder and start again."
        )
    return Prepared(
        Splits(**{name: read_examples(path) for name, path in paths.items()}, test_set=quality["test_set"]), quality
    )


def check_sources(spec: DataSpec) -> None:
    """Raise DataError where a source is unknown, or can't be split or found as the recipe says; reads no data."""
    if spec.fold is not None and (spec.split != "official" or all(each.name != "pubmedqa" for each in spec.sources)):
        raise DataError(
            "data.fold names one of the folds that PubMedQA's publisher made of its training items, which needs "
            "pubmedqa among data.sources and data.split: official."
        )
    for source in spec.sources:
        if source.name == "own":
            if source.path is None:
                raise DataError("data.sources: name: own needs a path, a file or a Hugging Face data-set id.")
            continue
        if known(source.name).reader is None:
            raise DataError(f"data.sources: {source.name} is plain text, not questions and answers.")
        if source.limit is not None and spec.split == "official" and source.name in OFFICIAL:
            raise DataError(
                f"data.sources: {source.name} is split as its publisher did (data.split: official), which needs all "
                "of it. To work with a sample of it: --set data.split=group."
            )


def stood_in(spec: DataSpec, data: Prepared) -> bool:
    """Whether the sample took the place of sources that can be had by now, without fetching them."""
    if not data.synthetic or any(source.name == "sample" for source in spec.sources):
        return False
    try:
        for source in spec.sources:
            locate(source.name, source.path, download=False)
    except DataError:
        return False
    return True


def _available(spec: DataSpec) -> tuple[DataSpec, bool]:
    """The sources as they can be had here, and whether that is the synthetic sample instead."""
    check_sources(spec)
    named = [source for source in spec.sources if source.name != "own"]
    try:
        for source in named:
            locate(source.name, source.path)
    except DataError as error:
        if not spec.fallback_to_sample or spec.fold is not None or any(source.path for source in spec.sources):
            raise
        print(
            f"{error}\n\nGoing on with the SYNTHETIC sample that ships with Meditune. Its studies are invented: the "
            "run shows how everything works, and its figures say nothing about medicine.",
            file=sys.stderr,
        )
        sample = [SourceSpec(name="sample")]
        return spec.model_copy(update={"sources": sample, "test_share": SAMPLE_TEST_SHARE}), True
    return spec, any(source.name == "sample" for source in spec.sources)


def _read_and_split(spec: DataSpec, seed: int, rejects: Rejects, phi: Findings) -> tuple[Splits, dict[str, Any]]:
    by_source: dict[str, list[Example]] = {}
    read: dict[str, dict[str, Any]] = {}
    for source in spec.sources:
        examples = deidentify(read_source(source, seed, rejects), spec.phi, phi)
        by_source.setdefault(source.name, []).extend(examples)
        licence = SOURCES[source.name].licence if source.name in SOURCES else "yours"
        read[source.name] = {"read": len(by_source[source.name]), "licence": licence}
    _refuse_repeated_ids(by_source)
    before = sum(map(len, by_source.values()))
    by_source = {name: without_duplicates(examples, rejects) for name, examples in by_source.items()}
    duplicates = before - sum(map(len, by_source.values()))
    for name, row in read.items():
        row["rejected"] = rejects.counts().get(name, {})
    splits = split(by_source, spec.split == "official", spec.test_share, spec.dev_share, seed, spec.fold)
    return splits, facts(splits, read, duplicates)


def read_source(source: SourceSpec, seed: int, rejects: Rejects) -> list[Example]:
    """The examples of one source, or its seeded sample where it has a limit. Raises DataError where there are none."""
    if source.name == "own":
        assert source.path is not None, "check_sources has looked"
        examples = list(own.read(source.path, rejects, fields=source.fields or None))
    else:
        reader = known(source.name).reader
        assert reader is not None, "check_sources has looked"
        if source.name == "mimic":
            print(mimic.NOTICE, file=sys.stderr)
        examples = list(reader(locate(source.name, source.path), rejects))
    if not examples:
        raise DataError(f"data.sources: nothing usable was read from {source.path or source.name}.")
    if source.limit is not None and len(examples) > source.limit:
        chosen = random.Random(f"{seed}/{source.name}").sample(range(len(examples)), source.limit)
        examples = [examples[index] for index in sorted(chosen)]
    return examples


def _refuse_repeated_ids(by_source: dict[str, list[Example]]) -> None:
    seen: set[str] = set()
    for example in (example for examples in by_source.values() for example in examples):
        if example.id in seen:
            raise DataError(
                f"data.sources: the id {example.id} comes twice. Name each source once, and give rows of your own "
                "files ids that differ from file to file."
            )
        seen.add(example.id)


def _digest(paths: list[Path]) -> str:
    return hashlib.sha256("".join(sha256(path) for path in paths).encode()).hexdigest()
