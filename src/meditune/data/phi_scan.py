"""`meditune data phi`: find patient identifiers in a file or a recipe's data, and write a copy that masks them."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from meditune.config.data_options import KINDS, Kind, PhiSpec
from meditune.config.load_recipe import load_recipe
from meditune.data.deidentify import (
    Findings,
    IdentifierCounts,
    deidentify,
    found_at,
    key_finder,
    leaves,
    searched_texts,
    with_leaves,
    with_masked_keys,
)
from meditune.data.example import SURROGATES, Example, plain_text
from meditune.data.read_sources import check_sources, read_source
from meditune.data.readers import tables
from meditune.data.readers.tables import Rejects
from meditune.errors import DataError
from meditune.files import read_text, replace_file
from meditune.phi.detector import ENGINES, Engine, engine, masked
from meditune.phi.spans import Span
from meditune.phi.surrogates import Surrogates, surrogate_secret
from meditune.progress import track
from meditune.text import counted

ACTIONS = ("mask", "surrogate")
WRITABLE = (".jsonl", ".csv", ".tsv")
_TEXT = (".txt", ".text", ".md", ".markdown", "")
_RECIPES = (".yaml", ".yml")
_AROUND = 48
_SURROGATE = re.compile("[\ud800-\udfff]")
MIN_TEXT_WORDS = 10
"""A column's name with this number of words and an identifier is rather a cell of a table without a header"""
_SEARCHING = "Searching for identifiers"


@dataclass
class Scan:
    """The result of scanning a file or source: counts of rows and identifiers, and the first locations found."""

    what: str
    counts: IdentifierCounts = field(default_factory=IdentifierCounts)
    places: list[str] = field(default_factory=list)


def scan(
    what: str,
    output: Path | None,
    action: str | None,
    group: str | None,
    kinds: Sequence[str],
    finder: str | None,
    show: int,
    overrides: Sequence[str],
) -> list[Scan]:
    """Return one result for a file, or one result for each source of a recipe.

    If `output` is given, write a copy of the file to it atomically, with the identifiers found masked or replaced.
    Error messages don't repeat the file's content. Raises DataError if an option is invalid or the file can't be read.
    """
    file = Path(what)
    for name in kinds:
        if name not in KINDS:
            raise DataError(f"--kind {name}: unknown kind. Choose from {', '.join(KINDS)}.")
    chosen = [kind for kind in KINDS if kind in kinds]
    if finder is not None and finder not in ENGINES:
        raise DataError(f"--engine {finder}: unknown engine. Choose from {' and '.join(ENGINES)}.")
    if action is not None and (action not in ACTIONS or output is None):
        raise DataError(f"--action {action}: the action must be {' or '.join(ACTIONS)}, and it needs --output OUT.")
    if output is not None and output.exists():
        raise DataError(f"--output {output}: the file already exists and won't be overwritten. Choose another name.")
    if file.suffix.lower() in _RECIPES or (not file.is_file() and file.suffix not in {*tables.FORMATS, ".txt"}):
        if output or group:
            raise DataError(
                "--output and --patient-column need a file. To mask the data of a recipe: --set data.phi.action=mask."
            )
        return _scan_recipe(what, overrides, chosen, finder, show)
    if overrides:
        raise DataError(f"--set changes a key of a recipe, but {file} is a file of data. Omit --set.")
    is_text = file.suffix.lower() in _TEXT
    if output is not None and not is_text and output.suffix.lower() not in WRITABLE:
        raise DataError(f"--output {output}: the file name must end in one of {', '.join(WRITABLE)}.")
    result, rejects = Scan(str(file)), Rejects()
    if is_text:
        found_rows: Iterator[tables.Row] = iter([(str(file), {"": read_text(file)})])
    else:
        found_rows = track(tables.rows(file, "file", rejects), _SEARCHING, unit="rows")
    if output is not None and file.suffix.lower() in {".csv", ".tsv"}:
        found_rows = _refuse_missing_header(file, found_rows, chosen)
    rows = _changed_rows(found_rows, is_text, engine(finder or "rules"), chosen, action, group, show, result)
    if output is None:
        deque(rows, maxlen=0)
    else:
        with replace_file(output) as stream:
            _write(rows, stream, "" if is_text else output.suffix.lower())
    if len(rejects):
        were = "was" if len(rejects) == 1 else "were"
        print(f"{file}: {counted(len(rejects), 'row')} couldn't be read and {were} left out.", file=sys.stderr)
    return [result]


