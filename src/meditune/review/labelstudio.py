"""A rating set as Label Studio's tasks, and ratings out of its JSON export.

Ratings that exist already are written as a task's `predictions`, with the rater as `model_version`: annotations need
users who exist at the other end, predictions don't (labelstud.io/guide/predictions). Both are read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from meditune.errors import DataError
from meditune.files import read_json, replacing, write_json
from meditune.review.axes import CANNOT
from meditune.review.ratingset import RatingSet
from meditune.review.said import Said
from meditune.review.store import ADJUDICATION, RATING, Note, Rating

TEXTS = ("comment", "better_answer")
BESIDE = ("decision", "source", "link")


def write(path: Path, rating_set: RatingSet, said: Said, origins: Mapping[str, tuple[str, str]]) -> list[Path]:
    """Write the tasks, and beside them the labeling configuration (.xml); returns both paths."""
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
    with replacing(config) as stream:
        stream.write(configuration(rating_set))
    return [path, config]


def _shown(rating_set: RatingSet) -> list[str]:
    """What is shown beside the answers; Label Studio wants it in every task that a configuration names it for."""
    return [name for name in BESIDE if any(getattr(item, name) for item in rating_set.items.values())]


def _result(name: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"from_name": name, "to_name": "answer", "type": kind, "value": value}


def configuration(rating_set: RatingSet) -> str:
    """Label Studio's labeling configuration for the set's axes."""
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
        # Label Studio gives a hotkey to one choice only, so keys help where there is one line to choose on.
        keys = [*range(1, len(labels)), 0] if len(rating_set.axes) == 1 else []
        hot = [f' hotkey="{key}"' for key in keys] or [""] * len(labels)
        lines += [f"    <Choice value={quoteattr(label)}{key}/>" for label, key in zip(labels, hot, strict=True)]
        lines.append("  </Choices>")
    for name, title in (("comment", "Comment"), ("better_answer", words.better)):
        filled = ' value="$answer"' if edits and name == "better_answer" else ""
        lines.append(f'  <Header value="{title}"/>')
        lines.append(f'  <TextArea name="{name}" toName="answer" rows="3" maxSubmissions="1"{filled}/>')
    return "\n".join([*lines, "</View>", ""])


def read(path: Path, rating_set: RatingSet) -> Said:
    """What annotators and predictions said, in a JSON export (not JSON-MIN). Cancelled annotations are left out.

    Raises DataError, with the task's number from 1, where something makes no sense.
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
                f"{where}: data.item is {item!r}, which this set doesn't have. Take the export named JSON of a project "
                "that was made from this set's tasks."
            )
        for rater, result, seconds in _words(task, where):
            _take(result, str(item), rater, seconds, rating_set, where, ratings, notes)
    return Said(ratings, _joined(notes))


def _words(task: dict[str, Any], where: str) -> Iterator[tuple[str, list[Any], float]]:
    """Who said what, and the seconds for each choice, where they are known."""
    for kind in ("predictions", "annotations"):
        for each in task.get(kind) or []:
            if not isinstance(each, dict) or not isinstance(each.get("result"), list):
                raise DataError(f"{where}: one of its {kind} has no list 'result'.")
            if each.get("was_cancelled"):
                continue
            rater = each.get("model_version") if kind == "predictions" else _annotator(each.get("completed_by"))
            if not rater:
                who = "model_version" if kind == "predictions" else "completed_by"
                raise DataError(f"{where}: one of its {kind} doesn't say whose it is ({who}).")
            choices = sum(isinstance(one, dict) and one.get("type") == "choices" for one in each["result"])
            spent = each.get("lead_time")
            yield (
                str(rater),
                each["result"],
                float(spent) / choices if isinstance(spent, int | float) and choices else 0,
            )


def _annotator(by: Any) -> str:
    """The name of a user: an e-mail address, or a number that Label Studio gave."""
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
                f"{where}: {one!r} is no choice of this set's labeling configuration, nor a text for it."
            ) from error


def _joined(notes: list[Note]) -> list[Note]:
    """One note of each rater and item, out of those that hold a comment or a better answer."""
    found: dict[tuple[str, str, int], Note] = {}
    for note in notes:
        place = (note.rater, note.item, note.round)
        old = found.get(place, note)
        found[place] = Note(
            note.rater, note.item, note.comment or old.comment, note.better or old.better, note.time, note.round
        )
    return list(found.values())
