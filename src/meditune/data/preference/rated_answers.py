"""Preference pairs from `train.preference.path`: a file of pairs, or rated answers from which pairs are built.

Of two answers to one question, the one with the higher rating is preferred. KTO learns from single answers instead,
with thumbs up or down: from a file of ratings, or from the answers and feedback that a server exports. Ratings can also
come from MedQuAD answers that experts judged for LiveQA's test questions (Ben Abacha and Demner-Fushman 2019, "A
question-entailment approach to question answering", BMC Bioinformatics 20:511,
https://doi.org/10.1186/s12859-019-3119-4; https://github.com/abachaa/MedQuAD). Judgments are 1 (incorrect), 2
(related), 3 (incomplete) and 4 (excellent).
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
from meditune.data.example import Passage, Turn, problem_in_text
from meditune.data.preference import pairs as user_pairs
from meditune.data.preference.pairs import DOWN, RATED, SOURCE, UP, Pair
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
    stored_turns,
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
THUMBS_COLUMNS = COLUMNS | {"rating": ("thumbs", "thumb", "vote", "rating", "label")}
THUMBS = {"up": 1.0, "true": 1.0, "1": 1.0, "+1": 1.0, "down": -1.0, "false": -1.0, "-1": -1.0}
"""Rating in lowercase -> 1 for thumbs up, -1 for thumbs down"""
UNKNOWN_THUMB = "unknown rating"
NEEDED = (("question",), ("answer",), ("rating",))
MARGIN, PER_QUESTION = 1.0, 10
"""Minimum difference of the ratings in a pair, and maximum number of pairs of one question"""
_ROUNDING = 1e-9
"""Tolerance for rounding errors in the means of ratings"""


@dataclass(frozen=True)
class Rated:
    """A rating of an answer."""

    id: str
    """The place in the file, which is unique"""
    name: str
    """The answer's id in the file; the same for all its ratings"""
    question: str
    context: tuple[Passage, ...]
    answer: str
    group: str
    """The group given in the file, or empty"""
    rating: float
    """Higher is better; 1 or -1 for thumbs up or down"""
    source: str = ""
    restricted: bool = False
    turns: tuple[Turn, ...] | None = None

    @property
    def asked(self) -> tuple[Any, ...]:
        """Return a key that is equal for answers that may be compared."""
        return question_key(self.question), self.context, self.turns, self.group


def from_rows(
    rows: Iterable[Row],
    rejects: Rejects,
    fields: Mapping[str, str] | None,
    name: str,
    no_rows: str,
    as_thumbs: bool = False,
) -> Iterator[Rated]:
    """Yield ratings from (place, columns) pairs with the columns question, answer and rating (higher is better).

    The columns context, group and id are optional. Rows without a required value, or with an id that belongs to
    another answer, go to `rejects`. `name` is the prefix of generated ids. With `as_thumbs`, ratings are those in
    THUMBS. Raises DataError if a required column is missing.
    """
    known: dict[str, tuple[Any, ...]] = {}

    def make(row: Mapping[str, Any], columns: Mapping[str, str], place: str) -> tuple[Rated | None, str]:
        rated, problem = _rated(row, columns, place, as_thumbs)
        if rated and known.setdefault(rated.name, (rated.asked, rated.answer)) != (rated.asked, rated.answer):
            return None, "the id belongs to another answer"
        return rated, problem

    guesses = THUMBS_COLUMNS if as_thumbs else COLUMNS
    yield from records(rows, rejects, make, SOURCE, name, no_rows, fields, guesses=guesses, needed=NEEDED)


def paired(
    ratings: Iterable[Rated],
    seed: int,
    rejects: Rejects,
    margin: float = MARGIN,
    per_question: int = PER_QUESTION,
) -> list[Pair]:
    """Return up to `per_question` seeded random pairs per question, with ratings at least `margin` apart.

    Only answers to the same question with the same context and group are compared, because for another prompt the
    order might be reversed. An answer with several ratings gets their mean. Answers that give no pair are counted in
    `rejects`.
    """
    asked: dict[Any, dict[str, list[Rated]]] = defaultdict(lambda: defaultdict(list))
    for rated in ratings:
        asked[rated.asked][" ".join(rated.answer.split())].append(rated)
    pairs: list[Pair] = []
    for answers in asked.values():
        again = sum(map(len, answers.values())) - len(answers)
        rejects.count_only(SOURCE, "further ratings of the same answer (averaged)", again)
        means = [replace(each[0], rating=sum(r.rating for r in each) / len(each)) for each in answers.values()]
        if len(means) == 1:
            rejects.count_only(SOURCE, "answers that are the only one to their question, context and group")
        else:
            pairs += _of_question(means, margin, per_question, seed, rejects)
    return pairs


