"""A run's preference pairs: read from a file or built, split into training and held-out pairs, and stored.

Pairs can also come from several model answers to one example: the most faithful to the sources is preferred to the
least faithful.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meditune.config.data_options import PhiSpec
from meditune.config.recipe import Recipe
from meditune.config.training_options import PairSource, SampledSpec
from meditune.data.deidentify import Findings, cleaner, deidentify
from meditune.data.example import Example
from meditune.data.leakage import find
from meditune.data.preference import rated_answers
from meditune.data.preference.pairs import SAMPLED, SOURCE, Pair, build, read_pairs, write_pairs
from meditune.data.read_sources import is_restricted
from meditune.data.readers.tables import Rejects
from meditune.data.splits import Splits, by_group, question_key
from meditune.errors import DataError
from meditune.evidence.detector import Sources, detect
from meditune.files import read_json, replace_folder, write_json
from meditune.text import sentences


def usable(examples: Sequence[Example]) -> list[Example]:
    """Return the examples that have source texts."""
    return [example for example in examples if any(passage.text for passage in example.context)]


def score_answer(example: Example, text: str, ended: bool) -> dict[str, Any]:
    """Return an answer with its faithfulness: `id` of the example, `text`, `score`, and the `kinds` of its spans.

    If the answer hadn't `ended`, its last sentence is removed; otherwise a model would learn to stop mid-sentence.
    """
    kept = text.strip() if ended else " ".join(sentences(text.strip())[:-1])
    found = detect(kept, Sources((passage.text for passage in example.context), example.question))
    return {"id": example.id, "text": kept, "score": found.score or 0.0, "kinds": [span.kind for span in found.spans]}


def pairs_of_sampled(
    examples: Sequence[Example], answers: Iterable[Mapping[str, Any]], spec: SampledSpec, rejects: Rejects
) -> list[Pair]:
    """Return a pair for each example whose best and worst answers differ by at least `spec.margin`.

    `answers` are rows as `score_answer` returns them. Of answers with the same score, the first is used. Examples
    without a pair are counted in `rejects`.
    """
    written: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for answer in answers:
        if answer["text"]:
            written[answer["id"]].append(answer)
        else:
            rejects.count_only(SOURCE, "model answers without a complete sentence")
    pairs: list[Pair] = []
    for example in examples:
        found = written[example.id]
        best = max(found, key=lambda each: each["score"], default=None)
        worst = min(found, key=lambda each: each["score"], default=None)
        if best is None or worst is None:
            rejects.count_only(SOURCE, "examples without a complete model answer")
        elif best["score"] - worst["score"] < spec.margin:
            rejects.count_only(SOURCE, "examples whose answers differ too little in faithfulness (sampled.margin)")
        else:
            pairs.append(
                Pair(
                    id=f"{example.id}/{SAMPLED}",
                    question=example.question,
                    context=example.context,
                    chosen=best["text"],
                    rejected=worst["text"],
                    group=example.group,
                    style=example.style,
                    source=example.source,
                    restricted=is_restricted(example),
                    kind=SAMPLED,
                )
            )
    return pairs


FOLDER = "pairs"
SOURCES: dict[PairSource, str] = {
    "corrupted": "corrupted answers",
    "sampled": "the model's own answers, ranked by faithfulness to the sources",
}
"""Descriptions of the sources of automatic pairs"""


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

    Automatic training pairs come from the training examples, held-out pairs from the split in `evaluate.split`. With
    source sampled, the training pairs are missing until the model is loaded (`with_training_pairs`). The held-out pairs
    are corruptions in that case, too: they are the same for every model, so evaluation doesn't need the tuned model.

    From a file, a seeded share of the groups is held out, and identifiers of people are treated according to
    `data.phi`. Pairs that share a question, context, group or answer with the development or test set are left out.
    Raises DataError if no pairs are left for training or for evaluation.
    """
    spec = recipe.train.preference
    settings = spec.model_dump(mode="json") | {
        "seed": recipe.seed,
        "split": recipe.evaluate.split,
        "data": sha256,
    }
    del settings["beta"]
    if spec.path:
        settings["phi"] = recipe.data.phi.model_dump(mode="json")
    if (run / FOLDER / "facts.json").is_file():
        stored = stored_pairs(run)
        if stored.facts["settings"] == settings:
            return stored
    rejects, phi = Rejects(cleaner(recipe.data.phi)), Findings(recipe.data.phi)
    if spec.path:
        train, held_out = _read(Path(spec.path).expanduser(), recipe, splits, rejects, phi)
    else:
        train, held_out = _built(recipe, splits, rejects)
    facts = {"source": spec.path or SOURCES[spec.source], "settings": settings, "phi": phi.facts()}
    return _kept(run, train, held_out, rejects, facts)


def with_training_pairs(run: Path, train: list[Pair], rejects: Rejects) -> PairSets:
    """Store these training pairs in `run/pairs` and return all pairs; `rejects` counts examples without a pair."""
    stored = stored_pairs(run)
    for reason, count in stored.facts["left_out"].items():
        rejects.count_only(SOURCE, reason, count)
    return _kept(run, train, stored.held_out, rejects, stored.facts)


