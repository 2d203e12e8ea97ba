"""Ratings as a CSV file, and ratings from files into a set."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from meditune.data.rejects import Rejects
from meditune.data.tables import rows
from meditune.errors import DataError
from meditune.files import replacing
from meditune.review import labelstudio
from meditune.review.axes import CANNOT
from meditune.review.ratingset import RatingSet, read_key, read_set
from meditune.review.said import Said
from meditune.review.store import ADJUDICATION, RATING, Note, Rating, Store
from meditune.review.tasks import RATE, Task

Format = Literal["csv", "label-studio"]
FORMATS: tuple[Format, ...] = get_args(Format)
COLUMNS = ("item", "rater", "round", "axis", "option", "label", "text", "seconds", "time")
NEEDED = ("item", "rater", "axis")
UNBLINDED = ("example", "origin")
COMMENT, BETTER = "comment", "better_answer"
"""What stands in `axis` where the row holds a text."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Taken:
    """What an import did."""

    new: int
    changed: int
    same: int


def export(folder: Path, to: Path | None, format: str | None, unblind: bool, task: Task = RATE) -> list[Path]:
    """Write the ratings and return the files: one CSV, or Label Studio's tasks and its labeling configuration.

    With `unblind` each row also says which example it is about and whose answer it is. Raises DataError for an unknown
    format.
    """
    kind = format or ("label-studio" if to and to.suffix == ".json" else "csv")
    if kind not in FORMATS:
        raise DataError(f"There is no format {kind!r}. Choose from {', '.join(FORMATS)}.")
    rating_set, store = read_set(folder, task), Store(folder)
    names = {id: rater.name for id, rater in store.raters().items()}
    said = Said(
        [replace(each, rater=names[each.rater]) for each in store.ratings()],
        [replace(each, rater=names[each.rater]) for each in store.notes()],
    )
    origins = {id: (row.example, "+".join(row.origins)) for id, row in read_key(folder)[0].items()} if unblind else {}
    if kind == "csv":
        path = to or folder / "ratings.csv"
        _write_csv(path, rating_set, said, origins)
        return [path]
    path = to or folder / "label-studio.json"
    return labelstudio.write(path, rating_set, said, origins)


def take_in(folder: Path, path: Path, task: Task = RATE) -> Taken:
    """Store what a CSV or a Label Studio export says; all of it, or nothing where a row makes no sense.

    What the same rater said before about the same thing is replaced, so the same file may come twice. Raises DataError
    with the line.
    """
    rating_set, store = read_set(folder, task), Store(folder)
    said = labelstudio.read(path, rating_set) if path.suffix.lower() == ".json" else _read_csv(path, rating_set)
    joining = {each.rater for each in said.ratings if each.round == RATING}
    names = dict.fromkeys([*(each.rater for each in said.ratings), *(each.rater for each in said.notes)])
    ids = {name: store.rater(name, joins=name in joining).id for name in names}
    before = {(r.rater, r.round, r.item, r.axis): r.option for r in store.ratings()}
    ratings = [replace(each, rater=ids[each.rater]) for each in said.ratings]
    known = [(before.get(place), option) for place, option in _places(ratings) if place in before]
    store.save(ratings, [replace(each, rater=ids[each.rater]) for each in said.notes])
    same = sum(old == new for old, new in known)
    return Taken(len(ratings) - len(known), len(known) - same, same)


def _places(ratings: Sequence[Rating]) -> Iterator[tuple[tuple[str, int, str, str], int | None]]:
    return (((r.rater, r.round, r.item, r.axis), r.option) for r in ratings)


def _write_csv(path: Path, rating_set: RatingSet, said: Said, origins: Mapping[str, tuple[str, str]]) -> None:
    with replacing(path, private=True) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*COLUMNS, *(UNBLINDED if origins else ())])
        for rating in said.ratings:
            axis = rating_set.axis(rating.axis)
            if axis is None or rating.item not in rating_set.items:
                continue
            option = rating.option or 0
            row = [rating.axis, option, axis.label(rating.option), "", rating.seconds, rating.time]
            writer.writerow([rating.item, _safe(rating.rater), rating.round, *row, *origins.get(rating.item, ())])
        for note in said.notes:
            for kind, text in ((COMMENT, note.comment), (BETTER, note.better)):
                if text:
                    row = [kind, "", "", _safe(text), "", note.time]
                    writer.writerow([note.item, _safe(note.rater), note.round, *row, *origins.get(note.item, ())])


