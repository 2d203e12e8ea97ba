"""A run's pairs: read or built, parted into those to train on and those to measure on, and written down.

Pairs out of several answers to one example: the most faithful to its sources is to be preferred to the least.
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
from meditune.data.preference import pairs as own
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
    """The examples with sources to be faithful to."""
    return [example for example in examples if any(passage.text for passage in example.context)]


def score_answer(example: Example, text: str, ended: bool) -> dict[str, Any]:
    """One answer with how faithful it is: `id` of the example, `text`, `score`, and the `kinds` of its spans.

    Of an answer that hadn't `ended` the last sentence is left out, or a model would learn to stop in the middle of one.
    """
    kept = text.strip() if ended else " ".join(sentences(text.strip())[:-1])
    found = detect(kept, Sources((passage.text for passage in example.context), example.question))
    return {"id": example.id, "text": kept, "score": found.score or 0.0, "kinds": [span.kind for span in found.spans]}


def pairs_of_sampled(
    examples: Sequence[Example], answers: Iterable[Mapping[str, Any]], spec: SampledSpec, rejects: Rejects
) -> list[Pair]:
    """A pair of each example whose best and worst answers differ by `spec.margin`, from the rows that `judged` gives.

    Of answers that score the same the first counts. What gives no pair is counted in `rejects`.
    """
    written: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for answer in answers:
        if answer["text"]:
            written[answer["id"]].append(answer)
        else:
            rejects.count_only(SOURCE, "answers of the model without a whole sentence")
    pairs: list[Pair] = []
    for example in examples:
        found = written[example.id]
        best = max(found, key=lambda each: each["score"], default=None)
        worst = min(found, key=lambda each: each["score"], default=None)
        if best is None or worst is None:
            rejects.count_only(SOURCE, "examples without a whole answer of the model")
        elif best["score"] - worst["score"] < spec.margin:
            rejects.count_only(SOURCE, "examples whose answers are too equally faithful (sampled.margin)")
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
    "sampled": "the model's own answers, by their faithfulness to the sources",
}
"""What automatic pairs are made of, in words"""


LEAKS = ("group", "question", "context")
"""Of what a pair must share nothing with an item that is measured"""


@dataclass(frozen=True)
class PairSets:
    """A run's pairs, as stored in its `pairs/`; no question is in both."""

    train: list[Pair]
    held_out: list[Pair]
    facts: dict[str, Any]
    """`source`, `train` and `held_out` (kind -> pairs), `left_out` (reason -> rows), `settings`, and `phi`, what was
    found of identifiers in a file's pairs"""


def prepare_pairs(recipe: Recipe, splits: Splits, sha256: str, run: Path) -> PairSets:
    """The pairs in `run/pairs`, made now unless they are there already for the same settings and data.

    Automatic pairs come from the training examples, those to measure on from the examples that `evaluate.split` names.
    Those of answers that the model writes are missing until it is loaded (`with_training_pairs`); measured on are
    corruptions then, too: they are the same for every model, and who only measures one needn't have the one that was
    tuned.

    Of a file, a seeded share of the groups is held out. Its identifiers of people become what `data.phi` says. Pairs
    about a question of the development or test set, or about its context or group, are left out, whatever they say, and
    so are those with an answer from there. Raises DataError where nothing is left to train or to measure on.
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
    """The pairs in `run/pairs` with these to train on, written down; `rejects` counts what gave none."""
    stored = stored_pairs(run)
    for reason, count in stored.facts["left_out"].items():
        rejects.count_only(own.SOURCE, reason, count)
    return _kept(run, train, stored.held_out, rejects, stored.facts)


def _kept(run: Path, train: list[Pair], held_out: list[Pair], rejects: Rejects, facts: dict[str, Any]) -> PairSets:
    """The pairs, written to `run/pairs` and told about."""
    facts = {
        "source": facts["source"],
        "train": _kinds(train),
        "held_out": _kinds(held_out),
        "left_out": rejects.counts().get(own.SOURCE, {}),
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
    """What `prepare_pairs` left in `run/pairs`. Raises DataError where it isn't whole."""
    folder = run / FOLDER
    return PairSets(
        read_pairs(folder / "train.jsonl"), read_pairs(folder / "held_out.jsonl"), read_json(folder / "facts.json")
    )


