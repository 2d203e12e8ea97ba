"""Patient identifiers in the data: counted, masked, replaced, or a reason to reject the data.

Findings store ids, kinds and positions only, never the text. All fields of a row are searched together, because a name
or a column heading in one field helps to recognize identifiers in another.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

from meditune.config.data_options import Kind, PhiSpec
from meditune.data.example import Example
from meditune.data.readers.user_files import cell
from meditune.data.sources import SOURCES
from meditune.errors import DataError
from meditune.files import write_jsonl
from meditune.phi.detector import Engine, engine, masked
from meditune.phi.spans import Span
from meditune.phi.surrogates import Surrogates, surrogate_secret
from meditune.progress import track

_GAP = "\n\n"


def found_in(
    fields: Mapping[str, str], find: Engine, kinds: Collection[Kind] | None, headed: Collection[str] = ()
) -> dict[str, list[Span]]:
    """Return the spans of each field, as positions in that field.

    Fields in `headed` are searched with the last part of their name as a heading, so that a column "MRN" or
    "patient_name" explains its values. A span across fields is split at the boundary.
    """
    heads = {name: f"{name.rpartition('.')[2].replace('_', ' ')}: " if name in headed else "" for name in fields}
    # Fields with headings come first: a column "patient_name" introduces the name in the other texts.
    ordered = sorted(fields.items(), key=lambda field: field[0] not in headed)
    found = find(_GAP.join(heads[name] + text for name, text in ordered), kinds or None)
    result: dict[str, list[Span]] = {}
    place = 0
    for name, text in ordered:
        start = place + len(heads[name])
        result[name] = _within(found, start, start + len(text))
        place = start + len(text) + len(_GAP)
    return result


def _within(spans: Sequence[Span], start: int, end: int) -> list[Span]:
    return [
        Span(max(span.start, start) - start, min(span.end, end) - start, span.kind)
        for span in spans
        if span.start < end and span.end > start
    ]


FILE = "phi.jsonl"
_META = ("references",)
"""Keys in a published source's meta with text about people; in a user's own data, any key may contain such text"""

_PUBLISHED = tuple(f"meta.{name}" for name in _META)

Change = Callable[[str, list[Span]], str]


class Findings:
    """Counts and positions of the identifiers found in each source, without their text."""

    def __init__(self, spec: PhiSpec) -> None:
        self._spec = spec
        self._rows: list[dict[str, Any]] = []
        self._kinds: dict[str, Counter[str]] = {}
        self._by_kind: dict[str, Counter[str]] = {}
        self._examples: Counter[str] = Counter()
        self._touched: Counter[str] = Counter()
        self.left_in: set[str] = set()
        """Ids of examples whose identifiers were left in the text"""

    def add(self, example: Example, spans: Sequence[tuple[str, Span]]) -> None:
        """Record the spans (field, position) of one example."""
        self._examples[example.source] += 1
        self._touched[example.source] += bool(spans)
        if spans and self._spec.action == "report":
            self.left_in.add(example.id)
        self._kinds.setdefault(example.source, Counter()).update(span.kind for _, span in spans)
        self._by_kind.setdefault(example.source, Counter()).update({span.kind for _, span in spans})
        self._rows += [
            {"id": example.id, "field": field, "kind": span.kind, "start": span.start, "end": span.end}
            for field, span in spans
        ]

    def join(self, other: Findings) -> None:
        """Add the counts of other findings, without their positions."""
        for source in other._examples:
            self._examples[source] += other._examples[source]
            self._touched[source] += other._touched[source]
            self._kinds.setdefault(source, Counter()).update(other._kinds[source])
            self._by_kind.setdefault(source, Counter()).update(other._by_kind[source])

    def forget_places(self) -> None:
        """Discard the positions and keep only the counts."""
        self._rows, self.left_in = [], set()

    def facts(self) -> dict[str, Any]:
        """Return the entry of `quality.json`: action, engine, and counts of examples and kinds per source."""
        return {
            "action": self._spec.action,
            "engine": self._spec.engine,
            "sources": {
                name: {
                    "examples": self._examples[name],
                    "with_identifiers": self._touched[name],
                    "kinds": dict(kinds.most_common()),
                    "examples_by_kind": dict(self._by_kind[name].most_common()),
                }
                for name, kinds in self._kinds.items()
            },
        }

    def write(self, folder: Path) -> None:
        """Write each span's example, field, kind and position in the original text as JSON Lines."""
        if self._spec.action != "off":
            write_jsonl(folder / FILE, self._rows)

    def sentence(self, source: str) -> str:
        """Return a sentence on the findings in a source; empty if there are none."""
        if not self._touched[source]:
            return ""
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self._kinds[source].most_common())
        return (
            f"{self._touched[source]:,} of {self._examples[source]:,} examples contain identifiers of people ({kinds})"
        )