def scan_lines(scans: Sequence[Scan]) -> Iterator[str]:
    """Yield the results as lines of text: for each scan, a table of kinds, then the locations of identifiers."""
    for each in scans:
        counts = each.counts
        rows = f"{counts.with_identifiers:,} of {counts.examples:,} rows"
        yield f"{each.what}: {rows} contain likely identifiers of people."
        if counts.kinds:
            yield f"  {'kind':<12} {'found':>9} {'in rows':>9}"
        for kind, count in counts.kinds.most_common():
            yield f"  {kind:<12} {count:>9,} {counts.examples_by_kind[kind]:>9,}"
        yield from (f"  {place}" for place in each.places)
    yield (
        "The rules miss some identifiers and mark some harmless text (docs/how-to/find-identifiers.md), so this result "
        "doesn't prove that a text is free of identifiers."
    )


def _scan_recipe(name: str, overrides: Sequence[str], kinds: list[Kind], finder: str | None, show: int) -> list[Scan]:
    recipe = load_recipe(name, list(overrides)).recipe
    used = "presidio" if finder == "presidio" else recipe.data.phi.engine
    spec = PhiSpec(action="report", kinds=kinds or recipe.data.phi.kinds, engine=used)
    check_sources(recipe.data)
    results = []
    for source in recipe.data.sources:
        findings = Findings(spec)
        examples = deidentify(read_source(source, recipe.seed, Rejects()), spec, findings, warn=False)
        places = _places(examples, findings, spec, show)
        results += [Scan(found, counts, places) for found, counts in findings.sources.items()]
        show -= len(places)
    return results


def _places(examples: Sequence[Example], findings: Findings, spec: PhiSpec, most: int) -> list[str]:
    """Return a line, as from `_shown`, for each of the first `most` identifiers in the examples of one source."""
    spans: dict[tuple[str, str], list[Span]] = defaultdict(list)
    for row in findings.rows if most > 0 else ():
        spans[row["id"], row["field"]].append(Span(row["start"], row["end"], row["kind"]))
    lines: list[str] = []
    for example in examples if spans else ():
        for path, text in searched_texts(example, spec).items():
            field = ".".join(path)
            lines += _shown(f"{example.id} {field}", text, spans.get((example.id, field), ()), most - len(lines))
    return lines


def _changed_rows(
    found_rows: Iterator[tables.Row],
    is_text: bool,
    find: Engine,
    kinds: list[Kind],
    action: str | None,
    group: str | None,
    show: int,
    result: Scan,
) -> Iterator[tables.Row]:
    """Yield the rows with identifiers replaced, and record the identifiers in `result`; a text file is one row."""
    secret = surrogate_secret() if action == "surrogate" else b""
    spans_of = key_finder(kinds)
    for place, row in found_rows:
        if group is not None and group not in row and not is_text:
            raise DataError(
                f"{place}: no column {group} (--patient-column). The columns are {', '.join(map(str, row))}."
            )
        patient = "" if group is None or is_text else str(row[group])
        row = {name: _decoded(value, f"{place}, column {name}") for name, value in row.items()}
        row, keys = with_masked_keys(row, spans_of)
        texts = dict(leaf for name, value in row.items() for leaf in leaves(value, (str(name),)))
        found = found_at(texts, find, kinds, headed=() if is_text else texts)
        found = {path: spans for path, spans in found.items() if spans}
        every = keys | {path: (texts[path], spans) for path, spans in found.items()}
        result.counts.add([span for _, spans in every.values() for span in spans])
        for path, (text, spans) in every.items():
            where = f"{place} {'.'.join(path)}".strip()
            result.places += _shown(where, text, spans, show - len(result.places))
        if action == "surrogate":
            new = Surrogates(secret, patient).replaced_in(texts, found)
        else:
            new = {path: masked(texts[path], spans) for path, spans in found.items()}
        yield place, {name: with_leaves(value, (str(name),), new) for name, value in row.items()}


