"""The plan of a training run: rows and their order, mix of sources, replay, preference pairs, and starting point."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from meditune import distributed
from meditune.config.recipe import Recipe
from meditune.data.example import Example
from meditune.data.leakage import copy_record
from meditune.data.preference_pairs import DOWN, UP
from meditune.data.prepare_pairs import stored_pairs
from meditune.data.retrieved_passages import in_training
from meditune.data.splits import Splits
from meditune.errors import DataError, ModelError
from meditune.files import (
    follow_umask,
    full_disk_message,
    read_json,
    read_jsonl,
    replace_folder,
    sha256,
    write_json,
    write_jsonl,
)
from meditune.models.catalogue import ADAPTER_FILE, MERGED, START
from meditune.models.load import LoadedModel, adapter_weights, is_virtual, load, locate, prompt_for
from meditune.models.quantization import trained_on
from meditune.models.quiet_libraries import quiet_transformers
from meditune.models.shared_prefix_batch import Row, by_length, rows_of_pairs
from meditune.progress import Progress
from meditune.prompts import load_format, save_format
from meditune.train import checkpoint
from meditune.train.dataset import (
    TokenFacts,
    TokenWeights,
    check_masks,
    check_teaches,
    encode,
    marked,
    retrieved_described,
    retrieved_facts,
    token_facts,
)
from meditune.train.early_stopping import check_dev
from meditune.train.losses import PairLoss, Reference, SingleAnswerLoss, log_likelihoods, mismatched
from meditune.train.replay import Replay, check_source, mix_of, plan_replay, replay_rows
from meditune.train.trainer import TrainingRows, plan_steps


def mixture(
    rows: Sequence[Row], sources: Sequence[str], steps: Sequence[Sequence[int]], replay: Replay | None
) -> list[dict[str, Any]]:
    """Return how much these steps read from each source, for training.json: the largest part first, replay last.

    `sources` contains the source of each row. In the result, `rows` is the number of distinct rows, `visits` the number
    of rows read, and `passes` the mean number of times that a row is read.
    """
    read: dict[str, list[Row]] = {source: [] for source in sources}
    for index in (index for step in steps for index in step):
        read[sources[index]].append(rows[index])
    available = Counter(sources)
    parts = [_part(source, available[source], visited) for source, visited in read.items()]
    parts.sort(key=lambda part: -part["tokens"])
    if replay:
        visited = [replay.rows[index] for step in replay.steps[: len(steps)] for index in step]
        parts.append(_part(f"replay ({replay.spec.source})", len(replay.rows), visited))
    tokens, supervised = (sum(part[key] for part in parts) for key in ("tokens", "supervised_tokens"))
    for part in parts:
        part["passes"] = round(part["visits"] / part["rows"], 2) if part["rows"] else 0.0
        part["token_share"] = round(part["tokens"] / tokens, 4) if tokens else 0.0
        part["supervised_share"] = round(part["supervised_tokens"] / supervised, 4) if supervised else 0.0
    return parts


def _part(source: str, available: int, read: Sequence[Row]) -> dict[str, Any]:
    return {
        "source": source,
        "rows": available,
        "visits": len(read),
        "tokens": sum(map(len, read)),
        "supervised_tokens": sum(len(row.targets) for row in read),
    }


def plan_lines(parts: Sequence[dict[str, Any]]) -> list[str]:
    """Return the parts of `mixture` in words, one line each."""
    return [
        f"{part['source']}: {part['visits']:,} rows ({part['passes']:g} passes over {part['rows']:,}), "
        f"{part['tokens']:,} tokens ({part['token_share']:.0%}), {part['supervised_tokens']:,} of them supervised "
        f"({part['supervised_share']:.0%} of all supervised tokens)"
        for part in parts
    ]


CUES = ("question_cue", "answer_cue", "plain_cue", "decision_cue")


def check_start(recipe: Recipe) -> None:
    """Raise ModelError if the base can't be tuned further, was tuned with another prompt, or lacks a chat template."""
    name, place = recipe.model.base, Path(locate(recipe.model.base))
    prompt_for(recipe.prompt, recipe.model.base, ())
    if (place / ADAPTER_FILE).is_file():
        if is_virtual(place):
            raise ModelError(
                f"model.base: {name} is an adapter of virtual tokens, which can't be merged into its base model to "
                "tune it further. Use a model that was tuned with another strategy."
            )
        if recipe.model.quantize != "none" or trained_on(place) != "none":
            raise ModelError(
                f"model.base: {name} is an adapter, which is merged into its base model before further tuning. That "
                "needs an unquantized base: model.quantize must be none both here and in the adapter's recipe."
            )
    form = load_format(place) if place.is_dir() else None
    asked = {cue: getattr(form, cue) for cue in CUES} if form else {}
    if form and recipe.prompt.format:  # if no format is set, that of the base is used
        asked["format"] = form.format or "plain"
    # The recipe may add a cue that the base never learnt.
    differing = [cue for cue, text in asked.items() if text and text != getattr(recipe.prompt, cue)]
    if form and differing:
        named = "; ".join(f"prompt.{cue} is {asked[cue]!r} there" for cue in differing)
        raise ModelError(
            f"model.base: {name} was tuned with another prompt: {named}. Set the same values in this recipe."
        )


