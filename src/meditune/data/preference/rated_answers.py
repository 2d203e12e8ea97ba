"""Pairs out of rated answers: of two answers to one question, the one that was rated higher is to be preferred.

MedQuAD answers that experts judged for LiveQA's test questions, as ratings.

Ben Abacha and Demner-Fushman 2019, "A question-entailment approach to question answering", BMC Bioinformatics 20:511
(https://doi.org/10.1186/s12859-019-3119-4); https://github.com/abachaa/MedQuAD. Judgments are 1 (incorrect), 2
(related), 3 (incomplete) and 4 (excellent).

The pairs of `train.preference.path`: written down as such, or made of rated answers.
"""

from __future__ import annotations

import math
import random
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any

from meditune.config.recipe import Recipe
from meditune.config.training_options import RatedSpec
from meditune.data.example import Passage, problem_in_text
from meditune.data.preference import pairs as own
from meditune.data.preference.pairs import RATED, SOURCE, Pair
from meditune.data.read_sources import RESTRICTED, is_marked
from meditune.data.readers import liveqa
from meditune.data.readers.medquad import tidy
from meditune.data.readers.tables import Rejects, Row, rows
from meditune.data.readers.user_files import (
    GUESSES,
    LOOK_AHEAD,
    NO_CONTEXT,
    cell,
    group_of,
    has_column,
    list_columns,
    passages,
    records,
)
from meditune.data.sources import locate_source
from meditune.data.splits import question_key
from meditune.errors import DataError
from meditune.files import read_text

COLUMNS = {field: GUESSES[field] for field in ("question", "answer", "context")} | {
    "id": ("id", "answer_id", "uid"),
    "rating": ("rating", "score", "grade", "stars", "judgment", "judgement"),
    "group": (*GUESSES["group"], "question_id", "qid"),
}
NEEDED = (("question",), ("answer",), ("rating",))
_ROUNDING = 1e-9
"""Means of ratings differ by no more than this from what they would be without rounding."""


@dataclass(frozen=True)
class Rated:
    """One rating of one answer."""

    id: str
    """Unique: its place in the file"""
    name: str
    """What its file calls the answer; the same for each rating of it"""
    question: str
    context: tuple[Passage, ...]
    answer: str
    group: str
    """As stated, or empty"""
    rating: float
    """Higher is better"""
    source: str = ""
    restricted: bool = False

    @property
    def asked(self) -> tuple[str, tuple[Passage, ...], str]:
        """The same for answers that may be compared."""
        return question_key(self.question), self.context, self.group


def from_rows(
    found: Iterable[Row], rejects: Rejects, fields: Mapping[str, str] | None, name: str, no_rows: str
) -> Iterator[Rated]:
    """Ratings from (place, columns) pairs with the columns question, answer and rating (a number, higher is better).

    Context, group and id may be there too. Rows without one of the three, and those whose id is another answer's, go
    to `rejects`. `name` begins the ids of rows without one. Raises DataError where a needed column is missing.
    """
    known: dict[str, tuple[Any, ...]] = {}

    def make(row: Mapping[str, Any], columns: Mapping[str, str], place: str) -> tuple[Rated | None, str]:
        rated, problem = _rated(row, columns, place)
        if rated and known.setdefault(rated.name, (rated.asked, rated.answer)) != (rated.asked, rated.answer):
            return None, "id of another answer"
        return rated, problem

    yield from records(found, rejects, make, SOURCE, name, no_rows, fields, guesses=COLUMNS, needed=NEEDED)


def paired(ratings: Iterable[Rated], spec: RatedSpec, seed: int, rejects: Rejects) -> list[Pair]:
    """Up to `spec.per_question` seeded pairs of each question, their ratings at least `spec.margin` apart.

    Only answers to the same question with the same context and group are compared: after any other prompt the worse one
    might be the better. An answer that was rated more than once has the mean of its ratings. What gives no pair is
    counted in `rejects`.
    """
    asked: dict[Any, dict[str, list[Rated]]] = defaultdict(lambda: defaultdict(list))
    for rated in ratings:
        asked[rated.asked][" ".join(rated.answer.split())].append(rated)
    pairs: list[Pair] = []
    for answers in asked.values():
        again = sum(map(len, answers.values())) - len(answers)
        rejects.count_only(SOURCE, "further ratings of the same answer, averaged with its first", again)
        means = [replace(each[0], rating=sum(r.rating for r in each) / len(each)) for each in answers.values()]
        if len(means) == 1:
            rejects.count_only(SOURCE, "answers without another to the same question, context and group")
        else:
            pairs += _of_question(means, spec, seed, rejects)
    return pairs


