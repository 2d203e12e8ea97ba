"""Read a recipe's sources, and record each row's terms: licence, citation, and marks (restricted, synthetic)."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from meditune.config.data_options import DataSpec, SourceSpec
from meditune.data import reviewer_decisions
from meditune.data.deidentify import Findings, deidentify
from meditune.data.example import Example
from meditune.data.readers import conversations, mimic, user_files
from meditune.data.readers.tables import Rejects
from meditune.data.sources import RELATIVE_HINT, SOURCES, known_source, locate_own, locate_source
from meditune.data.splits import OFFICIAL, sample
from meditune.errors import DataError

RESTRICTED = "restricted"
"""Key in an example's meta, and column in a user's table, that marks a restricted row"""


def is_restricted(example: Example) -> bool:
    """Return True if the example is marked as restricted or comes from a restricted source.

    For an example that was read from a prepared file, the original source counts, too.
    """
    if is_marked(example.meta.get(RESTRICTED)):
        return True
    sources = (SOURCES.get(str(name)) for name in (example.source, example.meta.get("source")))
    return any(source.restricted for source in sources if source)


def is_marked(mark: object) -> bool:
    """Return True if a value of a key or column such as RESTRICTED marks a row, and isn't false, no, 0 or blank."""
    return bool(mark) and str(mark).strip().lower() not in {"", "false", "no", "0", "0.0", "nan"}


def refuse_restricted_sources_for_api(specs: Iterable[SourceSpec], model_name: str) -> None:
    """Raise DataError if a source is entirely restricted, by its licence or by the recipe. No data are read."""
    restricted: dict[str, str] = {}
    for spec in specs:
        source = SOURCES.get(spec.name)
        if spec.restricted or (source and source.restricted):
            restricted[spec.name] = spec.licence or (source.licence if source else "restricted: true in the recipe")
    if restricted:
        raise _forbidden("Rows", restricted, model_name)


def refuse_restricted_for_api(examples: Iterable[Example], model_name: str) -> None:
    """Raise DataError if any of the examples may not be sent to `model_name`, a model on someone else's machine.

    PhysioNet forbids sharing credentialed data with online services:
    https://physionet.org/news/post/gpt-responsible-use.
    """
    held = [example for example in examples if is_restricted(example)]
    if held:
        licences = {example.source: str(example.meta.get("licence", "its licence")) for example in reversed(held)}
        raise _forbidden(f"{len(held):,} examples", licences, model_name)


def _forbidden(kind: str, licences: dict[str, str], model_name: str) -> DataError:
    named = "; ".join(f"{source} ({licence})" for source, licence in sorted(licences.items()))
    return DataError(
        f"{kind} from {named} may not be sent to {model_name}: their licence forbids passing rows to a third party. "
        "Use a model that runs on this machine, or remove the source from the recipe."
    )


YOURS = "yours"
"""The licence recorded for a user's own rows if neither the rows nor the recipe name a licence"""

Terms = dict[str, dict[str, Any]]
"""Source -> `rows`, `restricted` and `synthetic` (numbers of rows); `licences` (text -> number of rows); `citations`"""


def marked(examples: Iterable[Example], spec: SourceSpec) -> Iterator[Example]:
    """Yield the examples with the recipe's terms for the source; a licence in a user's own row takes precedence."""
    homepage = SOURCES[spec.name].homepage if spec.name in SOURCES else ""
    for example in examples:
        terms: dict[str, Any] = {}
        if spec.licence and (not spec.is_own or not example.meta.get("licence")):
            terms["licence"] = spec.licence
        if spec.citation or (homepage and not example.meta.get("url")):
            terms["citation"] = spec.citation or homepage
        if spec.restricted and not is_restricted(example):
            terms["restricted"] = True
        yield example.model_copy(update={"meta": example.meta | terms}) if terms else example


