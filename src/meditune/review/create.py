"""`meditune review create`: a blinded, shuffled rating set out of a finished run."""

from __future__ import annotations

import random
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from meditune.data.example import Example
from meditune.data.restrictions import is_restricted
from meditune.errors import DataError
from meditune.evaluate.measured import examples_of, groups_of
from meditune.evaluate.predictions import path_of
from meditune.files import holds, read_jsonl, sha256
from meditune.folder import refuse_unfinished
from meditune.review.ratingset import KEY, check_sharing, read_key, write_set
from meditune.review.tasks import RATE

MODELS = ("base", "tuned")


def create(
    run: Path, folder: Path, questions: int, axes: str, raters: int | None, overlap: int | None, seed: int
) -> dict[str, int]:
    """Leave a rating set in `folder`; returns how many `questions` and `answers` it has, and how many are `alike`.

    The questions are a seeded choice of those that both models answered. Ids and orders are drawn anew for each set,
    so that they can't be guessed. An answer that two of base, tuned and reference share is one item. Raises DataError
    where the run isn't finished or has no written answers, MedituneError where the folder holds something else.
    """
    RATE.form(axes)
    refuse_unfinished(run)
    check_sharing(raters, overlap)
    predictions = run / "predictions"
    # An answer without a reference can't be measured, but it can be rated.
    stored = {model: path_of(predictions, model, "answer") for model in MODELS}
    answers = {
        model: {row["id"]: row["prediction"] for row in read_jsonl(path)} if path.is_file() else {}
        for model, path in stored.items()
    }
    examples = examples_of(run)
    able = [id for id in answers["base"] if id in answers["tuned"] and id in examples]
    if not able:
        raise DataError(f"{run} holds no written answers of both models, so there is nothing to rate.")
    made_from = {
        "run": str(run.resolve()),
        "questions": questions,
        "axes": axes,
        "raters": raters,
        "overlap": overlap,
        "seed": seed,
        "answers": digests(run),
    }
    chosen = random.Random(f"{seed}/review").sample(sorted(able), min(questions, len(able)))
    if not holds(folder, KEY, made_from):
        rows, key = _blinded((examples[id], {model: answers[model][id] for model in MODELS}) for id in chosen)
        write_set(folder, {"task": RATE.name, "axes": axes, "raters": raters, "overlap": overlap}, rows, key, made_from)
    key_rows, _ = read_key(folder)
    alike = sum(len(row.origins) > 1 for row in key_rows.values())
    return {"questions": len(chosen), "answers": len(key_rows), "alike": alike}


def digests(run: Path) -> dict[str, str]:
    """SHA-256 of the written answers of each model."""
    return {model: sha256(path_of(run / "predictions", model, "answer")) for model in MODELS}


def _blinded(chosen: Iterable[tuple[Example, dict[str, str]]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The items in an order that says nothing, and the key to them."""
    rows: list[dict[str, Any]] = []
    key: dict[str, Any] = {}
    for example, written in chosen:
        asked, origins = secrets.token_hex(4), dict[str, list[str]]()
        said = written | ({"reference": example.answer} if example.answer.strip() else {})
        for origin, answer in said.items():
            origins.setdefault(_plain(answer), []).append(origin)
        group = groups_of({example.id: example})[example.id]
        for answer, whose in origins.items():
            id = secrets.token_hex(6)
            context = [passage.model_dump(mode="json") for passage in example.context]
            rows.append({"id": id, "asked": asked, "question": example.question, "context": context, "answer": answer})
            key[id] = {"example": example.id, "group": group, "origins": whose, "restricted": is_restricted(example)}
    secrets.SystemRandom().shuffle(rows)
    return rows, key


def _plain(answer: str) -> str:
    """Without the spaces at line ends and around it, by which one could tell who wrote it."""
    return "\n".join(" ".join(line.split()) for line in answer.strip().splitlines())
