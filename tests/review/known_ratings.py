"""Finished runs, rating sets and annotation sets for tests, with answers and ratings that are known.

The review server runs in a process of its own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from meditune.data.reviewer_decisions import VERDICTS
from meditune.files import write_json, write_jsonl
from meditune.review.annotation_set import AnnotationSetOptions
from meditune.review.annotation_set import create as create_annotation_set
from meditune.review.rating_set import Origin, create, read_key, read_set
from meditune.review.ratings_store import RATING, Note, Rating, Store
from tests.commands import jsonl, rows

ANSWERS = {
    "base": "Treatment {n} was given to patients.",
    "tuned": "Treatment {n} may help most patients.",
    "reference": "Treatment {n} helps some patients.",
}


def finished(folder: Path, questions: int = 4, **changed: dict[int, str]) -> Path:
    """A run whose models answered as in ANSWERS; `base`, `tuned`, `reference` change answers by their number."""

    def said(origin: str, n: int) -> str:
        return changed.get(origin, {}).get(n, ANSWERS[origin].format(n=n))

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text("name: quickstart\n", encoding="utf-8")
    write_json(folder / "model" / "training.json", {})
    write_jsonl(
        folder / "data" / "test.jsonl",
        (
            {
                "id": f"pubmedqa:{n}",
                "source": "pubmedqa",
                "question": f"Does treatment {n} help?",
                "context": [{"text": f"We gave treatment {n} to 20 adults.", "label": "METHODS"}],
                "answer": said("reference", n),
                "group": f"g{n}",
            }
            for n in range(questions)
        ),
    )
    for model in ("base", "tuned"):
        rows = [
            {"id": f"pubmedqa:{n}", "reference": said("reference", n), "prediction": said(model, n)}
            for n in range(questions)
        ]
        write_jsonl(folder / "predictions" / f"{model}-answer.jsonl", rows)
    return folder


@contextmanager
def served(folder: Path, *words: Any, command: str = "review") -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The server's process and the address it printed; killed at the end of the block."""
    begin = [sys.executable, "-m", "meditune.cli.main", command, "serve", str(folder), "--port", "0"]
    process = subprocess.Popen(
        [*begin, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, line + (process.stderr.read() if process.stderr else "")
        yield process, found[0]
    finally:
        process.kill()
        process.communicate()


Says = Callable[[int, str], int | None]
"""What a rater says of question n's answer of that origin"""


def made_rating_set(folder: Path, questions: int = 6, axes: str = "lay", **changed: dict[int, str]) -> Path:
    """A set in RUN/review, nothing rated yet."""
    run = finished(folder / "run", questions, **changed)
    create(run, run / "review", questions, axes, None, None, 17)
    return run / "review"


def rate(folder: Path, name: str, says: Says, only: tuple[str, ...] = (), round: int = RATING) -> None:
    """Let a rater say the same on every axis, or on those named; binary axes get option 1 or 2."""
    rating_set, (key, _), store = read_set(folder), read_key(folder), Store(folder)
    rater = store.rater(name).id
    ratings = []
    for id, row in key.items():
        option = says(number(row), row.origins[0])
        for axis in rating_set.axes:
            if not only or axis.name in only:
                chosen = option if option is None else min(option, len(axis.options))
                ratings.append(Rating(rater, id, axis.name, chosen, 2.0, round=round))
    store.save(ratings)


def number(row: Origin) -> int:
    """Of the question that an item is about."""
    return int(row.example.partition(":")[2])


def rated_item(folder: Path, n: int, origin: str) -> str:
    """The id of question n's answer of that origin."""
    key, _ = read_key(folder)
    return next(id for id, row in key.items() if number(row) == n and origin in row.origins)


SUBJECTS = (
    *("asthma", "migraine", "anaemia", "gout", "psoriasis", "epilepsy", "diabetes", "glaucoma", "measles", "rickets"),
    *("scurvy", "cataract", "hepatitis", "jaundice", "malaria", "pneumonia", "tetanus", "tinnitus", "vertigo"),
    "rabies",
)


def table(path: Path, count: int = 12, **changes: Any) -> Path:
    """A table of questions about as many diseases, each answered."""
    named = {
        "question": lambda n: f"What causes {SUBJECTS[n]}?",
        "answer": lambda n: f"Doctors know why {SUBJECTS[n]} comes.",
    }
    return jsonl(path, rows(count, **(named | {"context": "", "decision": ""} | changes)))


def made_annotation_set(folder: Path, count: int = 12, changes: dict[str, Any] | None = None, **wanted: Any) -> Path:
    """A set of all rows of such a table, nothing rated yet."""
    folder.mkdir(parents=True, exist_ok=True)
    create_annotation_set(
        str(table(folder / "table.jsonl", count, **(changes or {}))), folder / "set", AnnotationSetOptions(**wanted)
    )
    return folder / "set"


def key(folder: Path) -> dict[str, Origin]:
    """What the items are."""
    return read_key(folder)[0]


def annotated_item(folder: Path, n: int) -> str:
    """The item of the table's row n; never a known one."""
    return next(id for id, row in key(folder).items() if row.example == f"own:{n}" and not row.known)


def judge(
    folder: Path, name: str, says: Callable[[str, Origin], str | None], round: int = RATING, **texts: str
) -> None:
    """Let a rater give the verdicts (None: nothing); `texts` are changed texts by the row's number (n3=...)."""
    store, known = Store(folder), key(folder)
    rater = store.rater(name).id
    given = {id: says(id, known[id]) for id in read_set(folder).items}
    store.save(
        [
            Rating(rater, id, "verdict", VERDICTS.index(said) + 1, 2.0, round=round)
            for id, said in given.items()
            if said
        ],  # type: ignore[arg-type]
        [Note(rater, annotated_item(folder, int(n[1:])), "", text, round=round) for n, text in texts.items()],
    )


def right(_: str, row: Origin) -> str:
    """What a careful rater says of these tables, where every row of the data is correct."""
    return row.expected[0] if row.known else "correct"
