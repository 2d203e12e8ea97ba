"""Mix the rows of several sources, and replay other text during training, to reduce catastrophic forgetting.

Replay rows come from text that the base model generates before tuning, from general English (WikiText-2), or from other
medical answers (MedQuAD).
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from meditune import distributed
from meditune.config.recipe import Recipe
from meditune.config.training_options import ReplaySpec, TrainSpec
from meditune.data.example import Example
from meditune.data.readers.medquad import read
from meditune.data.readers.tables import Rejects
from meditune.data.sources import locate_source
from meditune.data.splits import Splits, question_key
from meditune.errors import DataError
from meditune.files import read_jsonl, read_text, write_jsonl
from meditune.models.generation import sample_texts
from meditune.models.load import LoadedModel
from meditune.models.quiet_libraries import quiet_transformers
from meditune.models.shared_prefix_batch import Row, join, rows_of, windows
from meditune.progress import Progress
from meditune.prompts import Encoded, QuestionTooLongError
from meditune.train.dataset import TokenWeights


@dataclass(frozen=True)
class SourceMix:
    """The rows of each source, and the number of rows that an epoch takes from it."""

    rows: dict[str, list[int]]  # source -> indices of its rows
    visits: dict[str, int]  # source -> rows in an epoch

    @property
    def size(self) -> int:
        """Number of rows in an epoch."""
        return sum(self.visits.values())

    def epochs(self, seed: int, count: float = float("inf")) -> Iterator[list[int]]:
        """Yield the row indices of each of `count` epochs; a partial epoch takes the same share of every source.

        A source continues where the previous epoch stopped, so each of its rows occurs once before any row recurs.
        """
        streams = {name: endless_order(len(indices), f"{seed}/mix/{name}") for name, indices in self.rows.items()}
        for number in itertools.count():
            left = count - number
            if left <= 0:
                return
            visits = self.visits if left >= 1 else _apportioned(self.visits, max(1, round(left * self.size)))
            yield [self.rows[name][index] for name, taken in visits.items() for index in islice(streams[name], taken)]

    def described(self) -> str:
        """Return the number of rows that an epoch takes from each source in words, for the pre-flight."""
        return ", ".join(
            f"{count:,} of {name} ({len(self.rows[name]):,} distinct)" for name, count in self.visits.items()
        )

    def repeats(self) -> dict[str, float]:
        """Return source -> the mean number of times that one of its rows occurs in an epoch."""
        return {name: count / len(self.rows[name]) for name, count in self.visits.items()}


def mix_of(sources: Sequence[str], weights: Mapping[str, float]) -> SourceMix | None:
    """Return the mix of rows whose sources are `sources`; None if each row occurs exactly once in an epoch."""
    rows: dict[str, list[int]] = {}
    for index, source in enumerate(sources):
        rows.setdefault(source, []).append(index)
    if not weights or len(rows) < 2:
        return None
    missing = weights.keys() - rows.keys()
    if missing:
        raise DataError(
            f"train.mix.weights: there are no training rows from {', '.join(sorted(missing))}. Remove sources "
            "without rows from the weights, or remove the option."
        )
    visits = _apportioned({name: weights[name] for name in rows}, len(sources))
    if unread := [name for name, count in visits.items() if not count]:
        raise DataError(
            f"train.mix.weights: an epoch of {len(sources):,} rows has none from {', '.join(unread)}. Raise the "
            "weight, or remove the source from the weights and from data.sources."
        )
    return SourceMix(rows, visits)


def endless_order(count: int, seed: str) -> Iterator[int]:
    """Yield the numbers 0 to `count` - 1 endlessly, in a new order each time; the seed determines the orders."""
    for number in itertools.count():
        order = list(range(count))
        random.Random(f"{seed}/{number}").shuffle(order)
        yield from order


def _apportioned(weights: Mapping[str, float], total: int) -> dict[str, int]:
    """Return integers that are proportional to the weights and sum to `total` (largest remainders)."""
    weight_sum = sum(weights.values())
    exact = {name: total * weight / weight_sum for name, weight in weights.items()}
    counts = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (counts[name] - exact[name], name))
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


@dataclass(frozen=True)
class Replay:
    """Replay rows, and the selection of them for each step."""

    rows: Sequence[Row]
    steps: list[list[int]]  # indices of `rows` for every optimizer step
    weights: TokenWeights  # weights of the examples' tokens
    spec: ReplaySpec

    def step(self, number: int) -> list[Row]:
        """Return the replay rows of optimizer step `number` (0-based)."""
        return [self.rows[index] for index in self.steps[number]]

    def tokens(self, done: int = 0) -> int:
        """Return the number of replay tokens after the first `done` steps."""
        return sum(len(self.rows[index]) for step in self.steps[done:] for index in step)

    def facts(self, examples: float, done: int | None = None) -> dict[str, Any]:
        """Return counts for the first `done` steps, or for all steps.

        `examples` is the sum of the token weights of the examples in these steps.
        """
        replayed = [self.rows[index] for step in self.steps[:done] for index in step]
        rehearsed = sum(sum(self.weights.of(row)) for row in replayed)
        return {
            "source": self.spec.source,
            "rows": len(self.rows),
            "visits": len(replayed),
            "tokens": sum(map(len, replayed)),
            "loss_share": round(rehearsed / (rehearsed + examples), 4),
        }

    def described(self, examples: float) -> str:
        """Return the facts in words."""
        facts = self.facts(examples)
        visits, rows = facts["visits"], facts["rows"]
        return (
            f"{visits:,} rows in total ({self.spec.share:.0%} of all rows; {facts['tokens']:,} tokens), from {rows:,} "
            f"distinct rows of source {self.spec.source}. They make up {facts['loss_share']:.0%} of the loss."
        )


def plan_replay(
    rows: Sequence[Row], steps: Sequence[Sequence[int]], weights: TokenWeights, spec: ReplaySpec, seed: int
) -> Replay:
    """Return replay rows spread over the steps; after each step, their share so far is `spec.share`, rounded."""
    chosen = rows[: spec.rows]
    stream = endless_order(len(chosen), f"{seed}/replay")
    taken = itertools.accumulate((len(step) for step in steps), initial=0)
    due = [round(count * spec.share / (1 - spec.share)) for count in taken]
    counts = [after - before for before, after in itertools.pairwise(due)]
    return Replay(chosen, [list(islice(stream, count)) for count in counts], weights, spec)


OPENINGS = (Path(__file__).parent / "openings.txt").read_text(encoding="utf-8").splitlines()
BATCH = 64  # number of texts that are generated at the same time


def write_replay_text(loaded: LoadedModel, count: int, tokens: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield `count` generated texts of at most `tokens` tokens: `id`, `text`, and the token ids `prompt` and `target`.

    The method is that of Huang et al. 2024 (arXiv:2403.01244). The texts are sampled from the model's full
    distribution. Up to a constant, the tuned model's expected loss on them is therefore the Kullback-Leibler divergence
    of the tuned model from the base. All openings are cut to the length of the shortest opening, so that a batch needs
    no padding.
    """
    start = loaded.start_ids()
    openings = [loaded.tokenizer(text, add_special_tokens=False)["input_ids"] for text in OPENINGS]
    length = min(map(len, openings))
    ends, most = loaded.end_ids(), tokens - len(start) - length
    order = endless_order(len(openings), f"{seed}/openings")
    torch.manual_seed(seed)
    with Progress("Writing replay text", count, "texts") as progress:
        for first in range(0, count, BATCH):
            prompts = [[*start, *openings[index][:length]] for index in islice(order, min(BATCH, count - first))]
            targets = sample_texts(loaded.model, prompts, most, ends, loaded.pad_id)
            for number, (prompt, target) in enumerate(zip(prompts, targets, strict=True), start=first):
                text = loaded.tokenizer.decode([*prompt, *target], skip_special_tokens=True)
                yield {"id": f"self-{number}", "text": text, "prompt": prompt, "target": target}
            progress.advance(len(prompts))


