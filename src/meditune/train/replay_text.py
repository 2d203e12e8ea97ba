"""Where replay rows come from: the base model's own text, general English, or other medical answers."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path

from meditune import ranks
from meditune.data.example import Example
from meditune.data.locate import locate
from meditune.data.medquad import read
from meditune.data.rejects import Rejects
from meditune.data.splits import Splits, question_key
from meditune.errors import DataError
from meditune.files import read_jsonl, read_text, write_jsonl
from meditune.models.load import LoadedModel
from meditune.models.quiet import quiet_transformers
from meditune.models.rows import Row, rows_of, windows
from meditune.prompts import QuestionTooLongError
from meditune.recipe import Recipe, TrainSpec
from meditune.train import self_written

FILE = "replay.jsonl"
GENERAL_FILE = "valid.txt"
"""WikiText-2's validation text. Its test text measures forgetting, so it must never be trained on."""


def rows_needed(spec: TrainSpec) -> int:
    """How many different rows replay and EWC together ask for; 0 where both are off."""
    return max(spec.replay.rows if spec.replay.share else 0, spec.ewc.samples if spec.ewc.strength else 0)


def check_source(recipe: Recipe) -> None:
    """Raise DataError, with what to do, where the recipe's replay text can't be had."""
    if rows_needed(recipe.train):
        if recipe.train.replay.source == "general":
            _general_file()
        elif recipe.train.replay.source == "medical":
            _medquad(recipe)


def replay_rows(loaded: LoadedModel, recipe: Recipe, splits: Splits, folder: Path) -> list[Row]:
    """Up to as many rows as the recipe needs, in a seeded order; `loaded` must still be the base model.

    What the base model writes is kept in `folder/replay.jsonl`, so that a run that goes on has the same text. Raises
    DataError where there is nothing to rehearse.
    """
    count, spec = rows_needed(recipe.train), recipe.train.replay
    if not count:
        return []
    if spec.source == "self":
        if ranks.is_first() and not (folder / FILE).is_file():
            write_jsonl(folder / FILE, self_written.write(loaded, count, spec.tokens, recipe.seed))
        ranks.wait()
        return [self_written.row(written) for written in read_jsonl(folder / FILE)]
    if spec.source == "general":
        return general_rows(loaded, spec.tokens, count, recipe.seed)
    return _medical(loaded, recipe, splits, count)


def general_rows(loaded: LoadedModel, tokens: int, count: int, seed: int) -> list[Row]:
    """Up to `count` seeded windows of WikiText-2's validation text, `tokens` tokens each.

    Raises DataError where it isn't there.
    """
    with quiet_transformers():
        ids = loaded.tokenizer(read_text(_general_file()), add_special_tokens=False)["input_ids"]
    rows = windows("general", ids, tokens, loaded.start_ids())
    if not rows:
        raise DataError(f"{_general_file()} is empty. Put WikiText-2's validation text there.")
    return random.Random(f"{seed}/general").sample(rows, min(count, len(rows)))


def _medical(loaded: LoadedModel, recipe: Recipe, splits: Splits, count: int) -> list[Row]:
    encoder = loaded.encoder(recipe.prompt)
    found = list(read(_medquad(recipe), Rejects()))
    free = rehearsable(found, splits, recipe.seed)
    rows: list[Row] = []
    long = 0
    for example in free:
        if len(rows) == count:
            break
        try:
            rows += rows_of([encoder.supervised(example, "answer")])
        except QuestionTooLongError:
            long += 1
    cut = sum(row.encoded[0].answer_cut for row in rows)
    print(
        f"Replay from MedQuAD: {len(found) - len(free):,} of {len(found):,} pairs left out because they are among the "
        f"run's own or close to its dev or test items, {long} with too long a question; {cut} of {len(rows)} answers "
        "cut.",
        file=sys.stderr,
    )
    if not rows:
        raise DataError(
            "train.replay.source: MedQuAD has no pair left to rehearse: all are among the run's own examples or too "
            "long for prompt.max_tokens. Take source self or general."
        )
    return rows


def rehearsed(recipe: Recipe, rows: Sequence[Row]) -> list[Example]:
    """MedQuAD's pairs among the rows of `replay_rows`; none where these come from elsewhere."""
    if recipe.train.replay.source != "medical" or not rows:
        return []
    chosen = {item.id for row in rows for item in row.encoded}
    return [example for example in read(_medquad(recipe), Rejects()) if example.id in chosen]


def rehearsable(examples: list[Example], splits: Splits, seed: int) -> list[Example]:
    """The examples in a seeded order, but none that is trained on or has a group or question of dev or test."""
    held = [*splits.dev, *splits.test]
    groups = {(example.source, example.group) for example in held}
    questions = {question_key(example.question) for example in held}
    trained = {example.id for example in splits.train}
    free = [
        example
        for example in examples
        if (example.source, example.group) not in groups
        and question_key(example.question) not in questions
        and example.id not in trained
    ]
    random.Random(f"{seed}/medical").shuffle(free)
    return free


def _general_file() -> Path:
    file = locate("wikitext-2", download=False) / GENERAL_FILE
    if not file.is_file():
        raise DataError(
            f"{file}, WikiText-2's validation text, is missing. Put it there, or take other text: with "
            "train.replay.source: self, which needs no data; for `meditune prune`, a recipe's (--recipe)."
        )
    return file


def _medquad(recipe: Recipe) -> Path:
    return locate("medquad", next((source.path for source in recipe.data.sources if source.name == "medquad"), None))
