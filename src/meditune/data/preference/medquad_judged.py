"""MedQuAD answers that experts judged for LiveQA's test questions, as ratings.

Ben Abacha and Demner-Fushman 2019, "A question-entailment approach to question answering", BMC Bioinformatics 20:511
(https://doi.org/10.1186/s12859-019-3119-4); https://github.com/abachaa/MedQuAD. Judgments are 1 (incorrect), 2
(related), 3 (incomplete) and 4 (excellent).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from meditune.data import liveqa
from meditune.data.archive import tidy
from meditune.data.damage import damage
from meditune.data.preference.own import SOURCE
from meditune.data.preference.rated import Rated
from meditune.data.rejects import Rejects
from meditune.data.tables import rows
from meditune.errors import DataError
from meditune.files import read_text

ANSWERS, JUDGMENTS = "*Answers*.csv", "*qrels*.txt"
_JUDGMENT = re.compile(r"(\d+)\s+([1-4])-\w+\s+(\S+)")
# Every published answer ends in one bracket too many.
_ANSWER = re.compile(r"Question:.*?\nURL:.*?\nAnswer:(.*)\)", re.DOTALL)


def read(folder: Path, questions: Path, rejects: Rejects) -> Iterator[Rated]:
    """Each judgment in the publisher's folder whose answer is there, for LiveQA's questions in `questions`.

    A question has LiveQA's words and group. Judgments that name an unknown question or answer go to `rejects`. Raises
    DataError where the folder lacks the answers or the judgments.
    """
    answers: dict[str, str] = {}
    for path in _files(folder, ANSWERS):
        for where, row in rows(path, SOURCE, rejects):
            problem = damage(row)
            found = None if problem else _ANSWER.fullmatch(str(row.get("Answer", "")).strip())
            if found and row.get("AnswerID"):
                answers[row["AnswerID"]] = tidy(found[1])
            else:
                unlike = "no AnswerID, or an Answer that isn't Question, URL and Answer"
                rejects.add(SOURCE, where, problem or unlike, row)
    known = {each.id: each for each in liveqa.read(questions, Rejects())}
    for path in _files(folder, JUDGMENTS):
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            found = _JUDGMENT.fullmatch(line.strip())
            question = known.get(f"{liveqa.SOURCE}-test:TQ{found[1]}") if found else None
            if found and question and found[3] in answers:
                yield Rated(
                    id=f"{path.stem}-{number}",
                    name=f"TQ{found[1]}/{found[3]}",
                    question=question.question,
                    context=(),
                    answer=answers[found[3]],
                    group=question.group,
                    rating=float(found[2]),
                )
            elif line.strip():
                problem = "neither question, judgment and answer" if not found else "unknown question or answer"
                rejects.add(SOURCE, f"{path}:{number}", problem, line)


def _files(folder: Path, pattern: str) -> list[Path]:
    found = sorted(folder.glob(pattern))
    if not found:
        raise DataError(
            f"{folder}: no {pattern} in it. Name a file of pairs or of rated answers as train.preference.path, or the "
            f"folder of MedQuAD's judged answers ({ANSWERS} and {JUDGMENTS})."
        )
    return found
