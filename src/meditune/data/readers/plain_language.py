"""Published medical texts with a version in plain language: Cochrane reviews, PLABA and MEDIQA 2021.

The text is the `context` of an Example, and the plain version is its `answer`. The layouts are those of the publishers'
repositories: for Cochrane, what `prepare_data/scrape.py` and `split_dataset.py` write; for PLABA, what
`BaselineModelReports.py` reads; for MEDIQA 2021, the files in the folder `Task2`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from meditune.data.example import REWRITES_CONTEXT, Example, Passage
from meditune.data.readers.claims import with_columns
from meditune.data.readers.tables import Rejects, Row, accepted, find_files, refuse_other_kinds, rows
from meditune.data.readers.user_files import cell, passages
from meditune.errors import DataError
from meditune.files import read_json, read_text

COCHRANE, PLABA, MEDIQA = "cochrane", "plaba", "mediqa-2021"
LICENCES = {
    COCHRANE: "not stated; the texts are copyrighted by The Cochrane Collaboration",
    PLABA: "CC BY 4.0",
    MEDIQA: "CC BY 4.0",
}
COCHRANE_QUESTION = "What are the main results of this review?"
"""The question of every Cochrane pair, because the published pairs have none"""
PLABA_TEST = frozenset(map(str, (5, 12, 16, 22, 30, 36, 42, 48, 54, 61, 68)))
PLABA_DEV = frozenset(map(str, (2, 7, 13, 17, 26, 34, 40, 46, 52, 58, 66)))
"""Numbers of the questions in the publisher's test and validation splits"""
NO_TEXT, NO_PLAIN, NO_QUESTION = "no source text", "no plain version", "no question"


def _pair(
    source: str, identifier: str, question: str, text: Sequence[Passage], plain: Sequence[str], group: str, **meta: Any
) -> list[Example] | str:
    """Return the pair, or the reason why it is unusable. `plain` contains the plain version and further references."""
    found = [version for version in plain if version]
    if not (question and text and found):
        return NO_TEXT if not text else NO_PLAIN if not found else NO_QUESTION
    known = {"licence": LICENCES[source], REWRITES_CONTEXT: True, "references": found[1:] or None} | meta
    return [
        Example(
            id=f"{source}:{identifier}",
            source=source,
            question=question,
            context=tuple(text),
            answer=found[0],
            group=group,
            meta={key: value for key, value in known.items() if value},
        )
    ]


def read_cochrane(path: Path, rejects: Rejects) -> Iterator[Example]:
    """Yield the reviews' abstracts with their plain-language summaries (Devaraj et al. 2021).

    The files are `train.source`, `train.target` and, optionally, `train.doi` (also val and test), with a review on each
    line; or JSON with `doi`, `abstract` and `pls`. The group is the review, whose updates have the same number.
    """
    names = ("*.source", "data_final_1024.json", "data.json")
    files = find_files(path, names, "Copy the publisher's folder data/data-1024 there.")
    files = [file for file in files if file.parent == files[0].parent]

    def make(row: Mapping[str, Any]) -> list[Example] | str:
        doi, text, plain = cell(row.get("doi")), _sections(row.get("abstract")), _sections(row.get("pls"))
        summary = "\n\n".join(passage.text for passage in plain)
        facts = {"split": row.get("split"), "url": doi and f"https://doi.org/{doi}"}
        identifier = doi or row["place"]
        group = re.sub(r"\.pub\d+$", "", identifier)
        return _pair(COCHRANE, identifier, COCHRANE_QUESTION, text, [summary], group, **facts)

    def found() -> Iterator[Row]:
        for file in files:
            reviews = _aligned(file) if file.suffix == ".source" else rows(file, COCHRANE, rejects)
            for number, (where, row) in enumerate(reviews, start=1):
                yield where, row | {"place": f"{file.stem}-{number}"}

    yield from accepted(COCHRANE, found(), make, rejects)


def _sections(value: Any) -> tuple[Passage, ...]:
    """Return a text, or a list of sections with heading and text, as passages; empty for anything else."""
    if isinstance(value, list):
        value = [each | {"label": each.get("heading")} if isinstance(each, dict) else each for each in value]
    return passages(value) or ()


def _aligned(file: Path) -> Iterator[Row]:
    """Yield the reviews of NAME.source with the same lines of NAME.target and, if it exists, of NAME.doi.

    Raises DataError if the files have different numbers of lines.
    """
    columns = {"abstract": file, "pls": file.with_suffix(".target"), "doi": file.with_suffix(".doi")}
    if not columns["doi"].is_file():
        del columns["doi"]
    lines = {name: _lines(each) for name, each in columns.items()}
    if len(set(map(len, lines.values()))) > 1:
        counts = ", ".join(f"{columns[name].name} {len(each):,}" for name, each in lines.items())
        raise DataError(f"{file.parent}: the files have different numbers of lines ({counts}). Copy all of them again.")
    for number, values in enumerate(zip(*lines.values(), strict=True), start=1):
        yield f"{file}:{number}", {"split": file.stem} | dict(zip(lines, values, strict=True))


def _lines(file: Path) -> list[str]:
    # A text can contain other separators, such as U+2028 or a carriage return, at which str.splitlines would split it.
    if not file.is_file():
        raise DataError(f"{file}: no such file. Copy it from the publisher's folder.")
    refuse_other_kinds(file)
    return [line.removesuffix("\r") for line in read_text(file, newline="\n").removesuffix("\n").split("\n")]


