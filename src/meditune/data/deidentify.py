"""Treatment of patient identifiers in the data: count, mask or replace the identifiers, or reject the data.

All fields of a row are searched together, because a name or a column heading in one field helps to recognize
identifiers in other fields.
"""

from __future__ import annotations

import re
import shlex
import sys
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from meditune.config.data_options import Kind, PhiSpec
from meditune.data.example import Example, plain_text
from meditune.data.readers.tables import ROW_CHARACTERS
from meditune.data.readers.user_files import cell
from meditune.data.sources import SOURCES
from meditune.errors import DataError
from meditune.files import write_jsonl
from meditune.phi.detector import Engine, engine, masked
from meditune.phi.spans import Span
from meditune.phi.surrogates import Surrogates, surrogate_secret
from meditune.progress import track

_GAP = "\n\n"
FILE = "phi.jsonl"
_META = ("references",)
"""Keys of a published source's meta whose values may be about people; in a user's own data, any value may be"""
_CONTEXT_LABELS, _KEY = "context_labels", "(key)"
_CAPITAL = re.compile(r"(?<=[a-z])(?:[A-Z](?=[a-z])|(?=[A-Z]))")  # Where a word begins in a name such as "homePhone"
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
_YEAR = re.compile(r"(?:18|19|20)\d\d(?:\.0)?")
_DATE_HEADING = re.compile(
    r"^(?!(?:number|count|days?|weeks?|months?|years?)\b|.*\bup to date\b)"
    r"(?:born(?: on)?|.*?\b(?:d\.?o\.?b\.?|birthday|timestamp|"
    r"(?:(?:birth|death|admission|discharge|visit) ?)?date(?: ?time| of \w+)?))(?: ?\(.*\))?\s*$",
    re.IGNORECASE,
)
_ZIP_HEADING = re.compile(r"\b(?:zip|postal|post(?= ?code))(?: ?code)?\s*$", re.IGNORECASE)
_ZIP = re.compile(r"(\d+)(?:\.0+)?")
_MIN_ZIP_DIGITS = 4  # A table loses the zero of 02139; the first three digits alone aren't an identifier
_MIN_DATE = 1000  # Smaller numbers are rather counts or durations than days or seconds since some date
TextPath = tuple[str, ...]
"""Column, keys of objects and indices of lists that lead to a text in a row"""


def found_at(
    texts: Mapping[TextPath, str], find: Engine, kinds: Collection[Kind] | None, headed: Collection[TextPath] = ()
) -> dict[TextPath, list[Span]]:
    """Return path -> spans of identifiers in the text at the path; a span across texts is split at the boundary.

    For each path in `headed`, its last part is put before the text, so that a column name such as "patient_name" or
    "patientName" helps to recognize the values of the column.
    """
    heads = {path: f"{_heading(path[-1])}: " if path in headed else "" for path in texts}
    # Texts with headings come first: a value in "patient_name" helps to recognize the name in other texts.
    ordered = sorted(texts.items(), key=lambda item: item[0] not in headed)
    found = find(_GAP.join(heads[path] + text for path, text in ordered), kinds or None)
    starts, ends = [span.start for span in found], [span.end for span in found]
    result: dict[TextPath, list[Span]] = {}
    place = 0
    for path, text in ordered:
        start = place + len(heads[path])
        end = start + len(text)
        result[path] = [
            Span(max(span.start, start) - start, min(span.end, end) - start, span.kind)
            for span in found[bisect_right(ends, start) : bisect_left(starts, end)]
        ]
        kind = _kind_of_number(_heading(path[-1]), text) if path in headed else None
        if kind and (not kinds or kind in kinds):
            result[path] = [Span(0, len(text), kind)]
        place = end + len(_GAP)
    return result


def _heading(field: str) -> str:
    """Return the last part of a field's name as words: "patient last name" for "meta.patientLastName"."""
    words = field.rpartition(".")[2].replace("_", " ")
    return _CAPITAL.sub(lambda capital: f" {capital[0].lower()}", words)


def _kind_of_number(heading: str, text: str) -> Kind | None:
    """Return "date" or "zip" if a cell is a single number below such a heading; otherwise, or for a year, None."""
    text = text.strip()
    if not _NUMBER.fullmatch(text):
        return None
    if _ZIP_HEADING.search(heading):
        whole = _ZIP.fullmatch(text)
        return "zip" if whole and len(whole[1]) >= _MIN_ZIP_DIGITS else None
    is_date = abs(float(text)) >= _MIN_DATE and not _YEAR.fullmatch(text)
    return "date" if is_date and _DATE_HEADING.search(heading) else None