def terms_of(examples: Iterable[Example]) -> Terms:
    """Return the terms of prepared examples by source, from the meta of their rows."""
    found: Terms = {}
    for example in examples:
        row = found.setdefault(
            example.source, {"rows": 0, "licences": Counter(), "citations": set(), "restricted": 0, "synthetic": 0}
        )
        row["rows"] += 1
        row["licences"][str(example.meta.get("licence") or YOURS)] += 1
        row["restricted"] += is_restricted(example)
        row["synthetic"] += is_marked(example.meta.get("synthetic"))
        if example.source not in SOURCES and example.meta.get("citation"):
            row["citations"].add(str(example.meta["citation"]))
    for name, row in found.items():
        known = SOURCES[name].citation if name in SOURCES else ""
        row["licences"] = dict(row["licences"].most_common())
        row["citations"] = [known] if known else sorted(row["citations"])[:20]
    return dict(sorted(found.items()))


def restricted(terms: Terms) -> dict[str, int]:
    """Return source -> number of restricted rows, for the sources that have restricted rows."""
    return {name: row["restricted"] for name, row in terms.items() if row["restricted"]}


def warning(terms: Terms) -> str:
    """Return the warning for a restricted set; empty if the set isn't restricted."""
    found = restricted(terms)
    if not found:
        return ""
    named = ", ".join(f"{rows:,} rows of {name} ({', '.join(terms[name]['licences'])})" for name, rows in found.items())
    return (
        f"RESTRICTED: {named}. The entire set, anything derived from it and models tuned on it can reveal these rows. "
        "Don't share any of these or send them to an online service. Meditune won't upload the set "
        "or send it to an API."
    )


SAMPLE_TEST_SHARE = 0.4


def check_sources(spec: DataSpec) -> None:
    """Raise DataError if a source or the file of decisions doesn't fit the recipe's options, or if files are missing.

    The error names all missing files of the user's own and, in addition, the missing sources that Meditune can't
    download. The sources' data aren't read, and nothing is downloaded.
    """
    if spec.decisions is not None:
        reviewer_decisions.read_decisions(Path(spec.decisions))
    if spec.fold is not None and (spec.split != "official" or all(each.name != "pubmedqa" for each in spec.sources)):
        raise DataError(
            "data.fold selects one of the folds into which PubMedQA's publisher divided the training items. It needs "
            "the source pubmedqa in data.sources, and data.split: official."
        )
    splits: dict[str, str | None] = {}
    for source in spec.sources:
        if splits.setdefault(source.name, source.split) != source.split:
            raise DataError(
                f"data.sources: {source.name} occurs twice with different values of `split`. Give your own files "
                "different names, such as own/train and own/test."
            )
        if source.is_own:
            if source.path is None:
                raise DataError("data.sources: own needs a path: a file, or the id of a Hugging Face data set.")
            continue
        if source.labels:
            raise DataError(f"data.sources: {source.name} has labels of its own; `labels` is for your own files.")
        if known_source(source.name).reader is None:
            raise DataError(f"data.sources: {source.name} is plain text, not questions and answers.")
        if source.limit is not None and spec.split == "official" and source.name in OFFICIAL and not source.split:
            raise DataError(
                f"data.sources: {source.name} has an official split (data.split: official), which needs all rows of "
                "the source, so `limit` can't be used. To use a sample of the rows: --set data.split=group."
            )
    _refuse_missing(spec.sources)


def _refuse_missing(sources: Sequence[SourceSpec]) -> None:
    """Raise DataError if files of the user's own are missing, and name everything that the user must still get."""
    own: list[str] = []
    published: list[str] = []
    for source in sources:
        try:
            if source.is_own:
                locate_own(source.path or "", source.citation)
            elif not SOURCES[source.name].download:
                locate_source(source.name, source.path, download=False)
        except DataError as error:
            (own if source.is_own else published).append(str(error))
    if len(own) == 1 and not published:
        raise DataError(own[0])
    if own:
        files = dict.fromkeys(text.removesuffix(RELATIVE_HINT) for text in own)
        hint = [RELATIVE_HINT.strip()] if any(text.endswith(RELATIVE_HINT) for text in own) else []
        raise DataError("\n".join(["The data of several sources are missing.", *files, *published, *hint]))


