"""A run's preference pairs: read from a file or built, split into training and held-out pairs, and stored.

`train.preference.path` is a file or a folder. A file contains pairs, rated answers, or answers with feedback that were
exported from a server. A folder contains MedQuAD's answers to LiveQA's test questions, which experts rated from 1 to 4
(Ben Abacha and Demner-Fushman 2019, https://doi.org/10.1186/s12859-019-3119-4; https://github.com/abachaa/MedQuAD).
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meditune.config.data_options import PhiSpec
from meditune.config.recipe import Recipe
from meditune.data.deidentify import Findings, cleaner, deidentify
from meditune.data.example import Decision, read_records, write_records
from meditune.data.leakage import find
from meditune.data.preference_pairs import (
    DOWN,
    MARGIN,
    SOURCE,
    UNKNOWN_THUMB,
    UP,
    Pair,
    Rated,
    build,
    from_rows,
    paired,
    rated_from_rows,
    thumbs,
)
from meditune.data.readers import liveqa
from meditune.data.readers.medquad import JUDGED_ANSWERS, judged_answers
from meditune.data.readers.tables import LAYOUTS, Rejects, Row, find_files, rows
from meditune.data.readers.user_files import beginning, column_names, has_column, list_columns
from meditune.data.sources import locate_source
from meditune.data.splits import Splits, by_group, question_key
from meditune.errors import DataError
from meditune.files import read_json, read_text, replace_folder, write_json
from meditune.text import counted_reasons

FOLDER = "pairs"
HELD_OUT_SHARE = 0.2
SIDES: dict[str, Decision] = {UP: "yes", DOWN: "no"}
"""Kind of a single answer -> its stratum when a share of the answers is held out"""
LEAKS = ("group", "question", "context")
"""Kinds of overlap that a pair must not have with a development or test item"""


@dataclass(frozen=True)
class PairSets:
    """A run's pairs, as stored in its folder `pairs`; no question is in both sets."""

    train: list[Pair]
    held_out: list[Pair]
    facts: dict[str, Any]
    """`source`, `train` and `held_out` (kind -> number of pairs), `left_out` (reason -> number of rows), `settings`,
    and `phi` (identifiers found in a file's pairs)"""


def prepare_pairs(recipe: Recipe, splits: Splits, sha256: str, run: Path) -> PairSets:
    """Return the pairs in `run/pairs`; if there are none for these settings and data, prepare them first.

    Pairs from a file that share a question, context, group or answer with the development or test set are left out, and
    a seeded share of the groups is held out. For the objective kto, the training pairs are single answers. Raises
    DataError if no pairs are left for training or for evaluation, or if the remaining answers don't include
    both thumbs up and thumbs down.
    """
    spec, objective = recipe.train.preference, recipe.train.objective
    settings = spec.model_dump(mode="json", exclude={"beta"})
    settings |= {"objective": objective, "seed": recipe.seed, "split": recipe.evaluate.split, "data": sha256}
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
        write_records(partial / "train.jsonl", train)
        write_records(partial / "held_out.jsonl", held_out)
        rejects.write(partial / "rejected.jsonl")
        write_json(partial / "facts.json", facts)
    print(_described(facts), file=sys.stderr)
    return PairSets(train, held_out, facts)


def stored_pairs(run: Path) -> PairSets:
    """Return the pairs that `prepare_pairs` wrote to `run/pairs`. Raises DataError if a file is missing."""
    folder = run / FOLDER
    train, held_out = (read_records(folder / f"{name}.jsonl", Pair) for name in ("train", "held_out"))
    return PairSets(train, held_out, read_json(folder / "facts.json"))


def _built(recipe: Recipe, splits: Splits, rejects: Rejects) -> tuple[list[Pair], list[Pair]]:
    spec, measured = recipe.train.preference, recipe.evaluate.split
    built: dict[str, list[Pair]] = {}
    for name, examples in (("train", splits.train), (measured, splits.measured(measured))):
        built[name], without_pair = build(examples, spec, recipe.seed)
        rejects.count_only(SOURCE, "answers with nothing to corrupt", without_pair)
        if not built[name]:
            raise DataError(
                f"None of the {len(examples)} {name} examples has an answer that can be corrupted. Set "
                "train.preference.path to a file of pairs."
            )
    return built["train"], built[measured]


