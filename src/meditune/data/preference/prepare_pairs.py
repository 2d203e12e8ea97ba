"""A run's preference pairs: read from a file or built, split into training and held-out pairs, and stored."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meditune.config.data_options import PhiSpec
from meditune.config.recipe import Recipe
from meditune.data.deidentify import Findings, cleaner, deidentify
from meditune.data.example import Decision
from meditune.data.leakage import find
from meditune.data.preference import rated_answers
from meditune.data.preference.pairs import DOWN, SOURCE, UP, Pair, build, read_pairs, write_pairs
from meditune.data.readers.tables import Rejects
from meditune.data.splits import Splits, by_group, question_key
from meditune.errors import DataError
from meditune.files import read_json, replace_folder, write_json

FOLDER = "pairs"
HELD_OUT_SHARE = 0.2
"""Share of the groups of a file's pairs for evaluation"""
SIDES: dict[str, Decision] = {UP: "yes", DOWN: "no"}
"""Kind of a single answer -> its stratum when a share is held out"""
LEAKS = ("group", "question", "context")
"""Kinds of overlap that a pair must not have with an evaluation item"""


@dataclass(frozen=True)
class PairSets:
    """A run's pairs, as stored in its `pairs/`; no question is in both sets."""

    train: list[Pair]
    held_out: list[Pair]
    facts: dict[str, Any]
    """`source`, `train` and `held_out` (kind -> pairs), `left_out` (reason -> rows), `settings`, and `phi` (identifiers
    found in a file's pairs)"""


def prepare_pairs(recipe: Recipe, splits: Splits, sha256: str, run: Path) -> PairSets:
    """Return the pairs in `run/pairs`, and build them first unless they exist for the same settings and data.

    Pairs of corrupted answers come from the training examples, and held-out ones from the split in `evaluate.split`.

    From a file, a seeded share of the groups is held out, and identifiers of people are treated according to
    `data.phi`. Pairs that share a question, context, group or answer with the development or test set are left out. For
    the objective kto, the training pairs are single answers. Raises DataError if no pairs are left for training or for
    evaluation, or only answers with the same thumb.
    """
    spec, objective = recipe.train.preference, recipe.train.objective
    settings = spec.model_dump(mode="json", exclude={"beta"})
    settings |= {"objective": objective, "seed": recipe.seed, "split": recipe.evaluate.split, "data": sha256}
    if spec.path:
        settings["phi"] = recipe.data.phi.model_dump(mode="json")
    if (run / FOLDER / "facts.json").is_file():
        stored = stored_pairs(run)
        # Earlier versions stored more settings, of which they now accept only the defaults, and no objective.
        known = {"objective": "dpo"} | stored.facts["settings"]
        if known | settings == known:
            return stored
    rejects, phi = Rejects(cleaner(recipe.data.phi)), Findings(recipe.data.phi)
    if spec.path:
        train, held_out = _read(Path(spec.path).expanduser(), recipe, splits, rejects, phi)
    else:
        train, held_out = _built(recipe, splits, rejects)
    if objective == "kto":
        train = [single for pair in train for single in pair.single_answers()]
    facts = {
        "source": spec.path or "corrupted answers",
        "train": _kinds(train),
        "held_out": _kinds(held_out),
        "left_out": rejects.counts().get(SOURCE, {}),
        "settings": settings,
        "phi": phi.facts(),
    }
    with replace_folder(run / FOLDER) as partial:
        write_pairs(partial / "train.jsonl", train)
        write_pairs(partial / "held_out.jsonl", held_out)
        rejects.write(partial / "rejected.jsonl")
        write_json(partial / "facts.json", facts)
    print(_described(facts), file=sys.stderr)
    return PairSets(train, held_out, facts)


def stored_pairs(run: Path) -> PairSets:
    """Return what `prepare_pairs` wrote to `run/pairs`. Raises DataError if it is incomplete."""
    folder = run / FOLDER
    return PairSets(
        read_pairs(folder / "train.jsonl"), read_pairs(folder / "held_out.jsonl"), read_json(folder / "facts.json")
    )