@dataclass
class IdentifierCounts:
    """The numbers of examples, of examples with identifiers, and of identifiers by kind in a source."""

    examples: int = 0
    with_identifiers: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    examples_by_kind: Counter[str] = field(default_factory=Counter)

    def add(self, spans: Collection[Span]) -> None:
        """Count one example's spans."""
        kinds = [span.kind for span in spans]
        self.join(IdentifierCounts(1, bool(spans), Counter(kinds), Counter(sorted(set(kinds)))))

    def join(self, other: IdentifierCounts) -> None:
        """Add other counts."""
        self.examples += other.examples
        self.with_identifiers += other.with_identifiers
        self.kinds.update(other.kinds)
        self.examples_by_kind.update(other.examples_by_kind)

    def sentence(self, noun: str) -> str:
        """Return a sentence on the counts, without a full stop; empty if there are no identifiers."""
        if not self.with_identifiers:
            return ""
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.kinds.most_common())
        verb = "contains" if self.with_identifiers == 1 else "contain"
        return f"{self.with_identifiers:,} of {self.examples:,} {noun} {verb} identifiers of people ({kinds})"


class Findings:
    """Counts and positions of the identifiers found in each source, without their text."""

    def __init__(self, spec: PhiSpec) -> None:
        self._spec = spec
        self.rows: list[dict[str, Any]] = []
        """Example, field, kind and position of each identifier"""
        self.sources: dict[str, IdentifierCounts] = {}
        self.left_in: set[str] = set()
        """Ids of examples whose identifiers were left in the text"""

    def add(self, example: Example, spans: Sequence[tuple[str, Span]]) -> None:
        """Record the spans (field, position) of one example."""
        self.sources.setdefault(example.source, IdentifierCounts()).add([span for _, span in spans])
        if spans and self._spec.action == "report":
            self.left_in.add(example.id)
        self.rows += [
            {"id": example.id, "field": field, "kind": span.kind, "start": span.start, "end": span.end}
            for field, span in spans
        ]

    def join(self, other: Findings) -> None:
        """Add the counts of other findings, without their positions."""
        for source, counts in other.sources.items():
            self.sources.setdefault(source, IdentifierCounts()).join(counts)

    def forget_places(self) -> None:
        """Discard everything but the counts."""
        self.rows, self.left_in = [], set()

    def facts(self) -> dict[str, Any]:
        """Return the entry of `quality.json`: action, engine, and counts of examples and kinds per source."""
        sources = {
            name: {
                "examples": counts.examples,
                "with_identifiers": counts.with_identifiers,
                "kinds": dict(counts.kinds.most_common()),
                "examples_by_kind": dict(counts.examples_by_kind.most_common()),
            }
            for name, counts in self.sources.items()
        }
        return {"action": self._spec.action, "engine": self._spec.engine, "sources": sources}

    def write(self, folder: Path) -> None:
        """Write each span's example, field, kind and original position to FILE, unless the action is off."""
        if self._spec.action != "off":
            write_jsonl(folder / FILE, self.rows)

    def sentence(self, source: str) -> str:
        """Return a sentence on the findings in a source; empty if there are none."""
        return self.sources.get(source, IdentifierCounts()).sentence("examples")


def deidentify(
    examples: Sequence[Example], spec: PhiSpec, findings: Findings, warn: bool = True, path: str | Path = ""
) -> list[Example]:
    """Return one source's examples with identifiers treated according to `spec`; the spans are added to `findings`.

    `path` is the source's file, which messages name. Raises DataError or prints a warning in the same cases as
    `refuse_left_identifiers`.
    """
    if spec.action == "off" or not examples:
        return list(examples)
    source = examples[0].source
    label = f"Searching {source} for identifiers"
    result = deidentified(track(examples, label, unit="examples"), spec, findings)
    refuse_left_identifiers(source, spec, findings, warn, path)
    return result


def refuse_left_identifiers(
    source: str, spec: PhiSpec, findings: Findings, warn: bool = True, path: str | Path = ""
) -> None:
    """Raise DataError if identifiers were found in a source and the action is refuse.

    With `warn`, print a warning if identifiers were left in a source that is restricted or is the user's own.
    """
    finding = findings.sentence(source)
    if finding and spec.action == "refuse":
        raise DataError(
            f"data.sources: {source}: {finding}, and data.phi.action is refuse. To see where they are: "
            f"{search_command(path, spec)}. To mask them: --set data.phi.action=mask."
        )
    published = source in SOURCES and not SOURCES[source].restricted
    if warn and finding and spec.action == "report" and not published:
        print(
            f"\nWARNING: {source}: {finding}. THEY ARE LEFT IN THE TEXT (data.phi.action: report), and a model can "
            "memorize them. To mask them: --set data.phi.action=mask. To see where they are: "
            f"{search_command(path, spec)}\n",
            file=sys.stderr,
        )