def available(spec: DataSpec) -> tuple[DataSpec, bool]:
    """Return the data options with available sources, and True if one of these is the synthetic sample.

    If a source is unavailable, the sample replaces all sources. Raises DataError if the options don't allow that.
    """
    check_sources(spec)
    try:
        for source in spec.sources:
            if not source.is_own:
                locate_source(source.name, source.path)
    except DataError as error:
        if not spec.fallback_to_sample or spec.fold is not None or any(source.path for source in spec.sources):
            raise
        print(
            f"{error}\n\nContinuing with the SYNTHETIC sample that ships with Meditune. Its studies are invented: the "
            "run shows how everything works, but its metrics say nothing about medicine.",
            file=sys.stderr,
        )
        plain = all(source.style == "plain" for source in spec.sources)
        sources = [SourceSpec(name="sample", style="plain" if plain else "expert")]
        return spec.model_copy(update={"sources": sources, "test_share": SAMPLE_TEST_SHARE}), True
    return spec, any(source.name == "sample" for source in spec.sources)


def read_sources(
    spec: DataSpec, seed: int, rejects: Rejects, phi: Findings
) -> tuple[dict[str, list[Example]], dict[str, dict[str, Any]]]:
    """Return the examples by source, and, for each source, the licence and the numbers of rows read and rejected.

    Identifiers of people are treated according to `data.phi` and recorded in `phi`. Raises DataError for a repeated id.
    """
    by_source: dict[str, list[Example]] = {}
    read: dict[str, dict[str, Any]] = {}
    for source in spec.sources:
        changes: Counter[str] = Counter()
        path = locate_own(source.path or "", source.citation) if source.is_own else ""
        examples = deidentify(read_source(source, seed, rejects, changes), spec.phi, phi, path=path)
        by_source.setdefault(source.name, []).extend(examples)
        licence = source.licence or (SOURCES[source.name].licence if source.name in SOURCES else YOURS)
        before = Counter({name: read.get(source.name, {}).get(name, 0) for name in CHANGES})
        read[source.name] = {"read": len(by_source[source.name]), "licence": licence, **(+(changes + before))}
    ids = Counter(example.id for examples in by_source.values() for example in examples)
    for identifier, count in ids.most_common(1):
        if count > 1:
            raise DataError(
                f"data.sources: the id {identifier} occurs twice. List each source only once, and give your own files "
                "different names, such as own/clinic and own/ward. Within a file, ids must be unique."
            )
    for name, row in read.items():
        row["rejected"] = rejects.counts().get(name, {})
    return by_source, read


CHANGES = {
    conversations.STRIPPED: "the thoughts (<think> ... </think>) in {:,} assistant turns were removed; to keep "
    "them, set thoughts: keep for this source",
    conversations.UNANSWERED: "the last message of {:,} conversations has no reply and was left out",
}


def print_changes(source: str, changes: Counter[str]) -> None:
    """Print the changes made to a source's conversations (CHANGES)."""
    for name, count in changes.items():
        if count:
            print(f"{source}: {CHANGES[name].format(count)}.", file=sys.stderr)


def read_own(source: SourceSpec, rejects: Rejects, changes: Counter[str]) -> Iterator[Example]:
    """Yield the examples of a user's own file with the source's options; `changes` counts changes (CHANGES)."""
    assert source.path is not None, "check_sources checks this"
    options: dict[str, Any] = {"fields": source.fields or None, "labels": source.labels, "source": source.name}
    options |= {"thoughts": source.thoughts, "changes": changes}
    yield from user_files.read(locate_own(source.path, source.citation), rejects, **options)


def read_source(source: SourceSpec, seed: int, rejects: Rejects, changes: Counter[str] | None = None) -> list[Example]:
    """Return the examples of one source, or a seeded sample if it has a limit. Raises DataError if there are none.

    `changes` counts the changes made to conversations (CHANGES); the counts are also printed.
    """
    changes = Counter() if changes is None else changes
    if source.is_own:
        examples = list(read_own(source, rejects, changes))
    else:
        reader = known_source(source.name).reader
        assert reader is not None, "check_sources checks this"
        if source.name == "mimic":
            print(mimic.NOTICE, file=sys.stderr)
        examples = list(reader(locate_source(source.name, source.path), rejects))
    examples = list(marked(examples, source))
    print_changes(source.name, changes)
    if not examples:
        why = next((f" {row['where']}: {row['reason']}." for row in rejects.rows() if row["source"] == source.name), "")
        raise DataError(f"data.sources: no usable rows in {source.path or source.name}.{why}")
    return sample(examples, source.limit, f"{seed}/{source.name}")
