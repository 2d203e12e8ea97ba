"""Identifiers in structured texts: HL7 version 2, JSON, XML, tables with a header row, and "key = value" lines.

The name of a field says what its value is. Names, dates and contact details in prose are left to the other finders.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from meditune.config.data_options import Kind
from meditune.phi import name_words
from meditune.phi.name_words import plain
from meditune.phi.spans import FIELD_KINDS, Span, View, field_names, folded, phrases, word_list

_LABELS = tuple((kind, field_names(kind)) for kind in FIELD_KINDS)
_SURE_NAMES = phrases("sure_name_fields")
"""Fields whose value is a name even if the words are ordinary English (Grace, Hope)"""
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_SEPARATORS = re.compile(r"[\W_]+")
_FIRST_WORD = re.compile(r"(?:patient|pt|client|subject|insured|guarantor|guardian|mother|father|nok|owner)(?: s)? ")
_LAST_WORD = re.compile(r"(?:number|num|no|nr|id|value|text|code|1|2|line|full)$")

_QUOTED = r"(?P<{0}>\\?[\"'])(?P<in_{0}>(?:(?!(?P={0}))(?:\\.|[^\\\n])){{0,120}})(?:(?P={0})|\Z)"
"""A string, whose quotes may be escaped because it is inside another string, and which may be cut off"""
_PAIR = re.compile(
    r"(?:(?P<mark>\\?[\"'])(?P<quoted>[^\W\d_][\w .-]{0,40})(?P=mark)|(?<![\w.-])(?P<bare>[^\W\d_][\w.-]{0,40}))"
    r"\s{0,4}(?P<sign>[:=])\s{0,4}"
    rf"(?:\[\s{{0,40}}(?P<list>(?:{_QUOTED.format('each')}[,\s]{{0,40}})+)|{_QUOTED.format('one')}"
    r"|(?(mark)(?P<number>\d{1,12})(?![\d.])|(?!)))"
)
_STRING = re.compile(_QUOTED.format("each"))
_PAIRED = re.compile(r"[:=]\s{0,4}(?:\[\s{0,40})?\\?[\"']|\"\s{0,4}:\s{0,4}\d")
_TAG = re.compile(r"<([^\W\d_][\w.-]{0,40})\s[^<>]*")
_BETWEEN_PAIRS = re.compile(r"[\s,/>]*(?:<\w+\s|\"answer\"\s*:\s*\[\s*\{\s*)?")
_VALUE_KEYS = frozenset(["value", "value string", "answer"])
"""Keys whose meaning another value says: {"system": "phone", "value": "5550134"}, <family value="Doe"/>"""
_XML = re.compile(
    r"<(?P<key>[^\W\d_][\w.-]{0,40})(?:\s[^<>]{0,200}?(?:(?:name|key|label|keyword)=[\"'](?P<named>[^<>\"']{1,40})"
    r"[^<>]{0,80})?)?>(?:<!\[CDATA\[)?(?P<content>[^<>\]]{1,160})(?:\]\]>)?</"
)
_BETWEEN_CELLS = re.compile(r"\w+>\s*")
_LINE = re.compile(
    r"(?:^|(?<=[ \t]{2})|(?<=\|))[ \t]{0,8}(?P<key>[^\W\d_][\w ./()'’-]{1,28}?)[ \t]*(?:[=:]|\.{3,40})[ \t]*"
    rf"(?P<value>[^\s=:](?:[^\n|]{{0,78}}?[^\s|])??)(?=[ \t]*(?:$|\||[ \t]{{2}})|(?<=[a-z]{{3}})[.;] [A-Z]|"
    rf",?[ \t]{{1,2}}{name_words.LABEL})",
    re.MULTILINE,
)
_TWO_CELLS = re.compile(
    r"^[ \t]{0,8}(?:\|[ \t]{0,8})?(?P<key>[^\W\d_][\w ./()'’-]{1,28}?)[ \t]{0,8}[|\t][ \t]{0,8}"
    r"(?P<value>[^\s|](?:[^\n|\t]{0,78}[^\s|])?)[ \t]{0,8}\|?[ \t]{0,8}$",
    re.MULTILINE,
)  # A row of a table whose first column names the fields
_HEADER = re.compile(r"^[^\n]{5,3000}$", re.MULTILINE)
_CELLS = {
    sign: re.compile(rf'(?:[ ]?"(?:[^"]|""){{0,2000}}"(?=[ ]?(?:[{sign}\r\n]|\Z)))?[^{sign}\n]*') for sign in "|\t;,"
}
"""Separator -> a cell of a table; between double quotes, it may contain separators and line breaks"""
_RULE = re.compile(r"[|\s:+-]+")
_MAX_ROWS = 2000
_FORM = 3  # A text with more lines of this kind is a form

_SEGMENT = re.compile(r"(?:^|(?<=\r))[A-Z][A-Z0-9]{2}\|[^\r\n]*", re.MULTILINE)
_TIMESTAMP = re.compile(
    r"(?<=[|^])(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?:\d{4}|\d{6})?(?=$|[|^.+\r-])"
)
_SEGMENTS: dict[str, dict[int, str]] = {
    "MSH": {9: "id"},
    "PID": {
        **dict.fromkeys((2, 3, 4, 18, 20, 21), "id"),
        **dict.fromkeys((5, 6, 9), "name"),
        **{11: "address", 13: "phone", 14: "phone", 19: "ssn"},
    },
    "NK1": {2: "name", 4: "address", 5: "phone", 6: "phone", 7: "phone"},
    "PD1": {4: "person"},
    "PV1": {**dict.fromkeys((7, 8, 9, 17, 52), "person"), 19: "id", 50: "id"},
    "ORC": {2: "id", 3: "id", 4: "id", **dict.fromkeys((10, 11, 12), "person")},
    "OBR": {2: "id", 3: "id", **dict.fromkeys((10, 16, 28, 32), "person")},
    "OBX": {16: "person"},
    "GT1": {2: "id", 3: "name", 5: "address", 6: "phone", 7: "phone", 12: "ssn"},
    "IN1": {16: "name", 19: "address", 36: "id", 49: "id"},
    "DG1": {16: "person"},
    "ROL": {4: "person"},
    "SCH": {1: "id", 2: "id", 12: "person", 16: "person"},
    "TXA": {5: "person", 9: "person", 12: "id", 22: "person"},
}
"""Fields of HL7 segments with identifiers; the separator after MSH is its first field"""
_IN_COMPONENTS = re.compile(r"(?<![\w^])[A-Z][^\W\d_][\w'’-]{1,24}(?:\^[A-Z][\w.'’-]{0,24}){1,4}(?<=\w)(?![\w^])")
"""A name as in DICOM: Doe^Jane"""
_PARTS_OF_ADDRESS: tuple[Kind | None, ...] = ("address", "address", "city", None, "zip", None, None, "address")
_ALPHABETIC = re.compile(r"[^\W\d_]")


def find(view: View) -> Iterator[Span]:
    """Yield the spans of identifiers in labelled fields."""
    text = view.text
    if is_hl7(view):
        of_patient = "PID|" in text
        for segment in _SEGMENT.finditer(text):
            if of_patient:
                for stamp in _TIMESTAMP.finditer(text, *segment.span()):
                    yield Span(stamp.start(), stamp.end(), "date")
            yield from _in_segment(segment)
    elif "^" in text:
        yield from view.spans(_IN_COMPONENTS, "name")
    if _PAIRED.search(text):
        yield from _in_pairs(view)
    if "</" in text:
        end, last = 0, ""
        for found in _XML.finditer(text):
            beside = last if _BETWEEN_CELLS.fullmatch(text, end, found.start()) else ""
            key = next(filter(_kind_of, (found["key"], found["named"] or "", beside)), "")
            yield from _in_field(view, key, *found.span("content"), sure=True)
            end, last = found.end(), found["content"]
    yield from _in_tables(view)
    lines = [found for pattern in (_LINE, _TWO_CELLS) for found in pattern.finditer(text) if _kind_of(found["key"])]
    for found in lines:
        yield from _in_field(view, found["key"], *found.span("value"), sure=len(lines) > _FORM)


def is_hl7(view: View) -> bool:
    """Return True if the text has segments of HL7 version 2."""
    return "|" in view.text and bool(_SEGMENT.search(view.text))


def _in_segment(segment: re.Match[str]) -> Iterator[Span]:
    kinds = _SEGMENTS.get(segment[0][:3], {})
    place = segment.start()
    for number, field in enumerate(segment[0].split("|")):
        kind = kinds.get(number)
        for written in field.split("~") if kind else ():
            yield from _in_hl7_field(written, place, str(kind))
            place += len(written) + 1
        place += 0 if kind else len(field) + 1


def _in_hl7_field(written: str, start: int, kind: str) -> Iterator[Span]:
    """Yield the spans in one repetition of an HL7 field, whose components are separated by "^"."""
    parts = written.split("^")
    if kind == "address":
        for part, what in zip(parts, _PARTS_OF_ADDRESS, strict=False):
            if what and any(map(str.isalnum, part)):
                yield Span(start, start + len(part), what)
            start += len(part) + 1
    elif kind in {"name", "person"}:
        if kind == "person" and any(map(str.isdecimal, parts[0])):
            yield Span(start, start + len(parts[0]), "id")
            start += len(parts[0]) + 1
            parts = parts[1:]
        name = "^".join(parts[:5]).rstrip("^")
        if _ALPHABETIC.search(name):
            yield Span(start + len(name) - len(name.lstrip("^")), start + len(name), "name")
    elif kind == "phone":
        for part in parts:
            if sum(map(str.isdecimal, part)) > 5:
                yield Span(start, start + len(part), "phone")
            start += len(part) + 1
    elif len(parts[0]) > 2 and any(map(str.isdecimal, parts[0])):
        yield Span(start, start + len(parts[0]), "ssn" if kind == "ssn" else "id")


def _in_pairs(view: View) -> Iterator[Span]:
    """Yield the spans in the values of JSON's keys and XML's attributes."""
    text, last_end, last_value = view.text, 0, ""
    for found in _PAIR.finditer(text):
        keys = [found["quoted"] or found["bare"]]
        if _label(keys[0]) in _VALUE_KEYS:
            start = text.rfind("<", max(0, found.start() - 200), found.start())
            tag = _TAG.fullmatch(text, start, found.start()) if start >= 0 else None
            keys = [tag[1]] if tag else []
            keys += [last_value] if _BETWEEN_PAIRS.fullmatch(text, last_end, found.start()) else []
        key = next(filter(_kind_of, keys), "")
        sure = found["bare"] is None or found["sign"] == "="
        for string in _STRING.finditer(text, *found.span("list")):
            yield from _in_field(view, key, *string.span("in_each"), sure)
        yield from _in_field(view, key, *found.span("in_one"), sure)
        yield from _in_field(view, key, *found.span("number"), sure)
        last_end, last_value = found.end(), found["in_one"] or ""


def _in_tables(view: View) -> Iterator[Span]:
    """Yield the spans in the cells of tables, whose first row names the columns."""
    text, done = view.text, 0
    for header in _HEADER.finditer(text):
        if header.start() < done:
            continue
        separator = next((sign for sign in _CELLS if header[0].count(sign) > 1), None)
        if separator is None:
            continue
        names = [name.strip(' "') for name in header[0].split(separator)]
        # Other lines with commas are prose.
        if any(len(name) > 24 for name in names) or sum(_kind_of(name) is not None for name in names) < 2:
            continue
        done = header.end() + 1
        for _ in range(_MAX_ROWS):
            cells = _cells(text, done, separator)
            end = cells[-1][1]
            if len(cells) < len(names) - 1 or len(cells) < 3:
                break
            if not _RULE.fullmatch(text, done, end):
                for name, cell in zip(names, cells, strict=False):
                    yield from _in_field(view, name, *cell, sure=True)
            done = end + 1


def _cells(text: str, place: int, separator: str) -> list[tuple[int, int]]:
    """Return the positions of the cells of the row that begins at `place`."""
    cells: list[tuple[int, int]] = []
    while not cells or text[place - 1 : place] == separator:
        cell = _CELLS[separator].match(text, place)
        cells.append(cell.span() if cell else (place, place))
        place = cells[-1][1] + 1
    return cells


def _label(key: str) -> str:
    return " ".join(_SEPARATORS.split(_CAMEL.sub(" ", folded(key)))).strip().lower()


def _labels(key: str) -> list[str]:
    """Return the label of a field, without and with the words for the person and for the form of the value."""
    label = _label(key)
    shorter = _LAST_WORD.sub("", label).strip()
    return [each for each in (label, shorter, _FIRST_WORD.sub("", label, count=1)) if each]


def _kind_of(key: str) -> Kind | None:
    """Return the kind of identifier that a field with this name contains, or None."""
    for each in _labels(key):
        for kind, words in _LABELS:
            if each in words:
                return kind
    return None


def _in_field(view: View, key: str, start: int, end: int, sure: bool) -> Iterator[Span]:
    """Yield the span of a field's value if it is an identifier; with `sure`, the text is a table or JSON, not prose."""
    kind = _kind_of(key)
    if kind is None:
        return
    value = view.text[start:end].lstrip(' \t\n"')
    start, value = end - len(value), value.rstrip(' \t\r\n"')
    digits = sum(map(str.isdecimal, value))
    if _is_value(kind, _labels(key), value, digits, sure):
        yield Span(start, start + len(value), kind)