def _refuse_missing_header(file: Path, found_rows: Iterator[tables.Row], kinds: Sequence[Kind]) -> Iterator[tables.Row]:
    """Yield the rows of a table. Raises DataError if the names of its columns look like the cells of a row.

    A name with an identifier looks like a cell if it is a long text, or if the cell below it has the same kind.
    """
    spans_of, found = key_finder(kinds), set[str]()
    for number, (place, row) in enumerate(found_rows):
        for name, value in row.items() if not number else ():
            in_name = {span.kind for span in spans_of(name)}
            is_long = len(name.split()) >= MIN_TEXT_WORDS
            found |= in_name if is_long else in_name & {span.kind for span in spans_of(str(value))}
        if found:
            raise DataError(
                f"{file}, line 1: the names of the columns contain likely identifiers of people "
                f"({', '.join(sorted(found))}), so it looks like the file has no header. Add a first line with the "
                "names of the columns. If line 1 is the header, rename these columns."
            )
        yield place, row


def _decoded(value: Any, place: str) -> Any:
    """Return a cell with bytes as text, so that they are searched. Raises DataError if they aren't text."""
    try:
        return plain_text(value, strict=True)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place}: the bytes aren't text (UTF-8), so they can't be searched for identifiers. Remove the column "
            "from the file, or convert it to text."
        ) from error


def _write(rows: Iterator[tables.Row], stream: TextIO, kind: str) -> None:
    if not kind:
        stream.writelines(row[""] for _, row in rows)
    elif kind == ".jsonl":
        stream.writelines(_json_line(row) for _, row in rows)
    elif first := next(rows, None):
        columns = list(first[1])
        writer = csv.DictWriter(stream, columns, delimiter="\t" if kind == ".tsv" else ",", lineterminator="\n")
        for number, (place, row) in enumerate(chain([first], rows)):
            _refuse_cells(place, row, columns, kind)
            if not number:
                writer.writeheader()
            writer.writerow(row)


def _json_line(row: dict[str, Any]) -> str:
    line = json.dumps(row, ensure_ascii=False, default=str)
    return (json.dumps(row, default=str) if _SURROGATE.search(line) else line) + "\n"


def _refuse_cells(place: str, row: dict[str, Any], columns: Sequence[str], kind: str) -> None:
    """Raise DataError if a row doesn't fit into a table with these columns."""
    for name, value in row.items():
        problem = ""
        if name not in columns:
            problem = "is missing in the first row, which defines the columns"
        elif isinstance(value, dict | list):
            problem = "contains a list or an object"
        elif _SURROGATE.search(f"{name} {value}"):
            problem = f"contains {SURROGATES}"
        if problem:
            raise DataError(
                f"{place}: column {name!r} {problem}, so the copy can't be a {kind} file. Write it as .jsonl, for "
                "example --output masked.jsonl."
            )


def _shown(place: str, text: str, spans: Sequence[Span], most: int) -> list[str]:
    """Return a line for each of the first `most` spans, with the text around the span; all identifiers are masked."""
    lines = []
    for number, span in enumerate(spans[: max(most, 0)]):
        before = masked(text[: span.start], spans[:number])[-_AROUND:]
        rest = [Span(each.start - span.end, each.end - span.end, each.kind) for each in spans[number + 1 :]]
        after = masked(text[span.end :], rest)[:_AROUND]
        mask = masked(text[span.start : span.end], [Span(0, span.end - span.start, span.kind)])
        line = f"{place} ({span.kind}): {' '.join(f'{before}{mask}{after}'.split())}"
        lines.append(line.encode(errors="backslashreplace").decode())
    return lines
