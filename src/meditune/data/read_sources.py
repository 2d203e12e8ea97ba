"""Reading a recipe's sources: which can be had, what is in them, what is taken out at once.

Data whose licence forbids sending it to others.

Under which terms each row stands: licence, where it comes from, whether it is restricted or invented.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from meditune.config.data_options import DataSpec, SourceSpec
from meditune.data import row_decisions, sources
from meditune.data.deidentify import Findings, deidentify
from meditune.data.example import Example
from meditune.data.readers import mimic, user_files
from meditune.data.readers.tables import Rejects
from meditune.data.sources import SOURCES, known_source, locate_source
from meditune.data.splits import OFFICIAL
from meditune.errors import DataError

RESTRICTED = "restricted"
"""Key of an example's meta, and column of a user's table, that marks it"""


def is_restricted(example: Example) -> bool:
    """Whether the example is restricted: by its mark (of the reader, the recipe, or a column of the user's own file),

    or because it comes from a restricted source, also by way of a file that Meditune wrote before.
    """
    if is_marked(example.meta.get(RESTRICTED)):
        return True
    sources = (SOURCES.get(str(name)) for name in (example.source, example.meta.get("source")))
    return any(source.restricted for source in sources if source)


def is_marked(mark: object) -> bool:
    """Whether the cell of that column marks its row."""
    return bool(mark) and str(mark).strip().lower() not in {"false", "no", "0"}


def refuse_restricted_sources_for_api(specs: Iterable[SourceSpec], model_name: str) -> None:
    """Raise DataError if a source's rows are all restricted, by what it is or as the recipe says.

    It needs no reading, so it can come first.
    """
    restricted: dict[str, str] = {}
    for spec in specs:
        source = SOURCES.get(spec.name)
        if spec.restricted or (source and source.restricted):
            restricted[spec.name] = spec.licence or (source.licence if source else "restricted: true in the recipe")
    if restricted:
        raise _forbidden("Rows", restricted, model_name)


def refuse_restricted_for_api(examples: Iterable[Example], model_name: str) -> None:
    """Raise DataError if any of the examples may not be sent to `model_name`, a model on someone else's machine.

    Call this before the first request. PhysioNet's agreement forbids sharing credentialed data with third parties,
    online services included: https://physionet.org/news/post/gpt-responsible-use.
    """
    number = 0
    licences: dict[str, str] = {}
    for example in examples:
        if is_restricted(example):
            number += 1
            licences.setdefault(example.source, str(example.meta.get("licence", "its licence")))
    if number:
        raise _forbidden(f"{number:,} examples", licences, model_name)


def _forbidden(what: str, licences: dict[str, str], model_name: str) -> DataError:
    named = "; ".join(f"{source} ({licence})" for source, licence in sorted(licences.items()))
    return DataError(
        f"{what} from {named} may not be sent to {model_name}: their licence forbids passing rows to a third party. "
        "Use a model that runs on this machine, or leave that source out of the recipe."
    )


YOURS = "yours"
"""The licence of a user's own rows where neither they nor the recipe say another."""

Terms = dict[str, dict[str, Any]]
"""Source -> `rows`, `licences` (text -> rows), `citations`, `restricted` and `synthetic` (rows)"""


def marked(examples: Iterable[Example], spec: SourceSpec) -> Iterator[Example]:
    """The examples with the terms that the recipe states for their source, and a place to cite where they have none.

    What a row's own columns say of its licence stands above the recipe; that rows are restricted, either may say.
    """
    homepage = SOURCES[spec.name].homepage if spec.name in SOURCES else ""
    for example in examples:
        said: dict[str, Any] = {}
        if spec.licence and (spec.name != "own" or not example.meta.get("licence")):
            said["licence"] = spec.licence
        if spec.citation or (homepage and not example.meta.get("url")):
            said["citation"] = spec.citation or homepage
        if spec.restricted and not is_restricted(example):
            said["restricted"] = True
        yield example.model_copy(update={"meta": example.meta | said}) if said else example


def terms_of(examples: Iterable[Example]) -> Terms:
    """The terms of prepared examples, by source, as their rows say."""
    found: Terms = {}
    for example in examples:
        row = found.setdefault(
            example.source, {"rows": 0, "licences": Counter(), "citations": set(), "restricted": 0, "synthetic": 0}
        )
        row["rows"] += 1
        row["licences"][str(example.meta.get("licence") or YOURS)] += 1
        row["restricted"] += is_restricted(example)
        row["synthetic"] += bool(example.meta.get("synthetic"))
        if example.source not in SOURCES and example.meta.get("citation"):
            row["citations"].add(str(example.meta["citation"]))
    for name, row in found.items():
        known = [SOURCES[name].citation] if name in SOURCES and SOURCES[name].citation else []
        row["licences"] = dict(row["licences"].most_common())
        row["citations"] = known or sorted(row["citations"])[:20]
    return dict(sorted(found.items()))


def demands(terms: Terms) -> list[str]:
    """What the licences ask for together, as sentences."""
    return sources.demands({name: row["licences"] for name, row in terms.items()})


def restricted(terms: Terms) -> dict[str, int]:
    """Source -> restricted rows, where there are any."""
    return {name: row["restricted"] for name, row in terms.items() if row["restricted"]}


def warning(terms: Terms) -> str:
    """That the set is restricted, in words; empty where it isn't."""
    found = restricted(terms)
    if not found:
        return ""
    named = ", ".join(f"{rows:,} rows of {name} ({', '.join(terms[name]['licences'])})" for name, rows in found.items())
    return (
        f"RESTRICTED: {named}. The whole set, what is made of it and models tuned on it can give these rows away: "
        "don't share them, and don't send them to an online service. Meditune won't upload it or send it to an API."
    )


SAMPLE_TEST_SHARE = 0.4


def check_sources(spec: DataSpec) -> None:
    """Raise DataError where a source is unknown, or can't be split or found as the recipe says; reads no data.

    Of people's decisions it is seen that they can be read.
    """
    if spec.decisions is not None:
        row_decisions.read_decisions(Path(spec.decisions))
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
        if known_source(source.name).reader is None:
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
            locate_source(source.name, source.path)
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
        examples = list(user_files.read(source.path, rejects, fields=source.fields or None))
    else:
        reader = known_source(source.name).reader
        assert reader is not None, "check_sources has looked"
        if source.name == "mimic":
            print(mimic.NOTICE, file=sys.stderr)
        examples = list(reader(locate_source(source.name, source.path), rejects))
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