def _of_question(answers: Sequence[Rated], margin: float, per_question: int, seed: int, rejects: Rejects) -> list[Pair]:
    """Return pairs of answers to one question, sampled by index without listing all possible pairs."""
    ranked = sorted(answers, key=lambda each: each.rating)
    ratings = [each.rating for each in ranked]
    below = [bisect_right(ratings, rating - margin + _ROUNDING) for rating in ratings]
    ends = list(accumulate(below))
    above = ratings[-1] - margin + _ROUNDING
    unpaired = sum(not count and rating > above for count, rating in zip(below, ratings, strict=True))
    rejects.count_only(SOURCE, "answers rated too close to all other answers to their question", unpaired)
    rejects.count_only(SOURCE, "pairs beyond the maximum for one question", max(0, ends[-1] - per_question))
    chance = random.Random(f"{seed}/rated/{ranked[0].question}")
    pairs = []
    for number in sorted(chance.sample(range(ends[-1]), min(ends[-1], per_question))):
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
                turns=better.turns,
                kind=RATED,
            )
        )
    return pairs


def thumbs(ratings: Iterable[Rated], rejects: Rejects) -> list[Pair]:
    """Return each rated answer as thumbs up or down, by the majority of its ratings; ties are counted in `rejects`."""
    answers: dict[Any, list[Rated]] = defaultdict(list)
    for rated in ratings:
        answers[rated.asked, " ".join(rated.answer.split())].append(rated)
    pairs = []
    for first, *further in answers.values():
        rejects.count_only(SOURCE, "further ratings of the same answer (the majority counts)", len(further))
        total = first.rating + sum(each.rating for each in further)
        if not total:
            rejects.count_only(SOURCE, "answers with as many thumbs up as thumbs down")
            continue
        pairs.append(
            Pair(
                id=f"{SOURCE}:{first.name}",
                question=first.question,
                context=first.context,
                chosen=first.answer if total > 0 else "",
                rejected=first.answer if total < 0 else "",
                group=group_of(first.group, first.question),
                source=first.source,
                restricted=any(each.restricted for each in (first, *further)),
                turns=first.turns,
                kind=UP if total > 0 else DOWN,
            )
        )
    return pairs


def _exported(rows: Iterable[Row], rejects: Rejects) -> Iterator[Row]:
    """Yield a row for `from_rows` for each rating in the answers that `meditune answers export` wrote.

    If experts rated an answer, only their ratings count.
    """
    for where, row in rows:
        feedback = row.get("feedback")
        if not isinstance(feedback, list) or not all(isinstance(each, Mapping) for each in feedback):
            rejects.add(SOURCE, where, "feedback is not a list of objects with a rating", row)
        elif row.get("outcome") != "answered":
            rejects.count_only(SOURCE, "answers that the model didn't write (abstained, declined or escalated)")
        elif not feedback:
            rejects.count_only(SOURCE, "answers without feedback")
        elif not row.get("question") or not row.get("answer"):
            rejects.count_only(SOURCE, "answers whose text wasn't stored (meditune serve --keep-text)")
        else:
            shown = {name: row.get(name) for name in ("id", "question", "context", "answer")}
            for each in [each for each in feedback if each.get("expert")] or feedback:
                yield where, shown | {"rating": each.get("rating")}


def _rated(row: Mapping[str, Any], columns: Mapping[str, str], place: str, as_thumbs: bool) -> tuple[Rated | None, str]:
    """Return the row as a Rated, or None and the reason for rejecting it."""
    values = {field: row.get(column) for field, column in columns.items()}
    question, answer = cell(values.get("question")), cell(values.get("answer"))
    context = passages(values.get("context"))
    thumb = cell(values.get("rating")).lower()
    rating = THUMBS.get(thumb) if as_thumbs else _number(values.get("rating"))
    if not question:
        return None, "no question"
    if not answer:
        return None, "no answer (or the answer isn't text)"
    if rating is None:
        return None, f"{UNKNOWN_THUMB} {thumb[:40]!r}" if as_thumbs and thumb else NO_RATING[as_thumbs]
    if context is None:
        return None, NO_CONTEXT
    name, group = (cell(values.get(field)) for field in ("id", "group"))
    source, restricted = cell(row.get("source")), is_marked(row.get(RESTRICTED))
    turns = stored_turns(row.get("turns"))
    return Rated(place, name or place, question, context, answer, group, rating, source, restricted, turns), ""


NO_RATING = {False: "no rating (or the rating isn't a number)", True: "no rating"}


def _number(value: object) -> float | None:
    """Return the value as a finite number, or None."""
    try:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else float(cell(value))
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


ANSWERS, JUDGMENTS = "*Answers*.csv", "*qrels*.txt"
_JUDGMENT = re.compile(r"(\d+)\s+([1-4])-\w+\s+(\S+)")
# Every published answer ends in a superfluous bracket.
_ANSWER = re.compile(r"Question:.*?\nURL:.*?\nAnswer:(.*)\)", re.DOTALL)