def _read(path: Path, recipe: Recipe, splits: Splits, rejects: Rejects, phi: Findings) -> tuple[list[Pair], list[Pair]]:
    pairs = _without_identifiers(read_given_pairs(path, recipe, rejects), recipe.data.phi, phi, path)
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
    # Thumbs up and thumbs down are separate strata, so that some of each are held out.
    sided = [pair.example().model_copy(update={"decision": SIDES.get(pair.kind)}) for pair in usable]
    rest, held = by_group(sided, HELD_OUT_SHARE, recipe.seed)
    if not rest or not held:
        raise DataError(
            f"{path}: {len(usable)} usable pairs give {len(rest)} for training and {len(held)} for evaluation, but "
            "both need pairs. Add pairs about other questions."
        )
    held_out = {example.id for example in held}
    parts = [pair for pair in usable if pair.id not in held_out], [pair for pair in usable if pair.id in held_out]
    for part, purpose in zip(parts, ("training", "evaluation"), strict=True):
        counts = _kinds(part)
        if set(counts) < set(SIDES):
            raise DataError(
                f"{path}: {counts.get(UP, 0)} answers with thumbs up and {counts.get(DOWN, 0)} with thumbs down are "
                f"left for {purpose}, which needs both. Add rated answers to other questions."
            )
    return parts


def _without_identifiers(pairs: Sequence[Pair], spec: PhiSpec, findings: Findings, path: Path) -> list[Pair]:
    """Return the pairs with identifiers treated according to `spec`. Raises DataError if `refuse` finds any."""
    examples = [
        pair.example().model_copy(update={"source": SOURCE, "answer": pair.chosen, "meta": {"rejected": pair.rejected}})
        for pair in pairs
    ]
    treated = deidentify(examples, spec, findings, path=path)
    changes: list[dict[str, Any]] = [
        {name: getattr(each, name) for name in ("question", "context", "turns")}
        | {"chosen": each.answer, "rejected": each.meta["rejected"]}
        for each in treated
    ]
    return [pair.model_copy(update=update) for pair, update in zip(pairs, changes, strict=True)]


def _kinds(pairs: Sequence[Pair]) -> dict[str, int]:
    return dict(sorted(Counter(pair.kind for pair in pairs).items()))


def _described(facts: dict[str, Any]) -> str:
    """Return a sentence that summarizes the facts."""
    parts = []
    for name, what in (("train", "for training"), ("held_out", "held out")):
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in facts[name].items())
        parts.append(f"{sum(facts[name].values()):,} {what} ({kinds})")
    left = counted_reasons(facts["left_out"]) or "none"
    name = "Rated answers" if UP in facts["train"] else "Pairs"
    return f"{name} (experimental) from {facts['source']}: {'; '.join(parts)}; left out: {left}."


def read_given_pairs(path: Path, recipe: Recipe, rejects: Rejects) -> list[Pair]:
    """Return pairs from a file of pairs or of rated answers, or from the folder of MedQuAD's judged answers.

    Raises DataError if the columns of a file fit neither pairs nor rated answers, or if no pairs are usable.
    """
    spec, as_thumbs = recipe.train.preference, recipe.train.objective == "kto"
    if path.is_dir():
        questions = next((source.path for source in recipe.data.sources if source.name == "liveqa"), None)
        ratings = read_judged(path, locate_source("liveqa", questions), rejects)
        pairs = paired(ratings, recipe.seed, rejects)
    else:
        found, first = beginning(rows(path, SOURCE, rejects))
        fields = spec.fields or None
        no_rows = f"{path}: no rows. Provide a file with at least one pair, or two rated answers to the same question."
        if as_thumbs and first and isinstance(first[0][1].get("feedback"), list):
            found, first = beginning(_exported(found, rejects))
            no_rows = _nothing_usable(path, rejects, as_thumbs)
        columns = column_names(row for _, row in first)
        if first and _holds_ratings(columns, spec.fields, first[0][0], as_thumbs):
            ratings = rated_from_rows(found, rejects, fields, path.stem, no_rows, as_thumbs)
            pairs = thumbs(ratings, rejects) if as_thumbs else paired(ratings, recipe.seed, rejects)
            _refuse_unknown_thumbs(rejects)
        else:
            pairs = list(from_rows(found, rejects, fields, path.stem, no_rows))
    if not pairs:
        raise DataError(_nothing_usable(path, rejects, as_thumbs))
    return pairs