def _of_question(answers: Sequence[Rated], spec: RatedSpec, seed: int, rejects: Rejects) -> list[Pair]:
    """Pairs of different answers to one question. They are counted, not listed, to be chosen from."""
    ranked = sorted(answers, key=lambda each: each.rating)
    ratings = [each.rating for each in ranked]
    below = [bisect_right(ratings, rating - spec.margin + _ROUNDING) for rating in ratings]
    ends = list(accumulate(below))
    above = ratings[-1] - spec.margin + _ROUNDING
    lone = sum(not count and rating > above for count, rating in zip(below, ratings, strict=True))
    rejects.count_only(SOURCE, "answers rated too close to all others of their question (rated.margin)", lone)
    rejects.count_only(SOURCE, "pairs beyond rated.per_question", max(0, ends[-1] - spec.per_question))
    chance = random.Random(f"{seed}/rated/{ranked[0].question}")
    pairs = []
    for number in sorted(chance.sample(range(ends[-1]), min(ends[-1], spec.per_question))):
        place = bisect_right(ends, number)
        better, worse = ranked[place], ranked[ends[place] - 1 - number]
        pairs.append(
            Pair(
                id=f"{SOURCE}:{better.name}>{worse.name}",
                question=better.question,
                context=better.context,
                chosen=better.answer,
                rejected=worse.answer,
                group=group_of(better.group, better.question),
                source=better.source,
                restricted=better.restricted or worse.restricted,
                kind=RATED,
            )
        )
    return pairs


def _rated(row: Mapping[str, Any], columns: Mapping[str, str], place: str) -> tuple[Rated | None, str]:
    """The row as a Rated, or None and the reason why not."""
    values = {field: row.get(column) for field, column in columns.items()}
    question, answer = cell(values.get("question")), cell(values.get("answer"))
    context = passages(values.get("context"))
    rating = _number(values.get("rating"))
    if not question:
        return None, "no question"
    if not answer:
        return None, "no answer (or one that isn't text)"
    if rating is None:
        return None, "no rating (or one that isn't a number)"
    if context is None:
        return None, NO_CONTEXT
    name, group = (cell(values.get(field)) for field in ("id", "group"))
    source, restricted = cell(row.get("source")), is_marked(row.get(RESTRICTED))
    return Rated(place, name or place, question, context, answer, group, rating, source, restricted), ""


def _number(value: object) -> float | None:
    """A finite number, or None."""
    try:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else float(cell(value))
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


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
            problem = problem_in_text(row)
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


def read_given_pairs(path: Path, recipe: Recipe, rejects: Rejects) -> list[Pair]:
    """Pairs from a file of pairs or of rated answers, or from the folder of MedQuAD's judged answers.

    Which kind a file is, its columns say, named in the recipe or guessed. Refused rows go to `rejects`. Raises
    DataError where it is neither, and where nothing in it is usable.
    """
    spec = recipe.train.preference
    if path.is_dir():
        questions = next((source.path for source in recipe.data.sources if source.name == "liveqa"), None)
        ratings = read(path, locate_source("liveqa", questions), rejects)
        pairs = paired(ratings, spec.rated, recipe.seed, rejects)
    else:
        stream = rows(path, own.SOURCE, rejects)
        first = list(islice(stream, LOOK_AHEAD))
        found, fields = chain(first, stream), spec.fields or None
        no_rows = f"{path}: no rows. Give a file with at least one pair, or two rated answers to one question."
        columns = list(dict.fromkeys(str(column) for _, row in first for column in row))
        if first and _holds_ratings(columns, spec.fields, first[0][0]):
            ratings = from_rows(found, rejects, fields, path.stem, no_rows)
            pairs = paired(ratings, spec.rated, recipe.seed, rejects)
        else:
            pairs = list(own.from_rows(found, rejects, fields, path.stem, no_rows))
    if not pairs:
        raise DataError(_nothing_usable(path, rejects))
    return pairs


def _holds_ratings(columns: Collection[str], fields: Mapping[str, str], where: str) -> bool:
    """Whether the columns are those of rated answers, not of pairs. Raises DataError where they are neither's."""
    chosen, rejected = (has_column(field, columns, fields, own.COLUMNS) for field in ("chosen", "rejected"))
    answer, rating = (has_column(field, columns, fields, COLUMNS) for field in ("answer", "rating"))
    if not (chosen and rejected) and rating and (answer or not (chosen or rejected)):
        return True
    if chosen or rejected:
        return False
    raise DataError(
        f"{where}: neither pairs (question, chosen, rejected) nor rated answers (question, answer, rating); there are "
        f"{list_columns(columns)}. Name the columns in train.preference.fields, for example fields: {{rating: COLUMN}}."
    )


def _nothing_usable(path: Path, rejects: Rejects) -> str:
    left = ", ".join(f"{count:,} {reason}" for reason, count in rejects.counts().get(own.SOURCE, {}).items())
    first = next(rejects.rows(), None)
    advice = (
        f"The first refused row, {first['where']}: {first['reason']}."
        if first
        else "Lower train.preference.rated.margin, or give more ratings."
    )
    return f"{path}: no pair can be made of it ({left}). {advice}"
