"""Import and export of ratings, as CSV or as Label Studio tasks.

Existing ratings are written as a task's `predictions`, with the rater as `model_version`, because `annotations` require
users that exist in Label Studio (labelstud.io/guide/predictions).
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from meditune.data.readers.tables import Rejects, rows
from meditune.errors import DataError
from meditune.files import read_json, replace_file, write_json
from meditune.review.rating_set import CANNOT, RATE, RatingSet, Task, read_key, read_set
from meditune.review.ratings_store import ADJUDICATION, RATING, Note, Rating, Store

COMMENT, BETTER = "comment", "better_answer"


@dataclass(frozen=True)
class WrittenText:
    """One of a rater's texts about an item, with the rater's name instead of an id."""

    rater: str
    item: str
    kind: str
    """comment or better_answer"""
    text: str
    time: str
    round: int


Judgement = Rating | WrittenText
"""Either has the rater's name instead of an id, as in the files"""
BESIDE = ("decision", "source", "link")
"""Fields of items that are shown with the answer; each is left out if it is empty in all items"""


def _write_label_studio(
    path: Path, rating_set: RatingSet, judgements: Iterable[Judgement], origins: Mapping[str, tuple[str, str]]
) -> list[Path]:
    predictions: dict[str, dict[tuple[str, int], list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for each in judgements:
        if isinstance(each, WrittenText):
            result = _result(each.kind, "textarea", {"text": [each.text]}, {"round": each.round, "time": each.time})
        elif axis := rating_set.axis(each.axis):
            meta = {"round": each.round, "seconds": each.seconds, "time": each.time}
            result = _result(axis.name, "choices", {"choices": [axis.label(each.option)]}, meta)
        else:
            continue
        predictions[each.item][each.rater, each.round].append(result)
    # Label Studio requires each field of a configuration in every task.
    field_names = [name for name in BESIDE if any(getattr(item, name) for item in rating_set.items.values())]
    tasks = []
    for number, item in enumerate(rating_set.items.values(), start=1):
        sources = "\n\n".join(f"{p.label}: {p.text}" if p.label else p.text for p in item.context)
        data = {"item": item.id, "question": item.shown_question(), "sources": sources, "answer": item.answer}
        data |= {name: getattr(item, name) for name in field_names}
        if item.id in origins:
            data |= dict(zip(("example", "origin"), origins[item.id], strict=True))
        earlier = [
            {"model_version": rater, "result": result} for (rater, _), result in predictions.get(item.id, {}).items()
        ]
        tasks.append({"id": number, "data": data, "predictions": earlier})
    write_json(path, tasks, private=True)
    config = path.with_suffix(".xml")
    with replace_file(config) as stream:
        stream.write(_configuration(rating_set, field_names))
    return [path, config]


def _result(name: str, kind: str, value: dict[str, Any], meta: dict[str, Any]) -> dict[str, Any]:
    return {"from_name": name, "to_name": "answer", "type": kind, "value": value, "meta": meta}


def _configuration(rating_set: RatingSet, field_names: list[str]) -> str:
    words, edits = rating_set.task.words, rating_set.task.edits
    lines = ["<View>"]
    shown = [("Question", "question"), ("Sources", "sources")]
    shown += [*((name.capitalize(), name) for name in field_names), (words["text"], "answer")]
    for title, name in shown:
        lines += [f"  <Header value={quoteattr(title)}/>", f'  <Text name="{name}" value="${name}"/>']
    for axis in rating_set.axes:
        lines.append(f"  <Header value={quoteattr(f'{axis.title}: {axis.question}')}/>")
        lines.append(f'  <Choices name="{axis.name}" toName="answer" choice="single" showInline="true">')
        labels = [*(option.label for option in axis.options), CANNOT]
        # Label Studio assigns a hotkey to only one choice, so hotkeys work only if there is a single axis.
        keys = [*range(1, len(labels)), 0] if len(rating_set.axes) == 1 else []
        hot = [f' hotkey="{key}"' for key in keys] or [""] * len(labels)
        lines += [f"    <Choice value={quoteattr(label)}{key}/>" for label, key in zip(labels, hot, strict=True)]
        lines.append("  </Choices>")
    for name, title in ((COMMENT, "Comment"), (BETTER, words["better"])):
        filled = ' value="$answer"' if edits and name == BETTER else ""
        lines.append(f'  <Header value="{title}"/>')
        lines.append(f'  <TextArea name="{name}" toName="answer" rows="3" maxSubmissions="1"{filled}/>')
    return "\n".join([*lines, "</View>", ""])


def _read_label_studio(path: Path, rating_set: RatingSet) -> Iterator[Judgement]:
    """Yield the annotations and predictions in a JSON export. Raises DataError with the task's number (1-based)."""
    tasks = read_json(path)
    if not isinstance(tasks, list):
        raise DataError(f"{path}: not a Label Studio export, which is a list of tasks.")
    for number, task in enumerate(tasks, start=1):
        where = f"{path}, task {number}"
        data = task.get("data") if isinstance(task, dict) else None
        item = data.get("item") if isinstance(data, dict) else None
        if item not in rating_set.items:
            raise DataError(
                f"{where}: data.item is {item!r}, which isn't in this set. Use the JSON export of a project that was "
                "created from this set's tasks."
            )
        for rater, results, seconds in _results(task, where):
            for result in results:
                yield _judgement(rating_set, result, str(item), rater, seconds, where)


def _results(task: dict[str, Any], location: str) -> Iterator[tuple[str, list[Any], float]]:
    """Yield the rater, the results, and the seconds per choice (0 if unknown)."""
    for kind, author in (("predictions", "model_version"), ("annotations", "completed_by")):
        for each in task.get(kind) or []:
            if not isinstance(each, dict) or not isinstance(each.get("result"), list):
                raise DataError(f"{location}: one of its {kind} has no list 'result'.")
            if each.get("was_cancelled"):
                continue
            rater = each.get(author) if author == "model_version" else _annotator(each.get(author))
            if not rater:
                raise DataError(f"{location}: one of its {kind} has no author ({author}).")
            choices = sum(isinstance(one, dict) and one.get("type") == "choices" for one in each["result"])
            spent = each.get("lead_time")
            seconds = float(spent) / choices if isinstance(spent, int | float) and choices else 0.0
            yield str(rater), each["result"], seconds


def _annotator(by: Any) -> str:
    """Return the name of a user: e-mail address, user name, or the number assigned by Label Studio."""
    if isinstance(by, dict):
        return str(by.get("email") or by.get("username") or (f"user {by['id']}" if by.get("id") else ""))
    return f"user {by}" if by else ""


def _judgement(rating_set: RatingSet, result: Any, item: str, rater: str, seconds: float, location: str) -> Judgement:
    try:
        name, value, meta = result["from_name"], result["value"], result.get("meta") or {}
        round = ADJUDICATION if meta.get("round") == ADJUDICATION else RATING
        time = str(meta.get("time", ""))
        if name in (COMMENT, BETTER):
            text = value["text"] if isinstance(value["text"], str) else "\n".join(value["text"])
            return WrittenText(rater, item, name, text, time, round)
        axis = rating_set.axis(name)
        if axis is None:
            raise DataError(f"{location}: this set has no axis {name!r}.")
        (label,) = value["choices"]
        spent = float(meta.get("seconds", seconds))
        return Rating(rater, item, axis.name, axis.numbers()[label], spent, time, round)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{location}: {result!r} is neither a choice of this set's labelling configuration nor a text in it."
        ) from error


FORMATS = ("csv", "label-studio")
COLUMNS = ("item", "rater", "round", "axis", "option", "label", "text", "seconds", "time")
NEEDED = ("item", "rater", "axis")
UNBLINDED = ("example", "origin")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class ImportedRatings:
    """The numbers of imported ratings, compared with the ratings before the import."""

    new: int
    changed: int
    unchanged: int
    texts: int
    """The number of new or changed comments and better answers"""

    def lines(self) -> list[str]:
        """Return these numbers as sentences."""
        texts = [f"Comments and better answers: {self.texts} new or changed."] if self.texts else []
        return [*texts, f"{self.new} new ratings, {self.changed} changed, {self.unchanged} unchanged."]


def export(folder: Path, to: Path | None, format: str | None, unblind: bool, task: Task = RATE) -> list[Path]:
    """Write the ratings as CSV, or as Label Studio tasks and their configuration; `unblind` adds the items' origins."""
    kind = format or ("label-studio" if to and to.suffix == ".json" else "csv")
    if kind not in FORMATS:
        raise DataError(f"Unknown format {kind!r}. Choose from {', '.join(FORMATS)}.")
    rating_set, store = read_set(folder, task), Store(folder)
    names = {id: rater.name for id, rater in store.raters().items()}
    given: list[Judgement] = [replace(each, rater=names[each.rater]) for each in store.ratings()]
    given += (
        WrittenText(names[note.rater], note.item, name, text, note.time, note.round)
        for note in store.notes()
        for name, text in ((COMMENT, note.comment), (BETTER, note.better))
        if text
    )
    origins = {id: (row.example, "+".join(row.origins)) for id, row in read_key(folder)[0].items()} if unblind else {}
    if kind == "csv":
        return [_write_csv(to or folder / "ratings.csv", rating_set, given, origins)]
    return _write_label_studio(to or folder / "label-studio.json", rating_set, given, origins)


def import_ratings(folder: Path, path: Path, task: Task = RATE) -> ImportedRatings:
    """Import the ratings and texts of a CSV file or Label Studio export; none if one is invalid.

    Each replaces the same rater's earlier rating on that axis, or earlier text of that kind. What the file doesn't
    contain stays as it is.
    """
    rating_set, store = read_set(folder, task), Store(folder)
    read = _read_label_studio if path.suffix.lower() == ".json" else _read_csv
    given = list(read(path, rating_set))
    ratings = [each for each in given if isinstance(each, Rating)]
    # A text that is shown for editing is a rater's answer only if the rater changed it.
    written = [each for each in given if isinstance(each, WrittenText) and not _is_unchanged(each, rating_set)]
    joining = {each.rater for each in ratings if each.round == RATING}
    names = dict.fromkeys([*(each.rater for each in ratings), *(each.rater for each in written)])
    ids = {name: store.rater(name, takes_share=name in joining).id for name in names}
    before = {(r.rater, r.round, r.item, r.axis): r.option for r in store.ratings()}
    ratings = [replace(each, rater=ids[each.rater]) for each in ratings]
    known = [(before[place], r.option) for r in ratings if (place := (r.rater, r.round, r.item, r.axis)) in before]
    notes, texts = _notes([replace(each, rater=ids[each.rater]) for each in written], store.notes())
    store.save(ratings, notes)
    same = sum(old == new for old, new in known)
    return ImportedRatings(len(ratings) - len(known), len(known) - same, same, texts)


def _is_unchanged(text: WrittenText, rating_set: RatingSet) -> bool:
    return text.kind == BETTER and rating_set.unchanged(text.item, text.text)


def _notes(texts: Sequence[WrittenText], stored: Iterable[Note]) -> tuple[list[Note], int]:
    """Return the notes to store for these texts by raters' ids, and the number of texts that differ from the stored."""
    before = {(note.rater, note.item, note.round): note for note in stored}
    after: dict[tuple[str, str, int], Note] = {}
    for each in texts:
        place = each.rater, each.item, each.round
        note = after.get(place) or before.get(place) or Note(each.rater, each.item, "", "", round=each.round)
        changed = replace(note, comment=each.text) if each.kind == COMMENT else replace(note, better=each.text)
        after[place] = replace(changed, time=each.time or ("" if changed != note else note.time))
    empty = Note("", "", "", "")
    pairs = [(before.get(place, empty), note) for place, note in after.items()]
    return list(after.values()), sum((a.comment != b.comment) + (a.better != b.better) for a, b in pairs)


def _write_csv(
    path: Path, rating_set: RatingSet, judgements: Iterable[Judgement], origins: Mapping[str, tuple[str, str]]
) -> Path:
    with replace_file(path, private=True) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*COLUMNS, *(UNBLINDED if origins else ())])
        for each in judgements:
            if isinstance(each, WrittenText):
                row: list[Any] = [each.kind, "", "", _safe(each.text), "", each.time]
            elif each.item in rating_set.items and (axis := rating_set.axis(each.axis)):
                row = [each.axis, each.option or 0, axis.label(each.option), "", each.seconds, each.time]
            else:
                continue
            writer.writerow([each.item, _safe(each.rater), each.round, *row, *origins.get(each.item, ())])
    return path