def search_command(path: str | Path, spec: PhiSpec) -> str:
    """Return the command that shows where the identifiers in a file are; without a file, the command for a recipe."""
    where = str(path) if path and Path(path).is_file() else "RECIPE"
    options = [word for kind in spec.kinds for word in ("--kind", kind)]
    options += ["--engine", spec.engine] if spec.engine != "rules" else []
    return shlex.join(["meditune", "data", "phi", where, "--show", "20", *options])


def masking_command(path: Path) -> str:
    """Return the command that writes a masked copy of a file."""
    suffix = ".jsonl" if path.suffix.lower() in {".json", ".parquet"} else path.suffix
    return shlex.join(["meditune", "data", "phi", str(path), "--output", f"{path.stem}-masked{suffix}"])


def indexed_identifiers(example: Example, spec: PhiSpec) -> list[Span]:
    """Return the identifiers in the texts of an example that an index contains; the other columns help to find them."""
    findings = Findings(spec)
    deidentified([example], spec, findings)
    return [
        Span(row["start"], row["end"], row["kind"]) for row in findings.rows if row["field"].split(".")[0] != "meta"
    ]


def deidentified(examples: Iterable[Example], spec: PhiSpec, findings: Findings) -> list[Example]:
    """Return the examples with identifiers treated according to `spec`, like `deidentify`, but don't raise or warn."""
    if spec.action == "off":
        return list(examples)
    find = engine(spec.engine)
    spans_of = key_finder(spec.kinds)
    return [_treated(example, spec, find, spans_of, findings) for example in examples]


def cleaner(spec: PhiSpec) -> Callable[[Mapping[str, Any] | str], Mapping[str, Any] | str]:
    """Return a function that masks identifiers in rejected rows, unless the action leaves identifiers in the data."""
    find = engine(spec.engine)
    spans_of = key_finder(spec.kinds)

    def clean(row: Mapping[str, Any] | str) -> Any:
        value, _ = with_masked_keys(_beginning(plain_text(row), _ROW_SEARCHED)[0], spans_of)
        texts = dict(leaves(value, ()))
        found = found_at(texts, find, spec.kinds, headed=() if isinstance(row, str) else texts)
        return with_leaves(value, (), {path: masked(texts[path], spans) for path, spans in found.items() if spans})

    return clean if spec.action in {"mask", "surrogate", "refuse"} else lambda row: row


_ROW_SEARCHED = 100 * ROW_CHARACTERS
"""Characters of a rejected row that are searched: more than are stored, because later columns help to find names"""


def _beginning(value: Any, most: int) -> tuple[Any, int]:
    """Return the beginning of a rejected row, and `most` less its number of characters; other types become text."""
    if isinstance(value, dict):
        cut: dict[str, Any] = {}
        for key, inner in value.items():
            if most > 0:
                cut[key], most = _beginning(inner, most - len(key))
        return cut, most
    if isinstance(value, list):
        items = []
        for inner in value:
            if most > 0:
                item, most = _beginning(inner, most)
                items.append(item)
        return items, most
    if value is not None and not isinstance(value, int | float):
        value = str(value)[: 2 * ROW_CHARACTERS]  # More than is stored, so that the cut doesn't split an identifier
        return value, most - 1 - len(value)
    return value, most - 1


def _treated(example: Example, spec: PhiSpec, find: Engine, spans_of: KeyFinder, findings: Findings) -> Example:
    original = example
    example, keys = _with_masked_keys(example, spans_of)
    parts = _parts(example)
    fields = _texts(parts)
    headed = [path for path in fields if path[0] == "meta" and path[1] not in _META]
    by_path = found_at(fields, find, spec.kinds, headed)
    every = {path: spans for path, (_, spans) in keys.items()} | by_path
    findings.add(example, [(".".join(path), span) for path, spans in every.items() for span in spans])
    by_path = {path: spans for path, spans in by_path.items() if spans}
    if spec.action not in {"mask", "surrogate"}:
        return original
    if not by_path:
        return example
    if spec.action == "surrogate":
        new = Surrogates(surrogate_secret(), f"{example.source}/{example.group}").replaced_in(fields, by_path)
    else:
        new = {path: masked(fields[path], spans) for path, spans in by_path.items()}
    update = {name: with_leaves(value, (name,), new) for name, value in parts.items()}
    labels = update.pop(_CONTEXT_LABELS) or [passage.label for passage in example.context]
    texts = zip(example.context, update["context"], labels, strict=True)
    update["context"] = tuple(each.model_copy(update={"text": text, "label": label}) for each, text, label in texts)
    turns = zip(example.turns or (), update["turns"], strict=True)
    update["turns"] = tuple(each.model_copy(update={"text": text}) for each, text in turns)
    update["turns"] = update["turns"] if example.turns is not None else None
    return example.model_copy(update=update | {"meta": example.meta | update["meta"]})


