"""Reading a recipe's sources: which can be had, what is in them, what is taken out at once."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

from meditune.data import decisions, mimic, own
from meditune.data.deidentify import Findings, deidentify
from meditune.data.example import Example
from meditune.data.locate import known, locate
from meditune.data.rejects import Rejects
from meditune.data.sources import SOURCES
from meditune.data.splits import OFFICIAL
from meditune.data.terms import YOURS, marked
from meditune.errors import DataError
from meditune.recipe import DataSpec, SourceSpec

SAMPLE_TEST_SHARE = 0.4


def check_sources(spec: DataSpec) -> None:
    """Raise DataError where a source is unknown, or can't be split or found as the recipe says; reads no data.

    Of people's decisions it is seen that they can be read.
    """
    if spec.decisions is not None:
        decisions.read_decisions(Path(spec.decisions))
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


def available(spec: DataSpec) -> tuple[DataSpec, bool]:
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
        plain = all(source.style == "plain" for source in spec.sources)
        sample = [SourceSpec(name="sample", style="plain" if plain else "expert")]
        return spec.model_copy(update={"sources": sample, "test_share": SAMPLE_TEST_SHARE}), True
    return spec, any(source.name == "sample" for source in spec.sources)


def read_sources(
    spec: DataSpec, seed: int, rejects: Rejects, phi: Findings
) -> tuple[dict[str, list[Example]], dict[str, dict[str, Any]]]:
    """Examples by source, and for each source how many were read, its licence, and what was refused and why.

    Identifiers of people are treated as `data.phi` says, and noted in `phi`. Raises DataError where an id comes twice.
    """
    by_source: dict[str, list[Example]] = {}
    read: dict[str, dict[str, Any]] = {}
    for source in spec.sources:
        examples = deidentify(read_source(source, seed, rejects), spec.phi, phi)
        by_source.setdefault(source.name, []).extend(examples)
        licence = source.licence or (SOURCES[source.name].licence if source.name in SOURCES else YOURS)
        read[source.name] = {"read": len(by_source[source.name]), "licence": licence}
    _refuse_repeated_ids(by_source)
    for name, row in read.items():
        row["rejected"] = rejects.counts().get(name, {})
    return by_source, read


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
    examples = list(marked(examples, source))
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