def _safe(text: str) -> str:
    """Return the text escaped so that spreadsheets don't read it as a formula."""
    return f"'{text}" if text.startswith(_FORMULA) or _unsafe(text) != text else text


def _unsafe(text: str) -> str:
    return text[1:] if text.startswith("'") and text[1:].startswith((*_FORMULA, "'")) else text


def _read_csv(path: Path, rating_set: RatingSet) -> Iterator[Judgement]:
    if path.suffix.lower() not in {".csv", ".tsv"}:
        raise DataError(f"{path}: neither CSV (.csv, .tsv) nor a Label Studio export (.json).")
    rejects = Rejects()
    for where, row in rows(path, "ratings", rejects):
        if not any(_cell(row, column) for column in row):
            continue  # spreadsheets leave empty rows at the end
        if missing := [column for column in NEEDED if column not in row]:
            raise DataError(f"{path}, line 1: no column {', '.join(missing)}. Required columns: {', '.join(NEEDED)}.")
        item, rater, axis = _cell(row, "item"), _unsafe(_cell(row, "rater")), _cell(row, "axis")
        if item not in rating_set.items:
            raise DataError(f"{where}: this set has no item {item!r}. Is the file from another rating set?")
        if not rater:
            raise DataError(f"{where}: no rater. Enter the rater's name or initials.")
        round = _number(row, "round") or str(RATING)
        if round not in {str(RATING), str(ADJUDICATION)}:
            raise DataError(f"{where}: round {round!r} is neither 1 (rating) nor 2 (adjudication).")
        if axis in {COMMENT, BETTER}:
            text = _unsafe(str(row.get("text") or ""))
            yield WrittenText(rater, item, axis, text, _cell(row, "time"), int(round))
        else:
            yield _rating(row, where, rating_set, rater, int(round))
    first = next(rejects.rows(), None)
    if first:
        raise DataError(f"{first['where']}: {first['reason']}. Nothing was imported.")