def replay_row(written: dict[str, Any]) -> Row:
    """Return the training row of a generated text; its opening isn't trained on."""
    return join([Encoded(written["id"], "answer", written["prompt"], written["target"], answer_cut=True)])


ROW_TOKENS = 128
"""Maximum length in tokens of rows from the sources `self` and `general`; for `medical`, it is `prompt.max_tokens`"""
EWC_ROWS = 64  # number of rows from which EWC estimates which weights matter
FILE = "replay.jsonl"
GENERAL_FILE = "valid.txt"
"""WikiText-2's validation text. Its test text measures forgetting, so it must never be trained on."""


def rows_needed(spec: TrainSpec) -> int:
    """Return the number of different rows that replay and EWC need; 0 if both are off."""
    return max(spec.replay.rows if spec.replay.share else 0, EWC_ROWS if spec.ewc.strength else 0)


def check_source(recipe: Recipe) -> None:
    """Raise DataError, with a remedy, if the recipe's replay text is unavailable."""
    if rows_needed(recipe.train):
        if recipe.train.replay.source == "general":
            _general_file()
        elif recipe.train.replay.source == "medical":
            _medquad(recipe)


def replay_rows(loaded: LoadedModel, recipe: Recipe, splits: Splits, folder: Path) -> list[Row]:
    """Return the replay rows in a seeded order: as many as the recipe needs, or fewer if the source has fewer.

    `loaded` must be the base model.
    """
    count, spec = rows_needed(recipe.train), recipe.train.replay
    if not count:
        return []
    if spec.source == "self":
        if distributed.is_first() and not (folder / FILE).is_file():
            write_jsonl(folder / FILE, write_replay_text(loaded, count, ROW_TOKENS, recipe.seed))
        distributed.barrier()
        return [replay_row(written) for written in read_jsonl(folder / FILE)]
    if spec.source == "general":
        return general_rows(loaded, ROW_TOKENS, count, recipe.seed)
    return _medical(loaded, recipe, splits, count)