def _safe(text: str) -> str:
    """The text so that no spreadsheet takes it for a formula."""
    return f"'{text}" if text.startswith(_FORMULA) or (text.startswith("'") and text[1:].startswith(_FORMULA)) else text


def _unsafe(text: str) -> str:
    return text[1:] if text.startswith("'") and text[1:].startswith((*_FORMULA, "'")) else text


def _read_csv(path: Path, rating_set: RatingSet) -> Said:
    if path.suffix.lower() not in {".csv", ".tsv"}:
        raise DataError(f"{path}: neither CSV (.csv, .tsv) nor a Label Studio export (.json).")
    rejects = Rejects()
    ratings: list[Rating] = []
    notes: dict[tuple[str, str, int], Note] = {}
    found = rows(path, "ratings", rejects)
    for number, (where, row) in enumerate(found):
        if not number:
            missing = [column for column in NEEDED if column not in row]
            if missing:
                raise DataError(f"{path}, line 1: no column {', '.join(missing)}. Needed are {', '.join(NEEDED)}.")
        item, rater = _cell(row, "item"), _unsafe(_cell(row, "rater"))
        if item not in rating_set.items:
            raise DataError(f"{where}: this set has no item {item!r}. Is the file of another rating set?")
        if not rater:
            raise DataError(f"{where}: no rater. Say who rated, by a name or initials.")
        round = _round(row, where)
        if row["axis"] in {COMMENT, BETTER}:
            text = _unsafe(str(row.get("text") or ""))
            if row["axis"] == BETTER and rating_set.unchanged(item, text):
                continue
            note = notes.get((item, rater, round), Note(rater, item, "", "", _cell(row, "time"), round))
            changed = replace(note, comment=text) if row["axis"] == COMMENT else replace(note, better=text)
            notes[item, rater, round] = changed
        else:
            ratings.append(_rating(row, where, rating_set, rater, round))
    first = next(rejects.rows(), None)
    if first:
        raise DataError(f"{first['where']}: {first['reason']}. Nothing was taken over.")
    return Said(ratings, list(notes.values()))


def _cell(row: Mapping[str, Any], column: str) -> str:
    return str(row.get(column) or "").strip()


def _round(row: Mapping[str, Any], where: str) -> int:
    text = _cell(row, "round") or str(RATING)
    if text not in {str(RATING), str(ADJUDICATION)}:
        raise DataError(f"{where}: round {text!r} is neither 1 (rating) nor 2 (adjudication).")
    return int(text)


def _rating(row: Mapping[str, Any], where: str, rating_set: RatingSet, rater: str, round: int) -> Rating:
    axis = rating_set.axis(_cell(row, "axis"))
    if axis is None:
        known = ", ".join([*(each.name for each in rating_set.axes), COMMENT, BETTER])
        raise DataError(f"{where}: this set has no axis {_cell(row, 'axis')!r}. It has {known}.")
    text, label = _cell(row, "option"), _cell(row, "label")
    numbers = {str(number): number for number in range(1, len(axis.options) + 1)} | {"0": None}
    labels = {CANNOT: None} | {option.label: number for number, option in enumerate(axis.options, start=1)}
    if text not in numbers and (text or label not in labels):
        raise DataError(
            f"{where}: {axis.name} has no option {text or label!r}. Choose from "
            + ", ".join(f"{number} ({axis.label(option)})" for number, option in numbers.items())
            + "."
        )
    spent = _cell(row, "seconds") or "0"
    try:
        seconds = float(spent)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise DataError(f"{where}: seconds {spent!r} isn't a number from 0 on.")
    option = numbers[text] if text else labels[label]
    return Rating(rater, _cell(row, "item"), axis.name, option, seconds, _cell(row, "time"), round)