def check_plain(train: Sequence[Example], recipe: Recipe) -> None:
    """Raise DataError if `prompt.plain_cue` is set but no training answer teaches it."""
    cue, name = recipe.prompt.plain_cue, recipe.model.base
    known = load_format(Path(locate(name))) if Path(name).expanduser().is_dir() else None
    if not cue or (known and known.plain_cue == cue):
        return
    answered = [example for example in train if example.answer.strip() and "answer" in recipe.train.tasks]
    if not any(example.style == "plain" for example in answered):
        raise DataError(
            f"prompt.plain_cue is never learnt: none of the {len(answered):,} training answers is in plain words. "
            "Plain answers come from a source in data.sources with style: plain, and have a reading grade of at most "
            f"{recipe.data.plain_grade:g} (data.plain_grade). Change these settings, or remove the cue: "
            "--set prompt.plain_cue=null"
        )


def starting_point(recipe: Recipe, folder: Path) -> str:
    """Return the model that tuning starts from: the base, or the run's `start/` if the base is an adapter.

    The first process merges an adapter into `start/` if that hasn't been done yet.
    """
    name = _merged_adapter(recipe, folder) if distributed.is_first() else ""
    return str(folder / START) if distributed.broadcast(name == str(folder / START)) else recipe.model.base


def _merged_adapter(recipe: Recipe, folder: Path) -> str:
    """Return the run's `start/` if the base is an adapter, and merge it there if necessary; else return the base."""
    name, copy = recipe.model.base, folder / START
    if (copy / MERGED).is_file() and any((folder / name).exists() for name in ("predictions", checkpoint.FOLDER)):
        return str(copy)
    place = Path(locate(name))
    if not (place / ADAPTER_FILE).is_file():
        return name
    origin = {"adapter": str(place.resolve()), "sha256": sha256(adapter_weights(place)), "dtype": recipe.model.dtype}
    if (copy / MERGED).is_file() and read_json(copy / MERGED).get("made_from") == origin:
        return str(copy)
    loaded = load(name, recipe.model)
    with full_disk_message(copy), replace_folder(copy) as partial, quiet_transformers():
        loaded.model.save_pretrained(partial)
        loaded.tokenizer.save_pretrained(partial)
        follow_umask(partial)
        save_format(loaded.form or recipe.prompt, partial)
        write_json(partial / MERGED, {"made_from": origin})
        copy_record(place, partial)
    return str(copy)


