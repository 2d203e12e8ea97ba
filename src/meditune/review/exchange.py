"""Import and export of ratings, as CSV or as Label Studio tasks.

Existing ratings are written as a task's `predictions`, with the rater as `model_version`: annotations require users
that exist in Label Studio, predictions don't (labelstud.io/guide/predictions). Both are read.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args
from xml.sax.saxutils import quoteattr

from meditune.data.readers.tables import Rejects, rows
from meditune.errors import DataError
from meditune.files import read_json, replace_file, write_json
from meditune.review.rating_set import CANNOT, RATE, RatingSet, Task, read_key, read_set
from meditune.review.ratings_store import ADJUDICATION, RATING, Note, Rating, Store


@dataclass(frozen=True)
class RatingsAndNotes:
    """Ratings and notes whose `rater` is a name."""

    ratings: list[Rating]
    notes: list[Note]


TEXTS = ("comment", "better_answer")
BESIDE = ("decision", "source", "link")


def write(
    path: Path, rating_set: RatingSet, said: RatingsAndNotes, origins: Mapping[str, tuple[str, str]]
) -> list[Path]:
    """Write the tasks and the labeling configuration (.xml) beside them; return both paths."""
    predictions: dict[str, dict[tuple[str, int], list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for rating in said.ratings:
        axis = rating_set.axis(rating.axis)
        if axis:
            meta = {"round": rating.round, "seconds": rating.seconds, "time": rating.time}
            value = {"choices": [axis.label(rating.option)]}
            found = _result(axis.name, "choices", value) | {"meta": meta}
            predictions[rating.item][rating.rater, rating.round].append(found)
    for note in said.notes:
        for name, text in (("comment", note.comment), ("better_answer", note.better)):
            if text:
                found = _result(name, "textarea", {"text": [text]}) | {"meta": {"round": note.round, "time": note.time}}
                predictions[note.item][note.rater, note.round].append(found)
    tasks, shown = [], _shown(rating_set)
    for number, item in enumerate(rating_set.items.values(), start=1):
        sources = "\n\n".join(f"{p.label}: {p.text}" if p.label else p.text for p in item.context)
        data = {"item": item.id, "question": item.question, "sources": sources, "answer": item.answer}
        data |= {name: getattr(item, name) for name in shown}
        if item.id in origins:
            data |= dict(zip(("example", "origin"), origins[item.id], strict=True))
        earlier = [
            {"model_version": rater, "result": result} for (rater, _), result in predictions.get(item.id, {}).items()
        ]
        tasks.append({"id": number, "data": data, "predictions": earlier})
    write_json(path, tasks, private=True)
    config = path.with_suffix(".xml")
    with replace_file(config) as stream:
        stream.write(configuration(rating_set))
    return [path, config]


def _shown(rating_set: RatingSet) -> list[str]:
    """Return the fields shown beside the answers. Label Studio requires each field of a configuration in every task."""
    return [name for name in BESIDE if any(getattr(item, name) for item in rating_set.items.values())]


def _result(name: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"from_name": name, "to_name": "answer", "type": kind, "value": value}


def configuration(rating_set: RatingSet) -> str:
    """Return Label Studio's labeling configuration for the set's axes."""
    words, edits = rating_set.task.words, rating_set.task.edits
    lines = ["<View>", '  <Header value="Question"/>', '  <Text name="question" value="$question"/>']
    lines += ['  <Header value="Sources"/>', '  <Text name="sources" value="$sources"/>']
    for name in _shown(rating_set):
        lines += [f'  <Header value="{name.capitalize()}"/>', f'  <Text name="{name}" value="${name}"/>']
    lines += [f"  <Header value={quoteattr(words.text)}/>", '  <Text name="answer" value="$answer"/>']
    for axis in rating_set.axes:
        lines.append(f"  <Header value={quoteattr(f'{axis.title}: {axis.question}')}/>")
        lines.append(f'  <Choices name="{axis.name}" toName="answer" choice="single" showInline="true">')
        labels = [*(option.label for option in axis.options), CANNOT]
        # Label Studio assigns a hotkey to only one choice, so hotkeys work only if there is a single axis.
        keys = [*range(1, len(labels)), 0] if len(rating_set.axes) == 1 else []
        hot = [f' hotkey="{key}"' for key in keys] or [""] * len(labels)
        lines += [f"    <Choice value={quoteattr(label)}{key}/>" for label, key in zip(labels, hot, strict=True)]
        lines.append("  </Choices>")
    for name, title in (("comment", "Comment"), ("better_answer", words.better)):
        filled = ' value="$answer"' if edits and name == "better_answer" else ""
        lines.append(f'  <Header value="{title}"/>')
        lines.append(f'  <TextArea name="{name}" toName="answer" rows="3" maxSubmissions="1"{filled}/>')
    return "\n".join([*lines, "</View>", ""])


def read(path: Path, rating_set: RatingSet) -> RatingsAndNotes:
    """Return the annotations and predictions in a JSON export (not JSON-MIN). Cancelled annotations are skipped.

    Raises DataError with the task's number (from 1) if something is invalid.
    """
    tasks = read_json(path)
    if not isinstance(tasks, list):
        raise DataError(f"{path}: not a Label Studio export, which is a list of tasks.")
    ratings: list[Rating] = []
    notes: list[Note] = []
    for number, task in enumerate(tasks, start=1):
        where = f"{path}, task {number}"
        data = task.get("data") if isinstance(task, dict) else None
        item = data.get("item") if isinstance(data, dict) else None
        if item not in rating_set.items:
            raise DataError(
                f"{where}: data.item is {item!r}, which isn't in this set. Use the JSON export of a project that was "
                "created from this set's tasks."
            )
        for rater, result, seconds in _words(task, where):
            _take(result, str(item), rater, seconds, rating_set, where, ratings, notes)
    return RatingsAndNotes(ratings, _joined(notes))


def _words(task: dict[str, Any], where: str) -> Iterator[tuple[str, list[Any], float]]:
    """Yield the rater, the results, and the seconds per choice if known."""
    for kind in ("predictions", "annotations"):
        for each in task.get(kind) or []:
            if not isinstance(each, dict) or not isinstance(each.get("result"), list):
                raise DataError(f"{where}: one of its {kind} has no list 'result'.")
            if each.get("was_cancelled"):
                continue
            rater = each.get("model_version") if kind == "predictions" else _annotator(each.get("completed_by"))
            if not rater:
                who = "model_version" if kind == "predictions" else "completed_by"
                raise DataError(f"{where}: one of its {kind} has no author ({who}).")
            choices = sum(isinstance(one, dict) and one.get("type") == "choices" for one in each["result"])
            spent = each.get("lead_time")
            yield (
                str(rater),
                each["result"],
                float(spent) / choices if isinstance(spent, int | float) and choices else 0,
            )


def _annotator(by: Any) -> str:
    """Return the name of a user: an e-mail address, or the number assigned by Label Studio."""
    if isinstance(by, dict):
        return str(by.get("email") or by.get("username") or (f"user {by['id']}" if by.get("id") else ""))
    return f"user {by}" if by else ""


def _take(
    result: list[Any], item: str, rater: str, seconds: float, rating_set: RatingSet, where: str,
    ratings: list[Rating], notes: list[Note],
) -> None:  # fmt: skip
    for one in result:
        try:
            name, value, meta = one["from_name"], one["value"], one.get("meta") or {}
            round = ADJUDICATION if meta.get("round") == ADJUDICATION else RATING
            time = str(meta.get("time", ""))
            if name in TEXTS:
                text = value["text"] if isinstance(value["text"], str) else "\n".join(value["text"])
                if name == "better_answer" and rating_set.unchanged(item, text):
                    continue
                words = {"comment" if name == "comment" else "better": text}
                notes.append(
                    Note(**{"rater": rater, "item": item, "comment": "", "better": "", **words}, time=time, round=round)
                )
                continue
            axis = rating_set.axis(name)
            if axis is None:
                raise DataError(f"{where}: this set has no axis {name!r}.")
            (label,) = value["choices"]
            option = axis.number(label)
            ratings.append(Rating(rater, item, axis.name, option, float(meta.get("seconds", seconds)), time, round))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"{where}: {one!r} is neither a choice of this set's labeling configuration nor one of its texts."
            ) from error


def _joined(notes: list[Note]) -> list[Note]:
    """Merge notes with a comment or a better answer into one per rater and item."""
    found: dict[tuple[str, str, int], Note] = {}
    for note in notes:
        place = (note.rater, note.item, note.round)
        old = found.get(place, note)
        found[place] = Note(
            note.rater, note.item, note.comment or old.comment, note.better or old.better, note.time, note.round
        )
    return list(found.values())


Format = Literal["csv", "label-studio"]
FORMATS: tuple[Format, ...] = get_args(Format)
COLUMNS = ("item", "rater", "round", "axis", "option", "label", "text", "seconds", "time")
NEEDED = ("item", "rater", "axis")
UNBLINDED = ("example", "origin")
COMMENT, BETTER = "comment", "better_answer"
"""Values of `axis` in rows that hold a text"""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class ImportedRatings:
    """The result of an import."""

    new: int
    changed: int
    same: int


def export(folder: Path, to: Path | None, format: str | None, unblind: bool, task: Task = RATE) -> list[Path]:
    """Write the ratings and return the files: one CSV, or Label Studio's tasks and its labeling configuration.

    With `unblind`, each row also has the example and the origin of the answer. Raises DataError for an unknown format.
    """
    kind = format or ("label-studio" if to and to.suffix == ".json" else "csv")
    if kind not in FORMATS:
        raise DataError(f"Unknown format {kind!r}. Choose from {', '.join(FORMATS)}.")
    rating_set, store = read_set(folder, task), Store(folder)
    names = {id: rater.name for id, rater in store.raters().items()}
    said = RatingsAndNotes(
        [replace(each, rater=names[each.rater]) for each in store.ratings()],
        [replace(each, rater=names[each.rater]) for each in store.notes()],
    )
    origins = {id: (row.example, "+".join(row.origins)) for id, row in read_key(folder)[0].items()} if unblind else {}
    if kind == "csv":
        path = to or folder / "ratings.csv"
        _write_csv(path, rating_set, said, origins)
        return [path]
    path = to or folder / "label-studio.json"
    return write(path, rating_set, said, origins)


def import_ratings(folder: Path, path: Path, task: Task = RATE) -> ImportedRatings:
    """Import all ratings in a CSV file or a Label Studio export, or none if a row is invalid.

    Earlier ratings by the same rater of the same item are replaced, so a file can be imported again. Raises DataError
    with the line.
    """
    rating_set, store = read_set(folder, task), Store(folder)
    said = read(path, rating_set) if path.suffix.lower() == ".json" else _read_csv(path, rating_set)
    joining = {each.rater for each in said.ratings if each.round == RATING}
    names = dict.fromkeys([*(each.rater for each in said.ratings), *(each.rater for each in said.notes)])
    ids = {name: store.rater(name, joins=name in joining).id for name in names}
    before = {(r.rater, r.round, r.item, r.axis): r.option for r in store.ratings()}
    ratings = [replace(each, rater=ids[each.rater]) for each in said.ratings]
    known = [(before.get(place), option) for place, option in _places(ratings) if place in before]
    store.save(ratings, [replace(each, rater=ids[each.rater]) for each in said.notes])
    same = sum(old == new for old, new in known)
    return ImportedRatings(len(ratings) - len(known), len(known) - same, same)


def _places(ratings: Sequence[Rating]) -> Iterator[tuple[tuple[str, int, str, str], int | None]]:
    return (((r.rater, r.round, r.item, r.axis), r.option) for r in ratings)


def _write_csv(
    path: Path, rating_set: RatingSet, said: RatingsAndNotes, origins: Mapping[str, tuple[str, str]]
) -> None:
    with replace_file(path, private=True) as stream:
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
    """Return the text escaped so that spreadsheets don't read it as a formula."""
    return f"'{text}" if text.startswith(_FORMULA) or (text.startswith("'") and text[1:].startswith(_FORMULA)) else text


def _unsafe(text: str) -> str:
    return text[1:] if text.startswith("'") and text[1:].startswith((*_FORMULA, "'")) else text


def _read_csv(path: Path, rating_set: RatingSet) -> RatingsAndNotes:
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
                raise DataError(
                    f"{path}, line 1: no column {', '.join(missing)}. Required columns: {', '.join(NEEDED)}."
                )
        item, rater = _cell(row, "item"), _unsafe(_cell(row, "rater"))
        if item not in rating_set.items:
            raise DataError(f"{where}: this set has no item {item!r}. Is the file from another rating set?")
        if not rater:
            raise DataError(f"{where}: no rater. Give the rater's name or initials.")
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
        raise DataError(f"{first['where']}: {first['reason']}. Nothing was imported.")
    return RatingsAndNotes(ratings, list(notes.values()))


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
        raise DataError(f"{where}: this set has no axis {_cell(row, 'axis')!r}. Its axes: {known}.")
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
        raise DataError(f"{where}: seconds {spent!r} is not a number of at least 0.")
    option = numbers[text] if text else labels[label]
    return Rating(rater, _cell(row, "item"), axis.name, option, seconds, _cell(row, "time"), round)