def deidentify(examples: Sequence[Example], spec: PhiSpec, findings: Findings, warn: bool = True) -> list[Example]:
    """Return the examples of one source, treated according to `spec`; the findings are added to `findings`.

    Raises DataError if identifiers are found and the action is refuse. If identifiers are left in a user's own data
    and `warn` is set, a warning is printed to stderr.
    """
    if spec.action == "off" or not examples:
        return list(examples)
    find = engine(spec.engine)
    source = examples[0].source
    label = f"Searching {source} for identifiers"
    result = [_treated(example, spec, find, findings) for example in track(examples, label, unit="examples")]
    refuse_left_identifiers(source, spec, findings, warn)
    return result


def refuse_left_identifiers(source: str, spec: PhiSpec, findings: Findings, warn: bool = True) -> None:
    """Raise DataError or warn about the findings in a source, as `deidentify` does."""
    said = findings.sentence(source)
    if said and spec.action == "refuse":
        raise DataError(
            f"data.sources: {source}: {said}, and data.phi.action is refuse. Inspect them with `meditune data phi`, or "
            "mask them: --set data.phi.action=mask."
        )
    published = source in SOURCES and not SOURCES[source].restricted
    if warn and said and spec.action == "report" and not published:
        print(
            f"\nWARNING: {source}: {said}. THEY ARE LEFT IN THE TEXT (data.phi.action: report), and a model can "
            "memorize them. To mask them: --set data.phi.action=mask. To see where they are: meditune data phi.\n",
            file=sys.stderr,
        )


def deidentified(examples: Sequence[Example], spec: PhiSpec, findings: Findings) -> list[Example]:
    """Return a part of a source's examples, treated according to `spec`, without raising or warning."""
    if spec.action == "off":
        return list(examples)
    find = engine(spec.engine)
    return [_treated(example, spec, find, findings) for example in examples]


def cleaner(spec: PhiSpec) -> Callable[[str], str]:
    """Return a function that masks identifiers in the texts of rejected rows, unless the data may keep them."""
    find = engine(spec.engine)
    if spec.action not in {"mask", "surrogate", "refuse"}:
        return str
    return lambda text: masked(text, find(text, spec.kinds or None))


def _treated(example: Example, spec: PhiSpec, find: Engine, findings: Findings) -> Example:
    fields = dict(_texts(example))
    headed = [field for field in fields if field.startswith("meta.") and not field.startswith(_PUBLISHED)]
    by_field = found_in(fields, find, spec.kinds, headed)
    findings.add(example, [(field, span) for field, spans in by_field.items() for span in spans])
    if spec.action not in {"mask", "surrogate"} or not any(by_field.values()):
        return example
    change: Change = masked
    if spec.action == "surrogate":
        change = Surrogates(surrogate_secret(), f"{example.source}/{example.group}").replaced
    return _with_texts(example, {field: change(fields[field], spans) for field, spans in by_field.items() if spans})


def _texts(example: Example) -> Iterator[tuple[str, str]]:
    """Yield every text of an example with its place: question, context.0, answer, meta.references.0.answer."""
    yield "question", example.question
    yield from ((f"context.{number}", passage.text) for number, passage in enumerate(example.context))
    yield "answer", example.answer
    of_user = example.source not in SOURCES
    for key, value in example.meta.items():
        if of_user or key in _META:
            yield from leaves(value, f"meta.{key}")


def leaves(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """Yield the place and text of every text, number and date in a value; `place` is the value's own place."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, date | Decimal | int | float) and not isinstance(value, bool):
        yield place, cell(value) or str(value)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{place}.{key}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from leaves(inner, f"{place}.{number}")


def _with_texts(example: Example, texts: dict[str, str]) -> Example:
    """Return the example with the given texts of `_texts` replaced."""
    context = tuple(
        passage.model_copy(update={"text": texts.get(f"context.{number}", passage.text)})
        for number, passage in enumerate(example.context)
    )
    meta = {key: with_leaves(value, f"meta.{key}", texts) for key, value in example.meta.items()}
    said = {name: texts.get(name, getattr(example, name)) for name in ("question", "answer")}
    return example.model_copy(update=said | {"context": context, "meta": meta})


def with_leaves(value: Any, place: str, texts: dict[str, str]) -> Any:
    """Return the value with the texts at these places (see `leaves`) replaced."""
    if isinstance(value, dict):
        return {key: with_leaves(inner, f"{place}.{key}", texts) for key, inner in value.items()}
    if isinstance(value, list):
        return [with_leaves(inner, f"{place}.{number}", texts) for number, inner in enumerate(value)]
    return texts.get(place, value)