_DATE = re.compile(
    r"(?:19|20)?\d{2}[-/. ]?\d{1,2}[-/. ]?(?:\d{4}|\d{1,2})(?:$|[T ])|\d{1,2}[-/. ]?[A-Za-z]{3}[-/. ]?\d{2,4}"
)
_EMPTY = word_list("empty_values")
_ZIP = re.compile(r"(?=[^\n]{0,9}\d)[A-Z0-9]{2,5}(?:[ -][A-Z0-9]{2,5})?")
_ID = re.compile(r"(?=[^\n]*\d)[A-Za-z0-9][\w./ -]{2,30}")
_TITLES = frozenset(["dr", "mr", "mrs", "ms", "miss", "prof", "sr", "sra", "dra", "frau", "herr", "mme", "m"])


def _is_value(kind: Kind, labels: list[str], value: str, digits: int, sure: bool) -> bool:
    words = value.split()
    if not words or words[0].lower().strip(".,") in _EMPTY:
        return False
    if kind == "age":
        return value.isdecimal() and 89 < int(value) < 126
    if kind == "date":
        return bool(_DATE.match(value)) and len(value) < 30 and not (value.isdecimal() and len(value) < 6)
    if kind == "phone":
        return digits > 5 and len(value) < 30
    if kind == "id":
        numbered = all(word.isupper() or any(map(str.isdecimal, word)) for word in words)
        return bool(_ID.fullmatch(value)) and numbered and digits > 2 - sure and len(words) < 5
    if kind == "zip":
        return bool(_ZIP.fullmatch(value)) and len(value) > 3
    if kind == "address":
        return (digits > 0 and len(value) < 80 and any(word[0].isupper() for word in words)) or (
            sure and len(words) > 1 and value[0].isupper()
        )
    if digits or not value[0].isupper() or len(words) > 8 or len(value) > 70:
        return False
    telling = [low for low in map(plain, words) if low not in _TITLES]
    unusual = any(not name_words.is_ordinary(low) and not name_words.is_surely_medical(low) for low in telling)
    if kind == "name":
        if len(words) > 6 or any(name_words.is_other(low) for low in telling) or not telling:
            return False
        return not _SURE_NAMES.isdisjoint(labels) or (
            sure and (unusual or any(low in name_words.ALSO_NAMES for low in telling))
        )
    return (sure or unusual) and len(words) < 8