@dataclass(frozen=True, kw_only=True)
class Plan(TrainingRows):
    """Everything that the recipe, the data and the base model determine before the first step."""

    fitted: TokenFacts
    steps: list[list[int]]  # result of `plan_steps`
    pool: list[Row]  # rows of the recipe's replay source, for replay and for EWC's estimate
    unit: str = "examples"  # what rows are called in messages
    row_introduction: str = "One example, with the supervised part between « »:"
    """Text before the first row in the pre-flight"""
    further: dict[str, Any] = field(default_factory=dict)  # additional facts for the run's records
    sources: list[str] = field(default_factory=list)  # source of each row; empty if rows aren't examples

    @property
    def epoch_rows(self) -> int:
        """Number of rows in an epoch."""
        return self.mix.size if self.mix else len(self.rows)

    @property
    def tokens(self) -> int:
        """Number of tokens read in all steps."""
        examples = sum(len(self.rows[index]) for step in self.steps for index in step)
        return examples + (self.replay.tokens() if self.replay else 0)

    def facts(self, done: int | None = None) -> dict[str, Any]:
        """Return facts for the run's records about the first `done` steps, or about all steps."""
        found = asdict(self.fitted) | self.further
        if self.mix:
            found["mix"] = self.mix.visits
        if self.replay:
            found["replay"] = self.replay.facts(self._weight(done), done)
        return found | ({"mixture": self._mixture(done)} if self.sources else {})

    def lines(self, tokenizer: Any) -> list[str]:
        """Return lines about the mix of sources and replay, for people to check before training."""
        found = [retrieved_described(self.further["retrieved"])] if "retrieved" in self.further else []
        if self.mix:
            found.append(f"An epoch has {self.mix.size} rows: {self.mix.described()}.")
        if self.replay:
            found += [
                f"Replay: {self.replay.described(self._weight())} One row, with the supervised part between « »:",
                *(f"    {line}" for line in marked(self.replay.rows[0], tokenizer).splitlines()),
            ]
        parts = self._mixture() if self.sources else []
        if len(parts) > 1:
            found += ["The whole training reads:", *(f"    {line}" for line in plan_lines(parts))]
        return found

    def _mixture(self, done: int | None = None) -> list[dict[str, Any]]:
        return mixture(self.rows, self.sources, self.steps[:done], self.replay)

    def _weight(self, done: int | None = None) -> float:
        """Return the sum of the weights of the examples' tokens over the first `done` steps, or over all steps."""
        of_row = [sum(self.weights.of(row)) for row in self.rows]
        return sum(of_row[index] for step in self.steps[:done] for index in step)


def check(splits: Splits, recipe: Recipe) -> None:
    """Raise DataError for problems that would stop training later. This needs no model, so it can run early."""
    if recipe.train.objective == "sft":
        check_teaches(splits.train, recipe.train.tasks)
    check_plain(splits.train, recipe)
    mix_of([example.source for example in splits.train], recipe.train.mix.weights)
    check_source(recipe)
    check_dev(splits, recipe)


def visited_rows(rows: Sequence[Row], steps: Sequence[Sequence[int]]) -> list[Row]:
    """Return the rows that any of the steps reads, in the order of `rows`."""
    return [rows[index] for index in sorted({index for step in steps for index in step})]


def plan(loaded: LoadedModel, splits: Splits, recipe: Recipe, folder: Path) -> Plan:
    """Return the plan for training `loaded`, which must still be the base model. Replay text is written to `folder`."""
    spec = recipe.train
    examples = {example.id: example for example in splits.train}
    rows, fitted = encode(
        in_training(splits.train, folder), loaded.encoder(recipe.prompt), spec.tasks, spec.prompt_share > 0
    )
    pool = replay_rows(loaded, recipe, splits, folder)
    check_masks(rows)
    sources = [examples[row.encoded[0].id].source for row in rows]
    mix = mix_of(sources, spec.mix.weights)
    repeats = mix.repeats() if mix else {}
    often = {row.encoded[0].id: repeats.get(source, 1.0) for row, source in zip(rows, sources, strict=True)}
    weights = TokenWeights(splits.train, rows, spec, often, loaded.tokenizer.eos_token_id)
    steps = plan_steps(len(rows), spec, recipe.seed, mix)
    replay = plan_replay(pool, steps, weights, spec.replay, recipe.seed) if spec.replay.share else None
    rehearsed = visited_rows(replay.rows, replay.steps) if replay else []
    loaded.frozen.group([*visited_rows(rows, steps), *rehearsed], spec.batch_tokens)
    retrieved = retrieved_facts(rows, folder)
    return Plan(
        rows=rows,
        weights=weights,
        mix=mix,
        replay=replay,
        fitted=fitted,
        steps=steps,
        pool=pool,
        sources=sources,
        further={"retrieved": retrieved} if retrieved else {},
    )