def _parts(example: Example) -> dict[str, Any]:
    of_user = example.source not in SOURCES
    return {
        "question": example.question,
        "context": [passage.text for passage in example.context],
        "answer": example.answer,
        "turns": [turn.text for turn in example.turns or ()],
        "meta": {key: value for key, value in example.meta.items() if of_user or key in _META},
        _CONTEXT_LABELS: [passage.label for passage in example.context] if of_user else [],
    }


def _texts(parts: Mapping[str, Any]) -> dict[TextPath, str]:
    return dict(leaf for name, value in parts.items() for leaf in leaves(value, (name,)))


def searched_texts(example: Example, spec: PhiSpec) -> dict[TextPath, str]:
    """Return path -> text for each text of an example in which identifiers were found or may be found.

    The paths are those in `Findings.rows`.
    """
    example, keys = _with_masked_keys(example, key_finder(spec.kinds))
    return {path: key for path, (key, _) in keys.items()} | _texts(_parts(example))


KeyFinder = Callable[[str], list[Span]]
KeySpans = dict[TextPath, tuple[str, list[Span]]]
"""Path of a key that contains identifiers, followed by _KEY -> the key, and the spans of the identifiers in it"""


def key_finder(kinds: Collection[Kind] | None) -> KeyFinder:
    """Return a function that finds identifiers of these kinds (or all) in a key of an object or a column's name.

    It uses the rules, because Presidio takes names of measurements such as "Creatinine" for names of people or cities.
    """
    return partial(_in_key, tuple(kinds or ()))


@lru_cache(1 << 12)
def _in_key(kinds: tuple[Kind, ...], key: str) -> list[Span]:
    return engine("rules")(key, kinds or None)


def with_masked_keys(value: Any, spans_of: KeyFinder, path: TextPath = ()) -> tuple[Any, KeySpans]:
    """Return the value with placeholders for the identifiers in keys of objects, and these identifiers.

    Keys of an object that would become equal get numbers.
    """
    found: KeySpans = {}
    if isinstance(value, list):
        items = [with_masked_keys(inner, spans_of, (*path, str(number))) for number, inner in enumerate(value)]
        return [item for item, _ in items], {place: key for _, keys in items for place, key in keys.items()}
    if not isinstance(value, dict):
        return value, found
    result: dict[str, Any] = {}
    numbers: Counter[str] = Counter()
    for key, inner in value.items():
        name = key
        if spans := spans_of(str(key)):
            name = hidden = masked(str(key), spans)
            while name in value or name in result:
                numbers[hidden] += 1
                name = f"{hidden} {numbers[hidden] + 1}"
            found[*path, name, _KEY] = (str(key), spans)
        result[name], keys = with_masked_keys(inner, spans_of, (*path, str(name)))
        found |= keys
    return result, found


def _with_masked_keys(example: Example, spans_of: KeyFinder) -> tuple[Example, KeySpans]:
    """Return an example of a user's own data with masked keys in its meta, and the identifiers in these keys."""
    if example.source in SOURCES:
        return example, {}
    meta, found = with_masked_keys(example.meta, spans_of, ("meta",))
    return (example.model_copy(update={"meta": meta}) if found else example), found


def leaves(value: Any, path: TextPath) -> Iterator[tuple[TextPath, str]]:
    """Yield (path, text) for each text, number and date nested in `value`, whose own path is `path`."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, date | Decimal | int | float) and not isinstance(value, bool):
        yield path, cell(value) or str(value)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, str(key)))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from leaves(inner, (*path, str(number)))


def with_leaves(value: Any, path: TextPath, texts: Mapping[TextPath, str]) -> Any:
    """Return the value with the leaves whose paths are in `texts` (see `leaves`) replaced by these texts."""
    if isinstance(value, dict):
        return {key: with_leaves(inner, (*path, str(key)), texts) for key, inner in value.items()}
    if isinstance(value, list):
        return [with_leaves(inner, (*path, str(number)), texts) for number, inner in enumerate(value)]
    return texts.get(path, value)
