"""Import of ratings by experts or by a rating model; the ratings are stored beside the rated model's predictions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meditune.data.readers.tables import Layout, Rejects, rows
from meditune.data.readers.user_files import columns_for
from meditune.errors import DataError
from meditune.evaluate.predictions import list_ids, path_of, read
from meditune.files import write_jsonl

LAYOUT = Layout(
    guesses={
        "id": ("id", "question_id", "qid", "question"),
        "score": ("score", "rating", "grade", "judgment", "judgement"),
        "model": ("model", "system", "run"),
    },
    needed=(("id",), ("score",)),
)
MIN_RATING, MAX_RATING = 1, 4

Rows = list[dict[str, Any]]


def read_ratings(path: Path, best: bool = False) -> dict[str, Rows]:
    """Return model -> rows with `id` and `score`; the model's name is empty if the file has no such column.

    A score is a number from 1 to 4. A score that is empty or 0 means that the question wasn't answered, and becomes
    None. If a question has several scores, they are averaged or, with `best`, the highest one counts. Raises DataError
    with the position of an invalid row, because skipping the row would change the metrics.
    """
    given: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    rejects = Rejects()
    known: dict[str, None] = {}
    columns: Mapping[str, str] = {}
    for place, row in rows(path, "ratings", rejects):
        if not columns or row.keys() - known.keys():  # rows of JSON Lines can have further columns
            known |= dict.fromkeys(row)
            columns = columns_for(list(known), None, place, LAYOUT)
        name, model = (str(row.get(columns.get(field, ""), "") or "").strip() for field in ("id", "model"))
        if not name:
            raise DataError(f"{place}: no question id. Add the question's id to each rating.")
        scores = given[model][name]
        score = _score(row.get(columns["score"]), place)
        if score is not None:
            scores.append(score)
    if len(rejects):
        first = next(rejects.rows())
        raise DataError(f"{first['where']}: {first['reason']}. Correct this row; skipping it would change the metrics.")
    if not given:
        raise DataError(f"{path}: the file contains no ratings.")
    return {
        model: [
            {"id": name, "score": (max(scores) if best else sum(scores) / len(scores)) if scores else None}
            for name, scores in by_id.items()
        ]
        for model, by_id in given.items()
    }


def store(ratings: Mapping[str, Rows], folder: Path) -> tuple[list[str], int]:
    """Store each model's ratings beside its predictions; return the models' names and the number of questions left out.

    Empty answers need no rating: they count as unanswered. But if a rated model answered a question and this answer
    wasn't rated, comparisons leave the question out, because models are compared on the same questions. Raises
    DataError if a model has no stored answers, or if a rated question isn't among the questions of its stored answers.
    """
    models = [name for name in ("model", "tuned", "base") if path_of(folder, name, "answer").is_file()]
    if not models:
        raise DataError(f"{folder} contains no answers to rate. Name the folder of a run.")
    answers = {name: {row["id"]: row["prediction"] for row in read(folder, name).answer} for name in models}
    rated = {}
    for name in models:
        if path_of(folder, name, "rating").is_file():
            written = {id for id, text in answers[name].items() if text.strip()}
            rated[name] = [r for r in read(folder, name).rating if r["score"] is not None or r["id"] in written]
    stored = []
    for model, found in ratings.items():
        name = model or models[0]
        if name not in models:
            raise DataError(
                f"The ratings are for {name!r}, but {folder} contains only answers of {' and '.join(models)}."
            )
        unknown = [row["id"] for row in found if row["id"] not in answers[name]]
        if unknown:
            raise DataError(
                f"{len(unknown)} of {len(found)} questions rated for {name!r} aren't among its answered questions "
                f"({list_ids(unknown)}). Use the ids in {path_of(folder, name, 'answer')}."
            )
        rated[name] = found
        stored.append(name)
    by_id = {name: {row["id"]: row for row in found} for name, found in rated.items()}
    left_out = {id for name in rated for id, text in answers[name].items() if text.strip() and id not in by_id[name]}
    for name in rated:
        empty = [id for id, text in answers[name].items() if not text.strip()]
        kept = {id: {"id": id, "score": None} for id in empty} | by_id[name]
        write_jsonl(path_of(folder, name, "rating"), (kept[id] for id in answers[name] if id in kept))
    return stored, len(left_out & {id for rows in by_id.values() for id in rows})


def _score(value: Any, place: str) -> float | None:
    text = "" if value is None else str(value).strip()
    if text in {"", "0", "0.0", "nan"}:
        return None
    try:
        score = float(text)
    except ValueError:
        score = float("nan")
    if not MIN_RATING <= score <= MAX_RATING:
        raise DataError(
            f"{place}: the score {text!r} isn't a number from {MIN_RATING} (incorrect) to {MAX_RATING} (excellent); "
            "leave it empty if the question wasn't answered."
        )
    return score