def _kept(run: Path, train: list[Pair], held_out: list[Pair], rejects: Rejects, facts: dict[str, Any]) -> PairSets:
    """Write the pairs to `run/pairs`, print a summary and return them."""
    facts = {
        "source": facts["source"],
        "train": _kinds(train),
        "held_out": _kinds(held_out),
        "left_out": rejects.counts().get(SOURCE, {}),
        "settings": facts["settings"],
        "phi": facts["phi"],
    }
    with replace_folder(run / FOLDER) as partial:
        write_pairs(partial / "train.jsonl", train)
        write_pairs(partial / "held_out.jsonl", held_out)
        rejects.write(partial / "rejected.jsonl")
        write_json(partial / "facts.json", facts)
    print(_said(facts), file=sys.stderr)
    return PairSets(train, held_out, facts)


def stored_pairs(run: Path) -> PairSets:
    """Return what `prepare_pairs` wrote to `run/pairs`. Raises DataError if it is incomplete."""
    folder = run / FOLDER
    return PairSets(
        read_pairs(folder / "train.jsonl"), read_pairs(folder / "held_out.jsonl"), read_json(folder / "facts.json")
    )


def _built(recipe: Recipe, splits: Splits, rejects: Rejects) -> tuple[list[Pair], list[Pair]]:
    spec = recipe.train.preference
    made: list[list[Pair]] = []
    if spec.source == "sampled" and not usable(splits.train):
        raise DataError(
            f"train.preference.source sampled compares answers with their sources, but none of the {len(splits.train)} "
            "training examples has a context. Use source corrupted, or set train.preference.path to a file of pairs."
        )
    for name, examples in (("train", splits.train), (recipe.evaluate.split, splits.measured(recipe.evaluate.split))):
        if name == "train" and spec.source == "sampled":
            made.append([])
            continue
        pairs, barren = build(examples, spec, recipe.seed)
        rejects.count_only(SOURCE, "answers with nothing to corrupt", barren)
        if not pairs:
            raise DataError(
                f"None of the {len(examples)} {name} examples has an answer that can be corrupted by "
                f"{', '.join(spec.corruptions)}. Add kinds to train.preference.corruptions, or set "
                "train.preference.path to a file of pairs."
            )
        made.append(pairs)
    return made[0], made[1]


def _read(path: Path, recipe: Recipe, splits: Splits, rejects: Rejects, phi: Findings) -> tuple[list[Pair], list[Pair]]:
    pairs = _without_identifiers(rated_answers.read_given_pairs(path, recipe, rejects), recipe.data.phi, phi)
    measured = [*splits.dev, *splits.test]
    questions = {question_key(example.question) for example in measured}
    others = [pair for pair in pairs if question_key(pair.question) not in questions]
    rejects.count_only(SOURCE, "about a question of the development or test set", len(pairs) - len(others))
    answers = {question_key(example.answer) for example in measured if example.answer}
    usable = [pair for pair in others if not {question_key(pair.chosen), question_key(pair.rejected)} & answers]
    rejects.count_only(SOURCE, "with an answer of the development or test set", len(others) - len(usable))
    near = {leak.train for leak in find([pair.example() for pair in usable], measured) if leak.kind in LEAKS}
    usable = [pair for pair in usable if pair.id not in near]
    rejects.count_only(SOURCE, "too similar to a question, context or group of the development or test set", len(near))
    rest, held = by_group([pair.example() for pair in usable], recipe.train.preference.held_out_share, recipe.seed)
    if not rest or not held:
        raise DataError(
            f"{path}: {len(usable)} usable pairs give {len(rest)} for training and {len(held)} for evaluation. Add "
            "pairs about other questions, or change train.preference.held_out_share."
        )
    held_out = {example.id for example in held}
    return [pair for pair in usable if pair.id not in held_out], [pair for pair in usable if pair.id in held_out]


def _without_identifiers(pairs: Sequence[Pair], spec: PhiSpec, findings: Findings) -> list[Pair]:
    """Return the pairs treated according to `spec`. Raises DataError for identifiers if the action is refuse."""
    examples = [
        pair.example().model_copy(update={"source": SOURCE, "meta": {"rejected": pair.rejected}}) for pair in pairs
    ]
    return [
        pair.model_copy(
            update={
                "question": each.question,
                "context": each.context,
                "chosen": each.answer,
                "rejected": each.meta["rejected"],
            }
        )
        for pair, each in zip(pairs, deidentify(examples, spec, findings), strict=True)
    ]


def _kinds(pairs: Sequence[Pair]) -> dict[str, int]:
    return dict(sorted(Counter(pair.kind for pair in pairs).items()))


def _said(facts: dict[str, Any]) -> str:
    """Return the summary of the facts as a sentence."""
    parts = []
    for name, what in (("train", "for training"), ("held_out", "held out")):
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in facts[name].items()) or "not generated yet"
        parts.append(f"{sum(facts[name].values()):,} {what} ({kinds})")
    left = ", ".join(f"{count:,} {reason}" for reason, count in facts["left_out"].items()) or "none"
    return f"Pairs (experimental) from {facts['source']}: {'; '.join(parts)}; left out: {left}."