def _built(recipe: Recipe, splits: Splits, rejects: Rejects) -> tuple[list[Pair], list[Pair]]:
    spec = recipe.train.preference
    made: list[list[Pair]] = []
    if spec.source == "sampled" and not usable(splits.train):
        raise DataError(
            f"train.preference.source sampled compares answers with their sources, and none of the {len(splits.train)} "
            "training examples has a context. Take source corrupted, or a file of pairs as train.preference.path."
        )
    for name, examples in (("train", splits.train), (recipe.evaluate.split, splits.measured(recipe.evaluate.split))):
        if name == "train" and spec.source == "sampled":
            made.append([])
            continue
        pairs, barren = build(examples, spec, recipe.seed)
        rejects.count_only(own.SOURCE, "answer with nothing to corrupt", barren)
        if not pairs:
            raise DataError(
                f"None of the {len(examples)} {name} examples has an answer that can be corrupted by "
                f"{', '.join(spec.corruptions)}. Add kinds to train.preference.corruptions, or name "
                "a file of pairs as train.preference.path."
            )
        made.append(pairs)
    return made[0], made[1]


def _read(path: Path, recipe: Recipe, splits: Splits, rejects: Rejects, phi: Findings) -> tuple[list[Pair], list[Pair]]:
    pairs = _without_identifiers(rated_answers.read_given_pairs(path, recipe, rejects), recipe.data.phi, phi)
    measured = [*splits.dev, *splits.test]
    questions = {question_key(example.question) for example in measured}
    others = [pair for pair in pairs if question_key(pair.question) not in questions]
    rejects.count_only(own.SOURCE, "about a question of the development or test set", len(pairs) - len(others))
    answers = {question_key(example.answer) for example in measured if example.answer}
    usable = [pair for pair in others if not {question_key(pair.chosen), question_key(pair.rejected)} & answers]
    rejects.count_only(own.SOURCE, "with an answer of the development or test set", len(others) - len(usable))
    near = {leak.train for leak in find([pair.example() for pair in usable], measured) if leak.kind in LEAKS}
    usable = [pair for pair in usable if pair.id not in near]
    rejects.count_only(own.SOURCE, "too near to a question, context or group of the development or test set", len(near))
    rest, held = by_group([pair.example() for pair in usable], recipe.train.preference.held_out_share, recipe.seed)
    if not rest or not held:
        raise DataError(
            f"{path}: {len(usable)} usable pairs give {len(rest)} to train on and {len(held)} to measure on. Give more "
            "pairs about different questions, or change train.preference.held_out_share."
        )
    held_out = {example.id for example in held}
    return [pair for pair in usable if pair.id not in held_out], [pair for pair in usable if pair.id in held_out]


def _without_identifiers(pairs: Sequence[Pair], spec: PhiSpec, findings: Findings) -> list[Pair]:
    """The pairs as `spec` wants them. Raises DataError where identifiers are found and the action is refuse."""
    examples = [
        pair.example().model_copy(update={"source": own.SOURCE, "meta": {"rejected": pair.rejected}}) for pair in pairs
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
    """The facts in words."""
    parts = []
    for name, what in (("train", "to train on"), ("held_out", "held out")):
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in facts[name].items()) or "not written yet"
        parts.append(f"{sum(facts[name].values()):,} {what} ({kinds})")
    left = ", ".join(f"{count:,} {reason}" for reason, count in facts["left_out"].items()) or "nothing"
    return f"Pairs (experimental) from {facts['source']}: {'; '.join(parts)}; left out: {left}."