def read_plaba(path: Path, rejects: Rejects) -> Iterator[Example]:
    """Yield PubMed abstracts with their plain adaptations (Attal et al. 2023); further adaptations are references.

    The file `data.json` maps question numbers to the `question` and to PubMed ids, each with the sentences of its
    `abstract` and of its `adaptations`, both by sentence number. The group is the question.
    """
    file = find_files(path, ("data.json",), "Download PLABA's data.json from https://osf.io/rnpmf there.")[0]

    def found() -> Iterator[Row]:
        value = read_json(file)
        if not isinstance(value, dict) or not all(isinstance(asked, dict) for asked in value.values()):
            raise DataError(f"{file}: expected an object that maps question numbers to abstracts. Download it again.")
        for number, asked in value.items():
            for pmid, texts in asked.items():
                if isinstance(texts, dict):
                    row = {"number": number, "pmid": pmid, "question": asked.get("question")}
                    yield f"{file}, question {number}, abstract {pmid}", row | texts

    def make(row: Mapping[str, Any]) -> list[Example] | str:
        number, pmid, adaptations = row["number"], row["pmid"], row.get("adaptations")
        abstract = _joined(row.get("abstract"))
        plain = [_joined(each) for each in adaptations.values()] if isinstance(adaptations, dict) else []
        split = "test" if number in PLABA_TEST else "val" if number in PLABA_DEV else "train"
        facts = {"split": split, "pmid": pmid, "url": f"https://pubmed.ncbi.nlm.nih.gov/{pmid}/"}
        text = [Passage(text=abstract)] if abstract else []
        return _pair(PLABA, f"{number}-{pmid}", cell(row["question"]), text, plain, f"question-{number}", **facts)

    yield from accepted(PLABA, found(), make, rejects)


def _joined(value: Any) -> str:
    """Return the sentences of an object that maps sentence numbers to sentences; a dropped sentence is empty."""
    texts = value.values() if isinstance(value, dict) else ()
    return " ".join(filter(None, (each.strip() for each in texts if isinstance(each, str))))


_MEDIQA_FILES = {
    "questions": (r"shortquestions\.txt$", "ShortQuestions.txt"),
    "plain": (r"abstra\w*tivesummaries\.txt$", "MultiAbstrativeSummaries.txt"),
    "answers": (r"answer\w*\.(csv|jsonl)$", "Answers.csv (the sheet of Answers.xlsx, saved as CSV in UTF-8)"),
    "extractive": (r"extractivesummaries\.txt$", ""),
}
"""The pattern of each kind of file, in lowercase, and its name in messages, which is empty if the file is optional"""


def read_mediqa(path: Path, rejects: Rejects) -> Iterator[Example]:
    """Yield consumers' questions with several retrieved answers as context, and the experts' abstractive summary.

    The extractive summary, if there is one, is a further reference. The questions and summaries are text files with
    lines ID||TEXT. The retrieved answers are the sheet of `Answers.xlsx`, saved as CSV, or JSON Lines, with the columns
    QuestionID, AnswerID and Answer. A file with "test" in its name belongs to the test split. Raises DataError if a
    split lacks one of the files or has it twice.
    """
    files: dict[str, dict[str, Path]] = {}
    for file in sorted(each for each in path.rglob("*") if each.is_file()):
        split = "test" if "test" in file.name.lower() else "validation"
        for kind, (pattern, _) in _MEDIQA_FILES.items():
            if re.search(pattern, file.name.lower()):
                other = files.setdefault(split, {}).setdefault(kind, file)
                if other != file:
                    raise DataError(
                        f"{path}: both {other.name} and {file.name} look like the {kind} of the {split} set. Keep the "
                        "publisher's file names, and put each file there once."
                    )
    for split in files or ("validation",):
        missing = [name for kind, (_, name) in _MEDIQA_FILES.items() if name and kind not in files.get(split, {})]
        if missing:
            raise DataError(
                f"{path}: the {split} set of MEDIQA 2021 lacks {' and '.join(missing)}. Copy the files of the folder "
                "Task2 of https://github.com/abachaa/MEDIQA2021 there."
            )
    yield from accepted(MEDIQA, _mediqa_questions(files, rejects), _mediqa_pair, rejects)


def _mediqa_questions(files: Mapping[str, Mapping[str, Path]], rejects: Rejects) -> Iterator[Row]:
    for split, found in files.items():
        plain, extractive = (
            {number: text for _, number, text in _numbered(found[kind], rejects)} if kind in found else {}
            for kind in ("plain", "extractive")
        )
        answers: dict[str, list[str]] = {}
        for _, row in with_columns(found["answers"], MEDIQA, ("QuestionID", "AnswerID", "Answer"), rejects):
            answers.setdefault(cell(row["QuestionID"]), []).append(cell(row["Answer"]))
        for where, number, question in _numbered(found["questions"], rejects):
            versions = {"plain": [plain.get(number, ""), extractive.get(number, "")], "answers": answers.get(number)}
            yield where, {"split": split, "number": number, "question": question} | versions


def _mediqa_pair(row: Mapping[str, Any]) -> list[Example] | str:
    key, plain = f"{row['split']}-{row['number']}", row["plain"] if row["plain"][0] else []
    return _pair(MEDIQA, key, row["question"], passages(row["answers"]) or (), plain, key, split=row["split"])


def _numbered(file: Path, rejects: Rejects) -> Iterator[tuple[str, str, str]]:
    """Yield the place, the id and the text of each line ID||TEXT."""
    for place, line in enumerate(_lines(file), start=1):
        identifier, separator, text = (part.strip() for part in line.partition("||"))
        if identifier and separator:
            yield f"{file}:{place}", identifier, text.rstrip("| ")
        elif line.strip():
            rejects.add(MEDIQA, f"{file}:{place}", "not a line of the form ID||TEXT", line)