REFERENCE = "reference.jsonl"
"""File in the run's folder with reference log-likelihoods; a folder with this file accepts no other settings"""


def plan_pairs(loaded: LoadedModel, splits: Splits, recipe: Recipe, folder: Path) -> Plan:
    """Return the plan for preference tuning on the run's pairs or rated answers.

    `loaded` must still be at its starting point.
    """
    spec, pairs, single = recipe.train, stored_pairs(folder), recipe.train.objective == "kto"
    rows, fitting = rows_of_pairs(pairs.train, loaded.encoder(recipe.prompt))
    desirable = {pair.id: bool(pair.chosen) for pair in fitting}
    if not rows:
        raise DataError(
            f"None of the {len(pairs.train)} pairs fits into prompt.max_tokens={recipe.prompt.max_tokens} with answers "
            "that still differ. Raise prompt.max_tokens."
        )
    if single and len(set(desirable.values())) < 2:
        raise DataError(
            f"All answers that fit into prompt.max_tokens={recipe.prompt.max_tokens} have thumbs "
            f"{fitting[0].kind}. Raise prompt.max_tokens."
        )
    pool = replay_rows(loaded, recipe, splits, folder)
    check_masks(rows)
    steps, limit = plan_steps(len(rows), spec, recipe.seed), recipe.prompt.max_tokens
    others = [each for step in steps for each in mismatched([rows[index] for index in step], limit)] if single else []
    others = list({row.encoded[0].id: row for row in others}.values())
    loaded.frozen.group([*visited_rows(rows, steps), *others], spec.batch_tokens)
    reference = _reference(loaded, [*rows, *others], spec.batch_tokens, folder)
    facts: dict[str, Any] = {"beta": spec.preference.beta}
    shown = "pair", "the same prompt with the preferred answer, then with the rejected answer, each"
    loss = PairLoss(spec.preference.beta, reference)
    if single:
        shown = "answer", "the prompt with its answer, which is"
        loss = by_thumbs = SingleAnswerLoss(spec.preference.beta, reference, desirable, limit)
        facts["weights"] = dict(zip((UP, DOWN), by_thumbs.weights, strict=True))
    return Plan(
        rows=rows,
        fitted=token_facts(rows, len(pairs.train) - len(rows)),
        weights=loss,
        steps=steps,
        pool=pool,
        loss_of=loss,
        prepare_step=loss.prepare_step,
        unit="rated answers" if single else "pairs",
        row_introduction=f"One {shown[0]} ({fitting[0].kind}): {shown[1]} between « »:",
        further={"preference": facts | {key: pairs.facts[key] for key in ("source", "train", "held_out", "left_out")}},
    )


def _reference(loaded: LoadedModel, rows: Sequence[Row], batch_tokens: int, folder: Path) -> Reference:
    """Return the answers' log-likelihoods before training, which are computed once and stored in the run's folder."""
    path = folder / REFERENCE
    if not path.is_file():
        found: dict[str, list[float]] = {}
        with torch.no_grad(), Progress("Reference likelihoods", sum(map(len, rows)), "tokens") as progress:
            for indices in by_length(rows, batch_tokens):
                chosen = [rows[index] for index in indices]
                likelihoods, batch = log_likelihoods(loaded.model, loaded.frozen, chosen, loaded.pad_id)
                found |= {row.encoded[0].id: each for row, each in zip(chosen, likelihoods.tolist(), strict=True)}
                progress.advance(batch.real_tokens)
        names = ("chosen", "rejected") if len(rows[0].encoded) == 2 else ("answer",)
        write_jsonl(path, ({"id": id, **dict(zip(names, each, strict=True))} for id, each in found.items()))
    return {row.pop("id"): tuple(row.values()) for row in read_jsonl(path)}
