"""Whether a test measures what a model was shown: test items in the training data, answers in prompts, known tests.

Whatever is found stops a run, unless its recipe owns up to it by `evaluate.allow_leakage`; then the report says so.

What a model was trained on, as hashes that lie beside it: enough to recognize a test item, not to read one.

    {"version": 1, "examples": 449, "unlisted": 0, "questions": [...], "contexts": [...], "groups": [...]}

Each entry is the first 16 hexadecimal digits of a SHA-256, of a question or context without case, punctuation and
spacing, or of a source with a group. Who has a text can test whether it is in the list; so examples that are marked as
restricted (MIMIC-III) are only counted as `unlisted`.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

from meditune.config.recipe import LeakKind
from meditune.data.example import Example
from meditune.data.near_duplicates import LEAST_WORDS, Matches, near_passages, near_questions, share_within, words
from meditune.data.read_sources import is_restricted
from meditune.data.splits import Splits, backgrounds, context_key, instructions, question_key
from meditune.errors import DataError
from meditune.files import read_json, write_json

FILE_NAME = "trained_on.json"
VERSION = 1
PARTS = ("questions", "contexts", "groups")
DIGITS = 16

Record = dict[str, Any]


def record(examples: Sequence[Example], earlier: Iterable[Record] = ()) -> Record:
    """The record of a model that was trained on `examples`, and on what `earlier` records of its base name."""
    listed = [example for example in examples if not is_restricted(example)]
    before = list(earlier)
    found: Record = {
        "version": VERSION,
        "examples": len(examples) + sum(each["examples"] for each in before),
        "unlisted": len(examples) - len(listed) + sum(each["unlisted"] for each in before),
    }
    general, common = instructions(examples), backgrounds(examples)
    hashed = [keys(example) for example in listed]
    for example, each in zip(listed, hashed, strict=True):
        if question_key(example.question) in general:
            each["questions"] = ""
        if context_key(example) in common:
            each["contexts"] = ""
    for part in PARTS:
        own = {each[part] for each in hashed if each[part]}
        found[part] = sorted(own.union(*(each[part] for each in before)))
    return found


def keys(example: Example) -> dict[str, str]:
    """The hashes that an example leaves in each part of a record; empty where it has no such text."""
    return {
        "questions": _hashed(example.question),
        "contexts": _hashed(" ".join(passage.text for passage in example.context)),
        "groups": _hash(f"{example.source}\n{example.group}"),
    }


def read_record(model: Path) -> Record | None:
    """The record in a model's folder; None where there is none. Raises DataError where it can't be used."""
    path = model / FILE_NAME
    if not path.is_file():
        return None
    found = read_json(path)
    if not isinstance(found, dict) or found.get("version") != VERSION or not set(PARTS) <= found.keys():
        raise DataError(
            f"{path}: not a record of this version of Meditune, so it can't be checked whether the model was trained "
            "on the test. Copy the model again, or update Meditune."
        )
    return found


def copy_record(model: Path, derived: Path) -> None:
    """Copy a model's record, if it has one, into the folder of what was made of it."""
    if (model / FILE_NAME).is_file():
        shutil.copyfile(model / FILE_NAME, derived / FILE_NAME)


def _hashed(text: str) -> str:
    said = question_key(text)
    return _hash(said) if said else ""


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


LEAKAGE_FILE_NAME = "leakage.json"
"""In a run's folder: what was looked for, and what was found."""
KINDS: tuple[LeakKind, ...] = get_args(LeakKind)
WHAT: dict[str, str] = {
    "group": "have the group (article, topic, patient) of a training item",
    "question": "have the question of a training item, or nearly",
    "context": "have the context of a training item, or most of it",
    "answer_in_prompt": "hold most of their own reference answer, word for word, in the question or context",
    "decision_in_prompt": 'name the decision in the question or context ("Answer: yes")',
    "answer_in_index": "have most of a reference answer, word for word, in a document that is searched",
    "trained_on": "were trained on by {model}",
}
"""Said of several test items."""
SINGULAR = {
    kind: f"{ {'have': 'has', 'hold': 'holds', 'name': 'names', 'were': 'was'}[verb] } {rest}".replace("their", "its")
    for kind, (verb, _, rest) in ((kind, said.partition(" ")) for kind, said in WHAT.items())
}
"""Said of one."""
REMEDY: dict[str, str] = {
    **dict.fromkeys(("group", "question", "context"), "Take them out of the training source"),
    **dict.fromkeys(("answer_in_prompt", "decision_in_prompt"), "Take the answer out of the question and context"),
    "answer_in_index": "Search an index without these documents, or narrow it by evaluate.retrieve.sources",
    "trained_on": "Measure on other items, such as the test items of that model's own run (its data, split and seed)",
}
RUN = 8
"""Words in a row that count as copied."""
COPIED = 0.6
"""Share of an answer's runs of that length in the prompt from which on the answer is in the prompt."""
LEAST_ANSWER = 12
"""Shorter answers, in words, aren't looked for: a name or a number may well be meant to stand in its source."""
SHOWN = 5
KEPT = 100
"""So many leaks of a kind are listed in the facts."""