def general_rows(loaded: LoadedModel, tokens: int, count: int, seed: int) -> list[Row]:
    """Return up to `count` windows of `tokens` tokens from WikiText-2's validation text, in a seeded random order."""
    with quiet_transformers():
        ids = loaded.tokenizer(read_text(_general_file()), add_special_tokens=False)["input_ids"]
    rows = windows("general", ids, tokens, loaded.start_ids())
    if not rows:
        raise DataError(f"{_general_file()} is empty. Put WikiText-2's validation text there.")
    return random.Random(f"{seed}/general").sample(rows, min(count, len(rows)))


def _medical(loaded: LoadedModel, recipe: Recipe, splits: Splits, count: int) -> list[Row]:
    encoder = loaded.encoder(recipe.prompt)
    found = list(read(_medquad(recipe), Rejects()))
    free = can_rehearse(found, splits, recipe.seed)
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
        f"Replay from MedQuAD: {len(found) - len(free):,} of {len(found):,} pairs left out because they are in the "
        f"run's training data or share a group or question with its dev or test items, and {long} because the question "
        f"is too long. {cut} of {len(rows)} answers are cut.",
        file=sys.stderr,
    )
    if not rows:
        raise DataError(
            "train.replay.source: MedQuAD has no pairs left to replay: all overlap with the run's own examples or are "
            "too long for prompt.max_tokens. Set train.replay.source to self or general."
        )
    return rows


def rehearsal_rows(recipe: Recipe, rows: Sequence[Row]) -> list[Example]:
    """Return the MedQuAD examples behind the rows of `replay_rows`; empty for other sources."""
    if recipe.train.replay.source != "medical" or not rows:
        return []
    chosen = {item.id for row in rows for item in row.encoded}
    return [example for example in read(_medquad(recipe), Rejects()) if example.id in chosen]


def can_rehearse(examples: list[Example], splits: Splits, seed: int) -> list[Example]:
    """Return, shuffled, the examples that aren't trained on and share no group or question with dev or test items."""
    held = [*splits.dev, *splits.test]
    groups = {(example.source, example.group) for example in held}
    questions = {question_key(example.user_text) for example in held}
    trained = {example.id for example in splits.train}
    free = [
        example
        for example in examples
        if (example.source, example.group) not in groups
        and question_key(example.user_text) not in questions
        and example.id not in trained
    ]
    random.Random(f"{seed}/medical").shuffle(free)
    return free


def _general_file() -> Path:
    file = locate_source("wikitext-2", download=False) / GENERAL_FILE
    if not file.is_file():
        raise DataError(
            f"{file}, WikiText-2's validation text, is missing. Put it there, or use other text: set "
            "train.replay.source to self, which needs no data; for `meditune prune`, pass a recipe with --recipe."
        )
    return file


def _medquad(recipe: Recipe) -> Path:
    return locate_source(
        "medquad", next((source.path for source in recipe.data.sources if source.name == "medquad"), None)
    )
