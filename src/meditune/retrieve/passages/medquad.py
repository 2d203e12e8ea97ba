"""MedQuAD's answers, and those of them that experts judged for LiveQA, as documents."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from meditune.data import medquad
from meditune.data.archive import tidy
from meditune.data.rejects import Rejects
from meditune.data.tables import rows
from meditune.errors import DataError
from meditune.retrieve.passages.passage import Document, Section

SOURCE = medquad.SOURCE
JUDGED = "medquad-judged"
JUDGED_FILES = "*Answers*.csv"
# Every published answer ends in one bracket too many.
_JUDGED_ANSWER = re.compile(r"Question:(.*?)\nURL:(.*?)\nAnswer:(.*?)\)?", re.DOTALL)


def read(path: Path, rejects: Rejects) -> Iterator[Document]:
    """One document for each answered pair: the question is its title, the question's type its section."""
    for example in medquad.read(path, rejects):
        yield Document(
            id=example.id,
            source=SOURCE,
            sections=[Section(example.answer, str(example.meta["question_type"]))],
            title=example.question,
            url=str(example.meta["url"]),
            licence=medquad.LICENCE,
            group=example.group,
        )


def read_judged(folder: Path, rejects: Rejects) -> Iterator[Document]:
    """One document for each answer, with the publisher's AnswerID in its id. Raises DataError without a file."""
    files = sorted(folder.glob(JUDGED_FILES))
    if not files:
        raise DataError(f"{folder}: no {JUDGED_FILES} in it. Point at the folder of MedQuAD's judged answers.")
    for file in files:
        for where, row in rows(file, JUDGED, rejects):
            found = _JUDGED_ANSWER.fullmatch(str(row.get("Answer", "")).strip())
            name = str(row.get("AnswerID") or "").removesuffix(".txt")
            if not found or not name:
                rejects.add(JUDGED, where, "no AnswerID, or an Answer that isn't Question, URL and Answer", row)
                continue
            yield Document(
                id=f"{JUDGED}:{name}",
                source=JUDGED,
                sections=[Section(tidy(found[3]))],
                title=" ".join(found[1].split()),
                url=found[2].strip(),
                licence=medquad.LICENCE,
            )