def _built(recipe: Recipe, splits: Splits, rejects: Rejects) -> tuple[list[Pair], list[Pair]]:
    spec, measured = recipe.train.preference, recipe.evaluate.split
    built: list[list[Pair]] = []
    for name, examples in (("train", splits.train), (measured, splits.measured(measured))):
        pairs, without_pair = build(examples, spec, recipe.seed)
        rejects.count_only(SOURCE, "answers with nothing to corrupt", without_pair)
        if not pairs:
            raise DataError(
                f"None of the {len(examples)} {name} examples has an answer that can be corrupted by "
                f"{', '.join(spec.corruptions)}. Add kinds to train.preference.corruptions, or set "
                "train.preference.path to a file of pairs."
            )
        built.append(pairs)
    return built[0], built[1]


def _read(path: Path, recipe: Recipe, splits: Splits, rejects: Rejects, phi: Findings) -> tuple[list[Pair], list[Pair]]:
    pairs = _without_identifiers(rated_answers.read_given_pairs(path, recipe, rejects), recipe.data.phi, phi)
    measured = [*splits.dev, *splits.test]
    questions = {question_key(example.user_text) for example in measured}
    others = [pair for pair in pairs if question_key(pair.example().user_text) not in questions]
    rejects.count_only(SOURCE, "about a question of the development or test set", len(pairs) - len(others))
    answers = {question_key(example.answer) for example in measured if example.answer}
    usable = [pair for pair in others if not {question_key(pair.chosen), question_key(pair.rejected)} & answers]
    rejects.count_only(SOURCE, "with an answer of the development or test set", len(others) - len(usable))
    near = {leak.train for leak in find([pair.example() for pair in usable], measured) if leak.kind in LEAKS}
    usable = [pair for pair in usable if pair.id not in near]
    rejects.count_only(SOURCE, "too similar to a question, context or group of the development or test set", len(near))
    # The two thumbs have their own strata, so that both are held out.
    sided = [pair.example().model_copy(update={"decision": SIDES.get(pair.kind)}) for pair in usable]
    rest, held = by_group(sided, HELD_OUT_SHARE, recipe.seed)
    if not rest or not held:
        raise DataError(
            f"{path}: {len(usable)} usable pairs give {len(rest)} for training and {len(held)} for evaluation. Add "
            "pairs about other questions."
        )
    held_out = {example.id for example in held}
    parts = [pair for pair in usable if pair.id not in held_out], [pair for pair in usable if pair.id in held_out]
    for part, purpose in zip(parts, ("training", "evaluation"), strict=True):
        counts = _kinds(part)
        if set(counts) < set(SIDES):
            raise DataError(
                f"{path}: {counts.get(UP, 0)} answers with thumbs up and {counts.get(DOWN, 0)} with thumbs down are "
                f"left for {purpose}, which needs both. Add answers with the other thumb, about other questions."
            )
    return parts


def _without_identifiers(pairs: Sequence[Pair], spec: PhiSpec, findings: Findings) -> list[Pair]:
    """Return the pairs treated according to `spec`. Raises DataError for identifiers if the action is refuse."""
    examples = [
        pair.example().model_copy(update={"source": SOURCE, "answer": pair.chosen, "meta": {"rejected": pair.rejected}})
        for pair in pairs
    ]
    return [
        pair.model_copy(
            update={
                "question": each.question,
                "context": each.context,
                "turns": each.turns,
                "chosen": each.answer,
                "rejected": each.meta["rejected"],
            }
        )
        for pair, each in zip(pairs, deidentify(examples, spec, findings), strict=True)
    ]


def _kinds(pairs: Sequence[Pair]) -> dict[str, int]:
    return dict(sorted(Counter(pair.kind for pair in pairs).items()))


def _described(facts: dict[str, Any]) -> str:
    """Return the summary of the facts as a sentence."""
    parts = []
    for name, what in (("train", "for training"), ("held_out", "held out")):
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in facts[name].items())
        parts.append(f"{sum(facts[name].values()):,} {what} ({kinds})")
    left = ", ".join(f"{count:,} {reason}" for reason, count in facts["left_out"].items()) or "none"
    name = "Rated answers" if UP in facts["train"] else "Pairs"
    return f"{name} (experimental) from {facts['source']}: {'; '.join(parts)}; left out: {left}."