def _refuse_unknown_thumbs(rejects: Rejects) -> None:
    for row in rejects.rows():
        if row["reason"].startswith(UNKNOWN_THUMB):
            raise DataError(
                f"{row['where']}: {row['reason']}. With train.objective kto, a rating is up or down, true or false, or "
                "1 or -1. For ratings on a scale, set train.objective to dpo."
            )


def _holds_ratings(columns: Collection[str], fields: Mapping[str, str], location: str, as_thumbs: bool) -> bool:
    """Return True for columns of rated answers, False for columns of pairs. Raises DataError for other columns."""
    chosen, rejected = (
        has_column(field, columns, fields, LAYOUTS["pairs"].guesses) for field in ("chosen", "rejected")
    )
    guesses = LAYOUTS["thumbs" if as_thumbs else "ratings"].guesses
    answer, rating = (has_column(field, columns, fields, guesses) for field in ("answer", "rating"))
    if not (chosen and rejected) and rating and (answer or not (chosen or rejected)):
        return True
    if chosen or rejected:
        return False
    raise DataError(
        f"{location}: the rows are neither pairs (question, chosen, rejected) nor rated answers "
        f"(question, answer, rating). The columns are {list_columns(columns)}. Assign columns to the fields in "
        "train.preference.fields, for example fields: {rating: COLUMN}. For a file from `meditune answers export`, set "
        "train.objective to kto."
    )


def _nothing_usable(path: Path, rejects: Rejects, as_thumbs: bool) -> str:
    left = counted_reasons(rejects.counts().get(SOURCE, {}))
    advice = f"Provide more ratings; the two ratings in a pair must differ by at least {MARGIN:g}."
    if first := next(rejects.rows(), None):
        advice = f"The first rejected row is {first['where']}: {first['reason']}."
    elif as_thumbs:
        advice = "Provide answers that people rated up or down."
    return f"{path}: no usable {'ratings' if as_thumbs else 'pairs'} ({left}). {advice}"


def _exported(rows: Iterable[Row], rejects: Rejects) -> Iterator[Row]:
    """Yield a row for each rating of an exported answer; if experts rated the answer, only their ratings count."""
    for where, row in rows:
        feedback = row.get("feedback")
        if not isinstance(feedback, list) or not all(isinstance(each, Mapping) for each in feedback):
            rejects.add(SOURCE, where, "feedback is not a list of objects with a rating", row)
        elif row.get("outcome") != "answered":
            rejects.count_only(SOURCE, "answers that the model didn't write (abstained, declined or escalated)")
        elif not feedback:
            rejects.count_only(SOURCE, "answers without feedback")
        elif not row.get("question") or not row.get("answer"):
            rejects.count_only(SOURCE, "answers whose text wasn't stored (meditune serve --keep-text)")
        else:
            shown = {name: row.get(name) for name in ("id", "question", "context", "answer")}
            for each in [each for each in feedback if each.get("expert")] or feedback:
                yield where, shown | {"rating": each.get("rating")}


JUDGMENTS = "*qrels*.txt"
_JUDGMENT = re.compile(r"(\d+)\s+([1-4])-\w+\s+(\S+)")


def read_judged(folder: Path, questions: Path, rejects: Rejects) -> Iterator[Rated]:
    """Yield the judged answers in the publisher's folder; `questions` is the path of the LiveQA data.

    Raises DataError if files are missing.
    """
    what = (
        "Set train.preference.path to a file of pairs or rated answers, or to the folder of MedQuAD's judged answers "
        f"({JUDGED_ANSWERS} and {JUDGMENTS})."
    )
    found_answers = judged_answers(find_files(folder, [JUDGED_ANSWERS], what), SOURCE, rejects)
    answers = {answer_id: text for answer_id, _, _, text in found_answers}
    known = {each.id: each for each in liveqa.read(questions, Rejects())}
    for path in find_files(folder, [JUDGMENTS], what):
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            found = _JUDGMENT.fullmatch(line.strip())
            question = known.get(f"{liveqa.SOURCE}-test:TQ{found[1]}") if found else None
            if found and question and found[3] in answers:
                yield Rated(
                    id=f"{path.stem}-{number}",
                    name=f"TQ{found[1]}/{found[3]}",
                    question=question.question,
                    context=(),
                    answer=answers[found[3]],
                    group=question.group,
                    rating=float(found[2]),
                )
            elif line.strip():
                problem = (
                    "the line doesn't consist of question, judgment and answer"
                    if not found
                    else "unknown question or answer"
                )
                rejects.add(SOURCE, f"{path}:{number}", problem, line)
