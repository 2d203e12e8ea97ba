"""Ratings of answers out of a file, by experts or by a model that rates: read, checked, and stored as predictions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meditune.data.readers.tables import Rejects, rows
from meditune.data.readers.user_files import columns_for
from meditune.errors import DataError
from meditune.evaluate.evaluator import list_ids
from meditune.evaluate.predictions import path_of, read
from meditune.files import write_jsonl

COLUMNS = {
    "id": ("id", "question_id", "qid", "question"),
    "score": ("score", "rating", "grade", "judgment", "judgement"),
    "model": ("model", "system", "run"),
}
LOWEST, HIGHEST = 1, 4

Rows = list[dict[str, Any]]


def read_ratings(path: Path, best: bool = False) -> dict[str, Rows]:
    """Model (empty where the file has no such column) -> rows with `id` and `score`, None for an unanswered question.

    A score is a number from 1 to 4; empty or 0 says that the question wasn't answered. Several scores of one question
    are averaged, as those of several raters; with `best` the highest counts, as of several answers. Raises DataError
    with the place of a row that can't be used: leaving one out would change the figures.
    """
    given: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    rejects = Rejects()
    columns: Mapping[str, str] = {}
    for place, row in rows(path, "ratings", rejects):
        columns = columns or columns_for(list(row), None, place, COLUMNS, (("id",), ("score",)))
        name, model = (str(row.get(columns.get(field, ""), "") or "").strip() for field in ("id", "model"))
        if not name:
            raise DataError(f"{place}: no question id. Give each rating the id of its question.")
        scores = given[model][name]
        score = _score(row.get(columns["score"]), place)
        if score is not None:
            scores.append(score)
    if len(rejects):
        first = next(rejects.rows())
        raise DataError(
            f"{first['where']}: {first['reason']}. Put this row right; left out, it would change the figures."
        )
    if not given:
        raise DataError(f"{path}: no ratings in it.")
    return {
        model: [
            {"id": name, "score": (max(scores) if best else sum(scores) / len(scores)) if scores else None}
            for name, scores in by_id.items()
        ]
        for model, by_id in given.items()
    }


def store(ratings: Mapping[str, Rows], folder: Path) -> list[str]:
    """Put each model's ratings beside its stored predictions; returns the models' names.

    Questions to which a model wrote nothing need no rating. Raises DataError where a model has no stored answers, and
    where a rated question isn't among them.
    """
    there = [name for name in ("model", "tuned", "base") if path_of(folder, name, "answer").is_file()]
    if not there:
        raise DataError(f"{folder} holds no answers that could have been rated. Give the folder of a run.")
    stored = []
    for model, found in ratings.items():
        name = model or there[0]
        if name not in there:
            raise DataError(f"The ratings are of {name!r}, and {folder} holds answers of {' and '.join(there)} only.")
        answers = {row["id"]: row["prediction"] for row in read(folder, name).answer}
        strangers = [row["id"] for row in found if row["id"] not in answers]
        if strangers:
            raise DataError(
                f"{len(strangers)} of {len(found)} rated questions of {name!r} aren't among its stored answers "
                f"({list_ids(strangers)}). Rate with the ids in {path_of(folder, name, 'answer')}."
            )
        rated = {row["id"] for row in found}
        silent = [
            {"id": each, "score": None} for each, text in answers.items() if not text.strip() and each not in rated
        ]
        by_id = {row["id"]: row for row in [*found, *silent]}
        write_jsonl(path_of(folder, name, "rating"), (by_id[each] for each in answers if each in by_id))
        stored.append(name)
    return stored


def _score(value: Any, place: str) -> float | None:
    text = "" if value is None else str(value).strip()
    if text in {"", "0", "0.0", "nan"}:
        return None
    try:
        score = float(text)
    except ValueError:
        score = float("nan")
    if not LOWEST <= score <= HIGHEST:
        raise DataError(
            f"{place}: the score {text!r} isn't a number from {LOWEST} (incorrect) to {HIGHEST} (excellent); leave it "
            "empty where the question wasn't answered."
        )
    return score