def read(folder: Path, questions: Path, rejects: Rejects) -> Iterator[Rated]:
    """Yield each judgment in the publisher's folder that has an answer, for LiveQA's questions in `questions`.

    Questions have LiveQA's wording and group. Judgments of an unknown question or answer go to `rejects`. Raises
    DataError if the folder lacks the answers or the judgments.
    """
    answers: dict[str, str] = {}
    for path in _files(folder, ANSWERS):
        for where, row in rows(path, SOURCE, rejects):
            problem = problem_in_text(row)
            found = None if problem else _ANSWER.fullmatch(str(row.get("Answer", "")).strip())
            if found and row.get("AnswerID"):
                answers[row["AnswerID"]] = tidy(found[1])
            else:
                unlike = "no AnswerID, or an Answer that doesn't consist of Question, URL and Answer"
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
                problem = "not a line of question, judgment and answer" if not found else "unknown question or answer"
                rejects.add(SOURCE, f"{path}:{number}", problem, line)


def _files(folder: Path, pattern: str) -> list[Path]:
    found = sorted(folder.glob(pattern))
    if not found:
        raise DataError(
            f"{folder}: no {pattern} in this folder. Set train.preference.path to a file of pairs or rated answers, or "
            f"to the folder of MedQuAD's judged answers ({ANSWERS} and {JUDGMENTS})."
        )
    return found


def read_given_pairs(path: Path, recipe: Recipe, rejects: Rejects) -> list[Pair]:
    """Return pairs from a file of pairs or of rated answers, or from the folder of MedQuAD's judged answers.

    The columns, named in the recipe or guessed, decide which kind a file is. For the objective kto, a file of rated
    answers gives single answers. Rejected rows go to `rejects`. Raises DataError if the file is neither, if a rating
    isn't thumbs up or down but has to be, or if the file has no usable pairs.
    """
    spec, as_thumbs = recipe.train.preference, recipe.train.objective == "kto"
    if path.is_dir():
        questions = next((source.path for source in recipe.data.sources if source.name == "liveqa"), None)
        ratings = read(path, locate_source("liveqa", questions), rejects)
        pairs = paired(ratings, recipe.seed, rejects)
    else:
        stream = rows(path, user_pairs.SOURCE, rejects)
        first = list(islice(stream, LOOK_AHEAD))
        found: Iterator[Row] = chain(first, stream)
        fields = spec.fields or None
        no_rows = f"{path}: no rows. Provide a file with at least one pair, or two rated answers to one question."
        if as_thumbs and first and isinstance(first[0][1].get("feedback"), list):
            found = _exported(found, rejects)
            first = list(islice(found, LOOK_AHEAD))
            found = chain(first, found)
            no_rows = _nothing_usable(path, rejects, as_thumbs)
        columns = list(dict.fromkeys(str(column) for _, row in first for column in row))
        if first and _holds_ratings(columns, spec.fields, first[0][0], as_thumbs):
            ratings = from_rows(found, rejects, fields, path.stem, no_rows, as_thumbs)
            pairs = thumbs(ratings, rejects) if as_thumbs else paired(ratings, recipe.seed, rejects)
            _refuse_unknown_thumbs(rejects)
        else:
            pairs = list(user_pairs.from_rows(found, rejects, fields, path.stem, no_rows))
    if not pairs:
        raise DataError(_nothing_usable(path, rejects, as_thumbs))
    return pairs


def _refuse_unknown_thumbs(rejects: Rejects) -> None:
    for row in rejects.rows():
        if row["reason"].startswith(UNKNOWN_THUMB):
            raise DataError(
                f"{row['where']}: {row['reason']}. With train.objective kto, a rating is up or down, true or false, or "
                "1 or -1. For ratings on a scale, set train.objective to dpo."
            )


def _holds_ratings(columns: Collection[str], fields: Mapping[str, str], location: str, as_thumbs: bool) -> bool:
    """Return True for columns of rated answers, False for columns of pairs. Raises DataError if they are neither."""
    chosen, rejected = (has_column(field, columns, fields, user_pairs.COLUMNS) for field in ("chosen", "rejected"))
    guesses = THUMBS_COLUMNS if as_thumbs else COLUMNS
    answer, rating = (has_column(field, columns, fields, guesses) for field in ("answer", "rating"))
    if not (chosen and rejected) and rating and (answer or not (chosen or rejected)):
        return True
    if chosen or rejected:
        return False
    raise DataError(
        f"{location}: these are neither pairs (question, chosen, rejected) nor rated answers "
        "(question, answer, rating). "
        f"The columns are {list_columns(columns)}. Name them in train.preference.fields, for example "
        "fields: {rating: COLUMN}. For a file of `meditune answers export`, set train.objective to kto."
    )


def _nothing_usable(path: Path, rejects: Rejects, as_thumbs: bool) -> str:
    left = ", ".join(f"{count:,} {reason}" for reason, count in rejects.counts().get(user_pairs.SOURCE, {}).items())
    first = next(rejects.rows(), None)
    advice = (
        f"The first rejected row is {first['where']}: {first['reason']}."
        if first
        else "Provide answers that people rated up or down."
        if as_thumbs
        else f"Provide more ratings; two ratings in a pair differ by at least {MARGIN:g}."
    )
    return f"{path}: no usable {'ratings' if as_thumbs else 'pairs'} ({left}). {advice}"