def _cell(row: Mapping[str, Any], column: str) -> str:
    return str(row.get(column) or "").strip()


def _number(row: Mapping[str, Any], column: str) -> str:
    """Return a whole number as text; pandas writes it as 2.0 if another row has none."""
    return _cell(row, column).removesuffix(".0")


def _rating(row: Mapping[str, Any], location: str, rating_set: RatingSet, rater: str, round: int) -> Rating:
    axis = rating_set.axis(_cell(row, "axis"))
    if axis is None:
        known = ", ".join([*(each.name for each in rating_set.axes), COMMENT, BETTER])
        raise DataError(f"{location}: this set has no axis {_cell(row, 'axis')!r}. Its axes: {known}.")
    numbers = {str(number): number for number in range(1, len(axis.options) + 1)} | {"0": None}
    text, known_values = _number(row, "option"), numbers
    if not text:
        text, known_values = _cell(row, "label"), axis.numbers()
    if text not in known_values:
        choices = ", ".join(f"{number} ({axis.label(option)})" for number, option in numbers.items())
        raise DataError(f"{location}: {axis.name} has no option {text!r}. Choose from {choices}.")
    spent = _cell(row, "seconds") or "0"
    try:
        seconds = float(spent)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise DataError(f"{location}: seconds {spent!r} is not a number of at least 0.")
    return Rating(rater, _cell(row, "item"), axis.name, known_values[text], seconds, _cell(row, "time"), round)
