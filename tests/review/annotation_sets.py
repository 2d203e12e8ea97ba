"""Annotation sets of small tables, with ratings that are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from meditune.data.reviewer_decisions import VERDICTS
from meditune.review.annotation_set import Wanted, create
from meditune.review.rating_set import Origin, read_key, read_set
from meditune.review.ratings_store import RATING, Note, Rating, Store
from tests.commands import jsonl, rows

SUBJECTS = (
    *("asthma", "migraine", "anaemia", "gout", "psoriasis", "epilepsy", "diabetes", "glaucoma", "measles", "rickets"),
    *(
        "scurvy",
        "cataract",
        "hepatitis",
        "jaundice",
        "malaria",
        "pneumonia",
        "tetanus",
        "tinnitus",
        "vertigo",
        "rabies",
    ),
)


def table(path: Path, count: int = 12, **changes: Any) -> Path:
    """A table of questions about as many diseases, each answered."""
    named = {
        "question": lambda n: f"What causes {SUBJECTS[n]}?",
        "answer": lambda n: f"Doctors know why {SUBJECTS[n]} comes.",
    }
    return jsonl(path, rows(count, **(named | {"context": "", "decision": ""} | changes)))


def made(folder: Path, count: int = 12, changes: dict[str, Any] | None = None, **wanted: Any) -> Path:
    """A set of all rows of such a table, nothing rated yet."""
    folder.mkdir(parents=True, exist_ok=True)
    create(str(table(folder / "table.jsonl", count, **(changes or {}))), folder / "set", Wanted(**wanted))
    return folder / "set"


def key(folder: Path) -> dict[str, Origin]:
    """What the items are."""
    return read_key(folder)[0]


def item_of(folder: Path, n: int) -> str:
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
        [Note(rater, item_of(folder, int(n[1:])), "", text, round=round) for n, text in texts.items()],
    )


def right(_: str, row: Origin) -> str:
    """What a careful rater says of these tables, where every row of the data is correct."""
    return row.expected[0] if row.known else "correct"
