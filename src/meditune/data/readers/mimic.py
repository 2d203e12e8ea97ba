"""MIMIC-III: questions about a hospital stay, answered by the sections of its discharge summary.

Johnson et al., "MIMIC-III, a freely accessible critical care database", Scientific Data 3:160035, 2016,
https://physionet.org/content/mimiciii/. Only the Examples contain text of the notes; rejects and errors contain the
ROW_ID instead.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from meditune.data.example import Example, Passage, problem_in_text
from meditune.data.readers.tables import FIELD_CHARACTERS, Rejects, find_files, open_unchanging
from meditune.errors import DataError
from meditune.files import bounded_lines, package_table
from meditune.phi.spans import placeholders
from meditune.progress import Progress

SOURCE = "mimic"
LICENCE = "PhysioNet Credentialed Health Data Use Agreement 1.5.0"
NOTICE = (
    "MIMIC-III is restricted: you may use it only under your own PhysioNet Credentialed Health Data Use Agreement "
    "1.5.0. Don't share rows, or anything from which they can be reconstructed, with people who haven't signed "
    "the agreement; don't send rows to an online service or API; don't try to identify anyone. A model tuned on "
    "the rows can repeat parts of them: treat the model, its predictions and the run's folder as restricted too."
)

_FILES = ("NOTEEVENTS.csv", "NOTEEVENTS.csv.gz", "noteevents.csv", "noteevents.csv.gz")
_COLUMNS = ("ROW_ID", "SUBJECT_ID", "HADM_ID", "CATEGORY", "ISERROR", "TEXT")
_SECTIONS = package_table(Path(__file__).with_name("mimic_sections.yaml"))
_ANY_HEADING = "|".join(
    f"(?P<{name.replace('-', '_')}>{'|'.join(patterns)})" for name, patterns in _SECTIONS["headings"].items()
)
_HEADING = re.compile(rf"^[ \t]*(?:{_ANY_HEADING})[ \t]*:[ \t]*", re.IGNORECASE | re.MULTILINE)


def read(path: Path, rejects: Rejects) -> Iterator[Example]:
    """Yield one example for each section of a discharge summary that answers a question, in the file's order.

    The questions and sections are in mimic_sections.yaml. `path` is NOTEEVENTS.csv, NOTEEVENTS.csv.gz or the folder
    that contains one of these files. The id is `mimic:ROW_ID-section`, and the group is the SUBJECT_ID. Unused notes
    are counted in `rejects`. Raises DataError if the file is missing, truncated, or not NOTEEVENTS.
    """
    what = "Get NOTEEVENTS from PhysioNet and specify its path."
    file = find_files(path, _FILES, what)[0]
    seen: set[int] = set()
    left_out: Counter[str] = Counter()
    for line, row in _rows(file, rejects):
        row_id = _number(row["ROW_ID"])
        if row["ISERROR"].strip() in {"1", "1.0"}:
            left_out["marked as an error by the hospital (ISERROR)"] += 1
        elif row["CATEGORY"].strip().casefold() != "discharge summary":
            left_out["not a discharge summary"] += 1
        elif reason := _problem(row, row_id, seen):
            rejects.add(SOURCE, f"{file}:{line}", reason, {"ROW_ID": row_id})
        else:
            seen.add(int(row_id))
            examples = list(_examples(row, row_id))
            if not examples:
                left_out["discharge summary without a section that answers a question"] += 1
            yield from examples
    for reason, number in left_out.items():
        rejects.count_only(SOURCE, reason, number)


def _problem(row: dict[str, str], row_id: str, seen: set[int]) -> str:
    if not row_id or not row["SUBJECT_ID"].strip():
        return "no ROW_ID or SUBJECT_ID"
    return "duplicate id" if int(row_id) in seen else problem_in_text(row)


def sections(note: str) -> dict[str, str]:
    """Return section name -> text for a discharge summary; if a section is repeated, the first with text is used."""
    found: dict[str, str] = {}
    headings = list(_HEADING.finditer(note))
    for heading, following in zip_longest(headings, headings[1:]):
        name = (heading.lastgroup or "other").replace("_", "-")
        body = _tidy(note[heading.end() : following.start() if following else len(note)])
        if name != "other" and body:
            found.setdefault(name, body)
    return found


def _examples(row: dict[str, str], row_id: str) -> Iterator[Example]:
    found = sections(placeholders(row["TEXT"]))
    for each in _SECTIONS["questions"]:
        name = each["section"]
        answer = found.get(name)
        if answer is None:
            continue
        yield Example(
            id=f"{SOURCE}:{row_id}-{name}",
            source=SOURCE,
            question=each["question"],
            context=tuple(
                Passage(text=found[needed], label=needed.replace("-", " ").upper())
                for needed in each["context"]
                if needed in found
            ),
            answer=answer,
            group=row["SUBJECT_ID"].strip(),
            meta={
                "row_id": int(row_id),
                "hadm_id": row["HADM_ID"].strip().removesuffix(".0"),
                "section": name,
                "licence": LICENCE,
                "restricted": True,
            },
        )


def _rows(file: Path, rejects: Rejects) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the number of each record's last line, and the record's required columns."""
    csv.field_size_limit(FIELD_CHARACTERS)
    line = 0
    try:
        with (
            open_unchanging(file),
            file.open("rb") as raw,
            Progress("Reading MIMIC-III", file.stat().st_size / 1e6, "MB") as progress,
        ):
            binary = gzip.GzipFile(fileobj=raw) if file.suffix == ".gz" else raw
            text = io.TextIOWrapper(binary, encoding="utf-8-sig", newline="")
            reader = csv.reader(bounded_lines(text, file, FIELD_CHARACTERS), strict=True)
            header = [name.strip().upper() for name in next(reader, [])]
            missing = [name for name in _COLUMNS if name not in header]
            if missing:
                raise DataError(
                    f"{file}, line 1: the columns {', '.join(missing)} are missing. "
                    "Specify MIMIC-III's NOTEEVENTS file."
                )
            for record in reader:
                line = reader.line_num
                progress.advance(raw.tell() / 1e6 - progress.done)
                row = dict(zip(header, record, strict=False))
                if len(record) == len(header):
                    yield line, {name: row[name] for name in _COLUMNS}
                else:
                    row_id = _number(row.get("ROW_ID", ""))
                    rejects.add(SOURCE, f"{file}:{line}", "wrong number of columns", {"ROW_ID": row_id})
    except (csv.Error, EOFError, UnicodeDecodeError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{file}, after line {line}: {error}. The file may be truncated or damaged; download it again."
        ) from error


def _number(field: str) -> str:
    """Return the digits of an id, or "" for any other text, because a damaged row may have text of a note there."""
    text = field.strip().removesuffix(".0")
    return text if text.isdecimal() and len(text) < 16 else ""


def _tidy(text: str) -> str:
    lines = "\n".join(re.sub(r"[ \t]+", " ", line).strip() for line in text.splitlines())
    return re.sub(r"\n{3,}", "\n\n", lines).strip()