_DECISION = re.compile(
    r"\b(?:answer|decision|conclusion|label|verdict)s?[\"']?\s*(?:is|was|[:=])\s*[\"'(\[]*(yes|no|maybe)\b(?!\s+\w)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Leak:
    """One test item that gives nothing to measure."""

    kind: LeakKind
    test: str
    """The test item's id"""
    train: str
    """The training item's id, or where else it was found"""
    alike: float
    """1 for the same, less for nearly the same"""


def check(splits: Splits, split: str, model: str) -> dict[str, Any]:
    """What leakage.json holds, before anything is known of `model`.

    What isn't measured counts as shown to it, but for the test set.
    """
    measured, test = splits.measured(split), split == "test"
    shown = [*splits.train, *splits.dev] if test else splits.train
    return {
        "split": split,
        "items": len(measured),
        "training": len(shown),
        "model": {"name": model, "recorded": None, "run": 0},
        "found": facts(find(shown, measured, () if test else splits.test)),
    }


def with_known_test_items(
    checked: dict[str, Any], records: Sequence[Record], trained: Sequence[Example], measured: Sequence[Example]
) -> dict[str, Any]:
    """The same with what the model's records, and its run's training examples, say of it."""
    recorded = max((record["examples"] for record in records), default=None)
    return checked | {
        "model": checked["model"] | {"recorded": recorded, "run": len(trained)},
        "found": checked["found"] | facts(known_test_items(records, trained, measured)),
    }


def find(train: Sequence[Example], measured: Sequence[Example], others: Sequence[Example] = ()) -> list[Leak]:
    """Every leak between training items and test items, and inside the test items, at most one of a kind for each.

    `others` are the run's further examples; they help to tell a template from a rewrite.
    """
    groups = {(example.source, example.group): example.id for example in train}
    found = [
        Leak("group", example.id, groups[example.source, example.group], 1.0)
        for example in measured
        if (example.source, example.group) in groups
    ]
    general = instructions([*train, *measured])
    asked, mine = ([each for each in part if question_key(each.question) not in general] for part in (train, measured))
    near = partial(near_questions, others=[example.question for example in others])
    found += _alike("question", asked, mine, lambda example: example.question, near, 1)
    common = backgrounds([*train, *measured, *others])
    asked, mine = ([each for each in part if context_key(each) not in common] for part in (train, measured))
    found += _alike("context", asked, mine, context_of, near_passages, LEAST_WORDS)
    return [*found, *in_prompt(measured)]


def in_prompt(measured: Iterable[Example]) -> list[Leak]:
    """Test items whose question or context gives the answer or the decision away."""
    found = []
    for example in measured:
        prompt = f"{example.question}\n{context_of(example)}"
        for answer in example.references():
            share = share_within(answer, prompt, RUN) if len(words(answer)) >= LEAST_ANSWER else 0.0
            if share >= COPIED:
                found.append(Leak("answer_in_prompt", example.id, "its own prompt", share))
                break
        said = {match[1].lower() for match in _DECISION.finditer(prompt)}
        if example.decision and example.decision in said:
            found.append(Leak("decision_in_prompt", example.id, "its own prompt", 1.0))
    return found


def in_documents(measured: Sequence[Example], passages: Iterable[tuple[str, str]]) -> list[Leak]:
    """Test items of whose reference answers a document holds most, word for word; `passages` are (document, text).

    The passages of a document may come in any order, and between others'.
    """
    answers: list[tuple[str, int]] = []
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for example in measured:
        for reference in example.references():
            said = words(reference)
            runs = (
                {tuple(said[at : at + RUN]) for at in range(len(said) - RUN + 1)} if len(said) >= LEAST_ANSWER else ()
            )
            for run in runs:
                holders[run].append(len(answers))
            answers.append((example.id, len(runs)))
    met: dict[tuple[str, int], set[tuple[str, ...]]] = defaultdict(set)
    for document, text in passages:
        said = words(text)
        for at in range(len(said) - RUN + 1):
            run = tuple(said[at : at + RUN])
            for number in holders.get(run, ()):
                met[document, number].add(run)
    found: dict[str, Leak] = {}
    for (document, number), runs in met.items():
        test, count = answers[number]
        share = len(runs) / count
        if share >= COPIED and (test not in found or share > found[test].alike):
            found[test] = Leak("answer_in_index", test, document, share)
    return list(found.values())


def known_test_items(records: Iterable[Record], trained: Sequence[Example], measured: Sequence[Example]) -> list[Leak]:
    """Test items that a model was trained on, by its records, or by its run's training examples."""
    seen: dict[str, Leak] = {}
    listed = [{part: frozenset(record[part]) for part in PARTS} for record in records]
    for example in measured:
        for part, key in keys(example).items():
            if any(key in each[part] for each in listed):
                seen.setdefault(example.id, Leak("trained_on", example.id, f"recorded {part.removesuffix('s')}", 1.0))
    for leak in find(trained, measured) if trained else []:
        if leak.kind in ("group", "question", "context"):
            seen.setdefault(leak.test, Leak("trained_on", leak.test, leak.train, leak.alike))
    return list(seen.values())


def facts(leaks: Sequence[Leak]) -> dict[str, Any]:
    """Kind -> test `items`, how many of them `exact`, the least `alike`, and the first `leaks`."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        mine = sorted((leak for leak in leaks if leak.kind == kind), key=lambda leak: -leak.alike)
        if mine:
            found[kind] = {
                "items": len(mine),
                "exact": sum(leak.alike == 1 for leak in mine),
                "alike": min(leak.alike for leak in mine),
                "leaks": [{"test": leak.test, "train": leak.train, "alike": leak.alike} for leak in mine[:KEPT]],
            }
    return found


def refuse(checked: dict[str, Any], allowed: bool | Sequence[LeakKind], folder: Path) -> None:
    """Raise DataError where a kind of leak isn't allowed, with a sentence for each: what, how many, how near, which.

    `checked` (the content of leakage.json) is left in `folder`, where anything was found.
    """
    found, items, model = checked["found"], checked["items"], checked["model"]["name"]
    if found:
        write_json(folder / LEAKAGE_FILE_NAME, checked)
    all_in = f"The first {KEPT} of each kind are in {folder / LEAKAGE_FILE_NAME}. "
    wrong = {kind: row for kind, row in found.items() if kind not in (KINDS if allowed is True else allowed or ())}
    if wrong:
        said = [sentence(kind, row, items, model) for kind, row in wrong.items()]
        remedies = dict.fromkeys(f"{REMEDY[kind]}." for kind in wrong)
        raise DataError(
            f"Leakage: {' '.join([*said, *remedies])} {all_in}A model tested on what it was shown proves nothing. To "
            f"go on all the same, with the report marked: --set 'evaluate.allow_leakage=[{', '.join(wrong)}]'."
        )


def sentence(kind: str, row: dict[str, Any], items: int, model: str = "the model") -> str:
    """What was found of one kind."""
    shown = ", ".join(
        leak["test"] + (f" = {leak['train']}" if leak["alike"] == 1 else f" ~ {leak['train']} ({leak['alike']:.2f})")
        for leak in row["leaks"][:SHOWN]
    )
    more = f" and {row['items'] - SHOWN} more" if row["items"] > SHOWN else ""
    one = row["items"] == 1
    exact = (
        f"{row['exact']} of them exactly, the others" if row["exact"] else "" if one else "none of them exactly, all"
    )
    near = f", {exact} at a likeness of {row['alike']:.2f}{'' if one else ' or more'}".replace(",  at", ", at")
    what = (SINGULAR if one else WHAT)[kind].format(model=model)
    return f"{row['items']} of {items} test items {what}{'' if row['exact'] == row['items'] else near} ({shown}{more})."


def described(checked: dict[str, Any]) -> list[str]:
    """What leakage.json says was found, a sentence for each kind; none where nothing was."""
    found = checked.get("found", {}).items()
    return [sentence(kind, row, checked["items"], checked["model"]["name"]) for kind, row in found]


def context_of(example: Example) -> str:
    """The texts of the context's passages, one after the other."""
    return " ".join(passage.text for passage in example.context)


def _alike(
    kind: LeakKind,
    train: Sequence[Example],
    measured: Sequence[Example],
    text_of: Callable[[Example], str],
    near: Callable[[Sequence[str], Sequence[str]], Matches],
    least: int,
) -> list[Leak]:
    """The training item that each test item is most like, if it is alike at all and has as many words as `least`."""
    sides = []
    for examples in (measured, train):
        by_text: dict[str, list[Example]] = defaultdict(list)
        for example in examples:
            said = words(text_of(example))
            if len(said) >= least:
                by_text[" ".join(said)].append(example)
        sides.append(by_text)
    theirs, ours = sides
    best = {text: (text, 1.0) for text in theirs if text in ours}
    others, texts = [text for text in theirs if text not in best], list(ours)
    for row, column, alike in near(others, texts):
        if alike > best.get(others[row], ("", 0.0))[1]:
            best[others[row]] = (texts[column], alike)
    return [
        Leak(kind, example.id, ours[other][0].id, alike)
        for text, (other, alike) in best.items()
        for example in theirs[text]
    ]
