"""Leakage checks: find test items in the training data of a run or model, and answers in prompts or documents.

The folder of a trained model contains a record of its training data, `trained_on.json`, with these keys: `version`;
`examples`, the number of training examples; `unlisted`, the number of restricted examples, which aren't hashed; and
lists of hashes: `questions` (including turns of conversations), `contexts`, `groups`, and `sentences` (the longest
sentences of each question). A hash is the first 16 hexadecimal digits of a SHA-256. Questions, contexts and sentences
are hashed in lowercase and without punctuation. A hash identifies an item but doesn't reveal its text.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any, get_args

from meditune.config.recipe import LeakKind
from meditune.data.example import ANSWERED_QUESTION, CHOICES, REWRITES_CONTEXT, Example
from meditune.data.near_duplicates import (
    MIN_PASSAGE_OVERLAP,
    MIN_PASSAGE_WORDS,
    Matches,
    near_passages,
    near_questions,
    share_within,
    word_runs,
    words,
)
from meditune.data.read_sources import is_restricted
from meditune.data.splits import (
    FEW,
    MIN_TURN_WORDS,
    Pair,
    Splits,
    backgrounds,
    context_key,
    distinctive_turns,
    instructions,
    question_key,
    turn_keys,
)
from meditune.errors import DataError
from meditune.files import read_json, write_json
from meditune.text import sentences as split_sentences

FILE_NAME = "trained_on.json"
VERSION = 1
PARTS = ("questions", "contexts", "groups")
SENTENCES = "sentences"
MAX_SENTENCES = 6
"""Maximum number of sentences that are recorded per question; the longest sentences are chosen"""
DIGITS = 16
Record = dict[str, Any]


def record(examples: Sequence[Example], earlier: Iterable[Record] = ()) -> Record:
    """Return the record of a model trained on `examples`, merged with the `earlier` records of its base model."""
    listed = [example for example in examples if not is_restricted(example)]
    before = list(earlier)
    general, common = instructions(examples), backgrounds(examples)
    hashes = {part: {key for each in before for key in each[part]} for part in (*PARTS, SENTENCES)}
    for example in _with_answered_questions(listed):
        own = keys(example)
        if question_key(example.user_text) in general:
            own["questions"] = ""
        if context_key(example) in common:
            own["contexts"] = ""
        for part in PARTS:
            hashes[part].add(own[part])
    turns = distinctive_turns(listed)
    hashes["questions"].update(_hash(key) for example in listed if turns for key in turn_keys(example) if key in turns)
    counts = Counter(key for example in listed for key in set(_longest_sentences(example.user_text, MAX_SENTENCES)))
    hashes[SENTENCES].update(_hash(key) for key, count in counts.items() if count <= FEW)
    return {
        "version": VERSION,
        "examples": len(examples) + sum(each["examples"] for each in before),
        "unlisted": len(examples) - len(listed) + sum(each["unlisted"] for each in before),
        **{part: sorted(found - {""}) for part, found in hashes.items()},
    }


def keys(example: Example) -> dict[str, str]:
    """Return an example's hash for each of PARTS; the hash is an empty string if the example has no such text."""
    return {
        "questions": _hash(question_key(example.user_text)),
        "contexts": _hash(context_key(example)),
        "groups": _hash(f"{example.source}\n{example.group}"),
    }


def _longest_sentences(text: str, count: int) -> list[str]:
    """Return the keys of the longest sentences of at least MIN_TURN_WORDS words; none if the text is one sentence."""
    found = (question_key(sentence) for line in text.splitlines() for sentence in split_sentences(line))
    pieces = list(filter(None, found))
    long = [piece for piece in pieces if piece.count(" ") >= MIN_TURN_WORDS - 1]
    return sorted(long, key=len, reverse=True)[:count] if len(pieces) > 1 else []


def _is_inside(question: str, listed: Container[str]) -> bool:
    """Return True if `listed`, the sentence hashes of a record, contains a question's two longest sentences.

    These sentences must be long or make up most of the question: "What is the most likely diagnosis?" alone proves
    nothing.
    """
    whole = question_key(question)
    longest = _longest_sentences(question, 2) or [whole]
    count = sum(len(key.split()) for key in longest)
    is_distinctive = count >= min(MIN_PASSAGE_WORDS, max(MIN_TURN_WORDS, 0.8 * len(whole.split())))
    return is_distinctive and all(_hash(key) in listed for key in longest)


def _with_answered_questions(examples: Iterable[Example]) -> list[Example]:
    """Return the examples, plus a copy of each claim that answers a question, with this question as its text."""
    examples = list(examples)
    asked = ((example, example.meta.get(ANSWERED_QUESTION)) for example in examples)
    return [*examples, *(example.model_copy(update={"question": str(text)}) for example, text in asked if text)]


def read_record(model: Path) -> Record | None:
    """Return the record in a model's folder, or None if there is none. Raises DataError for an unusable record."""
    path = model / FILE_NAME
    if not path.is_file():
        return None
    found = read_json(path)
    if not isinstance(found, dict) or found.get("version") != VERSION or not {*PARTS, SENTENCES} <= found.keys():
        raise DataError(
            f"{path}: not a training record of this version of Meditune, so Meditune can't check whether the model was "
            "trained on the test items. Copy the model again, or update Meditune."
        )
    return found


def copy_record(model: Path, derived: Path) -> None:
    """Copy a model's record, if it has one, to the folder of a model derived from it."""
    if (model / FILE_NAME).is_file():
        shutil.copyfile(model / FILE_NAME, derived / FILE_NAME)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS] if text else ""


LEAKAGE_FILE_NAME = "leakage.json"
KINDS: tuple[LeakKind, ...] = get_args(LeakKind)
WHAT: dict[str, str] = {
    "group": "same group (article, topic, patient) as a training item",
    "question": "same or nearly the same question as a training item",
    "context": "same or mostly the same context as a training item",
    "answer_in_prompt": "most of the reference answer is in the question or context, word for word",
    "decision_in_prompt": 'the question or context names the decision ("Answer: yes")',
    "answer_in_index": "most of a reference answer, word for word, is in a document of the search index",
    "trained_on": "in the training data of {model}",
}
REMEDY: dict[str, str] = {
    **dict.fromkeys(
        ("group", "question", "context"),
        "Remove these items from the training source. If neither an official nor a fixed split separates the rows, you "
        "can also give those that belong together the same value in a column `group`, which keeps them in one split",
    ),
    **dict.fromkeys(("answer_in_prompt", "decision_in_prompt"), "Remove the answer from the question and context"),
    "answer_in_index": "Use an index without these documents",
    "trained_on": "Evaluate on other items, such as the test items of that model's own run (same data, split and seed)",
}
TRIPLE, COMMON = 3, 4
"""Number of words in the runs that are compared; a run that occurs in more than COMMON test items is ignored"""
RUN = 8
"""Number of consecutive words that count as copied if they occur in another text"""
COPIED = 0.6
"""An answer counts as copied into a text that contains at least this share of the answer's runs of RUN words"""
MIN_ANSWER_WORDS = 12
"""Answers with fewer words aren't checked: a name or a number may legitimately be in the source"""
MAX_LISTED_LEAKS = 5
MAX_RECORDED_LEAKS = 100
MAX_QUOTED_LEAKS = 3
QUOTED = 80
"""Maximum number of characters of a quoted question"""

_DECISION = re.compile(
    r"\b(?:answer|decision|conclusion|label|verdict)s?[\"']?\s*(?:is|was|[:=])\s*[\"'(\[]*(yes|no|maybe)\b(?!\s+\w)",
    re.IGNORECASE,
)

_ROW_NUMBER = re.compile(r"own(?:/[^:]*)?:(.+)-(\d+)")


@dataclass(frozen=True)
class Leak:
    """A leaked test item."""

    kind: LeakKind
    test: str
    train: str
    """Id of the training item or document, or a note on where else the test item was found"""
    alike: float
    """Similarity: 1 for identical items, less for near duplicates"""


def check(splits: Splits, split: str, model: str) -> dict[str, Any]:
    """Return the content of leakage.json; `with_known_test_items` adds the check of the model's own training data."""
    measured, test = splits.measured(split), split == "test"
    training = [*splits.train, *splits.dev] if test else splits.train
    return {
        "split": split,
        "items": len(measured),
        "training": len(training),
        "model": {"name": model, "recorded": None, "run": 0},
        "found": facts(find(training, measured, () if test else splits.test)),
    }


def straddling(splits: Splits) -> set[Pair]:
    """Return the ids of (held-out item, training item) that `check` reports, with test or dev as the measured split."""
    leaks = [*find([*splits.train, *splits.dev], splits.test), *find(splits.train, splits.dev, splits.test)]
    return {(leak.test, leak.train) for leak in leaks if leak.kind in ("group", "question", "context")}


def with_known_test_items(
    checked: dict[str, Any], records: Sequence[Record], trained: Sequence[Example], measured: Sequence[Example]
) -> dict[str, Any]:
    """Return `checked` plus the test items found in the model's `records` or in `trained`, the run's examples."""
    recorded = max((record["examples"] for record in records), default=None)
    return checked | {
        "model": checked["model"] | {"recorded": recorded, "run": len(trained)},
        "found": checked["found"] | facts(known_test_items(records, trained, measured)),
    }


def find(train: Sequence[Example], measured: Sequence[Example], others: Sequence[Example] = ()) -> list[Leak]:
    """Return the leaks between training and test items, and those within test items: one per kind and test item.

    `others` are the run's other examples; they help to distinguish rewrites of a question from questions that fill in
    the same template.
    """
    groups = {(example.source, example.group): example.id for example in train}
    found = [
        Leak("group", example.id, groups[example.source, example.group], 1.0)
        for example in measured
        if (example.source, example.group) in groups
    ]

    def known(kind: LeakKind) -> set[str]:
        return {leak.test for leak in found if leak.kind == kind}

    general, common = instructions([*train, *measured]), backgrounds([*train, *measured, *others])
    asked, tested = (
        [each for each in _with_answered_questions(part) if not general or question_key(each.user_text) not in general]
        for part in (train, measured)
    )
    near = partial(near_questions, others=[example.user_text for example in others])
    alike = _alike("question", asked, tested, lambda example: example.user_text, near, 1)
    found += {leak.test: leak for leak in sorted(alike, key=lambda leak: leak.alike)}.values()
    asked, tested = (
        [each for each in part if not common or context_key(each) not in common] for part in (train, measured)
    )
    found += _alike("context", asked, tested, lambda example: example.context_text, near_passages, MIN_PASSAGE_WORDS)
    found += _in_other_fields("context", train, tested, known("context"))
    specific = [example for example in measured if question_key(example.user_text) not in general]
    found += _in_other_fields("question", train, specific, known("question"))
    found += _exam_questions(train, specific, known("question"))
    found += _same_turns(train, specific, known("question"))
    return [*found, *in_prompt(measured)]


def _same_turns(train: Sequence[Example], measured: Sequence[Example], known: Container[str]) -> list[Leak]:
    """Return leaks for test items whose last turn, which is evaluated, also occurs in a training conversation."""
    telling = distinctive_turns([*train, *measured])
    if not telling:
        return []
    rows: dict[str, str] = {}
    for row in train:
        for key in turn_keys(row):
            rows.setdefault(key, row.id)
    found: dict[str, Leak] = {}
    for example in measured:
        for key in turn_keys(example, last_only=True):
            if key in telling and key in rows and example.id not in known:
                found[example.id] = Leak("question", example.id, rows[key], 1.0)
    return list(found.values())


def _in_other_fields(
    kind: LeakKind, train: Sequence[Example], measured: Sequence[Example], known: Container[str]
) -> list[Leak]:
    """Return one leak for each test item whose text is in another field of a training row, except for `known` items.

    Word triples that more than COMMON test items share, such as those of an instruction, don't count.
    """
    texts = [(example, _part(kind, example)) for example in measured]
    texts = [(example, text) for example, text in texts if len(words(text)) >= MIN_PASSAGE_WORDS]
    common = Counter(run for text in {text for _, text in texts} for run in word_runs(text, TRIPLE))
    parts = [(example, text) for example, text in texts if example.id not in known]
    if not parts:
        return []
    wholes = [_whole(kind, example) for example in train]
    best: dict[str, Leak] = {}
    for row, column, _ in near_passages([text for _, text in parts], wholes):
        example, text = parts[row]
        own = {run for run in word_runs(text, TRIPLE) if common[run] <= COMMON}
        alike = len(own & word_runs(wholes[column], TRIPLE)) / max(len(own), MIN_PASSAGE_WORDS - 4)
        if alike >= MIN_PASSAGE_OVERLAP and (example.id not in best or alike > best[example.id].alike):
            best[example.id] = Leak(kind, example.id, train[column].id, alike)
    return list(best.values())


def _exam_questions(train: Sequence[Example], measured: Sequence[Example], known: Container[str]) -> list[Leak]:
    """Return leaks for multiple-choice questions that a training row contains word for word, including all choices.

    `_in_other_fields` misses most of these questions, because they are too short or because the letters between the
    choices break up the word triples.
    """
    parts: dict[str, list[str]] = {}
    for example in measured:
        choices = example.meta.get(CHOICES)
        if example.id not in known and not example.decision and isinstance(choices, list):
            parts[example.id] = [f" {' '.join(words(str(text)))} " for text in (example.user_text, *choices)]
    runs = {test: word_runs(texts[0], TRIPLE) for test, texts in parts.items()}
    common = Counter(run for own in runs.values() for run in own)
    by_rarest: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for test, own in runs.items():
        if own:
            by_rarest[min(own, key=lambda run: (common[run], run))].append(test)
    found: dict[str, Leak] = {}
    for row in train if by_rarest else ():
        read = words(_whole("question", row))
        text = ""
        for test in (test for run in zip(read, read[1:], read[2:], strict=False) for test in by_rarest.get(run, ())):
            text = text or f" {' '.join(read)} "
            if test not in found and all(part in text for part in parts[test]):
                found[test] = Leak("question", test, row.id, 1.0)
    return list(found.values())


def _part(kind: LeakKind, example: Example) -> str:
    """Return the text to search for, according to `kind`: the example's context, or its question with the choices."""
    if kind == "context":
        return example.context_text
    choices = example.meta.get(CHOICES)
    if example.decision or not isinstance(choices, list):
        return example.user_text
    return " ".join([example.user_text, *map(str, choices)])


def _whole(kind: LeakKind, example: Example) -> str:
    """Return the text of a training row in which to search.

    A search for contexts leaves out the row's own context, because `find` compares contexts separately.
    """
    context = "" if kind == "context" else example.context_text
    return " ".join([_part("question", example), *example.references(), context])


def in_prompt(measured: Iterable[Example]) -> list[Leak]:
    """Return leaks for test items whose question or context reveals the answer or the decision.

    If the task is to put the context into other words, the context isn't searched for the answer.
    """
    found = []
    for example in measured:
        prompt = example.user_text
        if not example.meta.get(REWRITES_CONTEXT):
            prompt += f"\n{example.context_text}"
        answers = (answer for answer in example.references() if len(words(answer)) >= MIN_ANSWER_WORDS)
        shares = (share_within(answer, prompt, RUN) for answer in answers)
        if share := next((share for share in shares if share >= COPIED), 0.0):
            found.append(Leak("answer_in_prompt", example.id, "its own prompt", share))
        if example.decision and example.decision in {match[1].lower() for match in _DECISION.finditer(prompt)}:
            found.append(Leak("decision_in_prompt", example.id, "its own prompt", 1.0))
    return found


def in_documents(measured: Sequence[Example], passages: Iterable[tuple[str, str]]) -> list[Leak]:
    """Return leaks for test items whose reference answer is mostly copied, word for word, in a document.

    `passages` are (document, text) pairs in any order.
    """
    answers: list[tuple[str, int]] = []
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for example in measured:
        for reference in example.references():
            runs = word_runs(reference, RUN) if len(words(reference)) >= MIN_ANSWER_WORDS else set()
            for run in runs:
                holders[run].append(len(answers))
            answers.append((example.id, len(runs)))
    met: dict[tuple[str, int], set[tuple[str, ...]]] = defaultdict(set)
    for document, text in passages:
        for run in word_runs(text, RUN) & holders.keys():
            for number in holders[run]:
                met[document, number].add(run)
    found: dict[str, Leak] = {}
    for (document, number), runs in met.items():
        test, count = answers[number]
        share = len(runs) / count
        if share >= COPIED and (test not in found or share > found[test].alike):
            found[test] = Leak("answer_in_index", test, document, share)
    return list(found.values())


def known_test_items(records: Iterable[Record], trained: Sequence[Example], measured: Sequence[Example]) -> list[Leak]:
    """Return leaks for test items that are in a model's training records or in its run's training examples."""
    seen: dict[str, Leak] = {}
    listed = [{part: frozenset(record[part]) for part in (*PARTS, SENTENCES)} for record in records]
    for example in _with_answered_questions(measured) if listed else ():
        turns = [_hash(key) for key in turn_keys(example, last_only=True)]
        own = keys(example).items()
        recorded = {part.removesuffix("s"): any(key in each[part] for each in listed) for part, key in own}
        recorded["turn"] = any(key in each["questions"] for each in listed for key in turns)
        recorded["sentences"] = any(_is_inside(example.question, each[SENTENCES]) for each in listed)
        if what := next((what for what, is_listed in recorded.items() if is_listed), ""):
            seen.setdefault(example.id, Leak("trained_on", example.id, f"recorded {what}", 1.0))
    for leak in find(trained, measured) if trained else []:
        if leak.kind in ("group", "question", "context"):
            seen.setdefault(leak.test, Leak("trained_on", leak.test, leak.train, leak.alike))
    return list(seen.values())


def facts(leaks: Sequence[Leak]) -> dict[str, Any]:
    """Return kind -> facts about the leaks of that kind.

    The facts are the number of leaked `items`, the number of `exact` matches, the lowest similarity (`alike`), and the
    most similar `leaks`.
    """
    found: dict[str, Any] = {}
    for kind in KINDS:
        of_kind = sorted((leak for leak in leaks if leak.kind == kind), key=lambda leak: -leak.alike)
        if of_kind:
            found[kind] = {
                "items": len(of_kind),
                "exact": sum(leak.alike == 1 for leak in of_kind),
                "alike": min(leak.alike for leak in of_kind),
                "leaks": [
                    {"test": leak.test, "train": leak.train, "alike": leak.alike}
                    for leak in of_kind[:MAX_RECORDED_LEAKS]
                ],
            }
    return found


def question_texts(splits: Splits, hidden: Container[str]) -> dict[str, str]:
    """Return id -> question, for messages, of the examples that aren't restricted or `hidden`."""
    every = (example for examples in splits.named().values() for example in examples)
    return {each.id: each.user_text for each in every if each.id not in hidden and not is_restricted(each)}


def refuse(
    checked: dict[str, Any],
    allowed: bool | Sequence[LeakKind],
    folder: Path,
    questions: Mapping[str, str] | None = None,
) -> None:
    """Raise DataError, with a sentence for each kind of leak, if leakage was found that isn't allowed.

    The message quotes some of the `questions` (id -> text). If any leakage was found, even if it is allowed, `checked`
    (the content of leakage.json) is written to `folder`.
    """
    found = list(_findings(checked))
    if found:
        write_json(folder / LEAKAGE_FILE_NAME, checked)
    refused = [each for each in found if each[0] not in (KINDS if allowed is True else allowed or ())]
    if refused:
        wrong = list(dict.fromkeys(kind for kind, _ in refused))
        remedies = dict.fromkeys(f"{REMEDY[kind]}." for kind in wrong)
        quoted = _quoted(
            [leak for kind in wrong for leak in checked.get("found", {}).get(kind, {}).get("leaks", ())],
            questions or {},
        )
        said = " ".join([*(sentence for _, sentence in refused), *quoted, *remedies])
        raise DataError(
            f"Leakage: {said} Up to {MAX_RECORDED_LEAKS} "
            f"items of each kind are listed in {folder / LEAKAGE_FILE_NAME}. Testing a model on data it has seen "
            f"proves nothing. To continue anyway, with a warning in the report: "
            f"--set 'evaluate.allow_leakage=[{', '.join(wrong)}]'."
        )


def _quoted(leaks: Sequence[dict[str, Any]], questions: Mapping[str, str]) -> list[str]:
    """Return sentences that quote the questions of a few leaks, and one that explains the ids of a user's own rows."""
    pairs = ((leak["test"], leak["train"]) for leak in leaks if {leak["test"], leak["train"]} <= questions.keys())
    # Pairs with the same texts are quoted once.
    by_text = {tuple(shorten(questions[each], QUOTED, placeholder=" ...") for each in pair): pair for pair in pairs}
    said = [
        " and ".join(f'{name} asks "{text}"' for name, text in zip(pair, texts, strict=True)) + "."
        for texts, pair in itertools.islice(by_text.items(), MAX_QUOTED_LEAKS)
    ]
    ids = (each for leak in leaks for each in (leak["test"], leak["train"]))
    number = next(filter(None, map(_ROW_NUMBER.fullmatch, ids)), None)
    if number:
        said.append(
            f"Ids of own are row numbers: {number[0]} is row {number[2]} of {number[1]}, if the file has no ids."
        )
    return said


def _findings(checked: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (kind, sentence) for each kind of leak, first for the run's own test items, then for the suites."""
    model = checked.get("model", {}).get("name", "the model")
    parts = [(checked, "test items")]
    parts += [(suite, f"items of the suite {name}") for name, suite in checked.get("suites", {}).items()]
    for part, noun in parts:
        for kind, row in part.get("found", {}).items():
            yield kind, sentence(kind, row, part["items"], model, noun)


def sentence(kind: str, row: dict[str, Any], items: int, model: str = "the model", noun: str = "test items") -> str:
    """Return the sentence that describes the leaks of one kind."""
    leaks = [
        f"{leak['test']} = {leak['train']}"
        if leak["alike"] == 1
        else f"{leak['test']} ~ {leak['train']} ({leak['alike']:.2f})"
        for leak in row["leaks"][:MAX_LISTED_LEAKS]
    ]
    more = f" and {row['items'] - MAX_LISTED_LEAKS} more" if row["items"] > MAX_LISTED_LEAKS else ""
    near = f", {row['exact']} exactly, lowest similarity {row['alike']:.2f}" if row["exact"] < row["items"] else ""
    return f"{row['items']} of {items} {noun}: {WHAT[kind].format(model=model)}{near} ({', '.join(leaks)}{more})."


def described(checked: dict[str, Any]) -> list[str]:
    """Return a sentence for each kind of leak in the content of leakage.json."""
    return [sentence for _, sentence in _findings(checked)]


def _alike(
    kind: LeakKind,
    train: Sequence[Example],
    measured: Sequence[Example],
    text_of: Callable[[Example], str],
    find_near: Callable[[Sequence[str], Sequence[str]], Matches],
    min_words: int,
) -> list[Leak]:
    """Return a leak for each test item whose text has at least `min_words` words and resembles a training item."""
    measured_by_text, train_by_text = (defaultdict[str, list[Example]](list) for _ in range(2))
    for examples, by_text in ((measured, measured_by_text), (train, train_by_text)):
        if examples is train and not measured_by_text:
            return []  # saves reading the training data, which would take a long time
        for example in examples:
            found = words(text_of(example))
            if len(found) >= min_words:
                by_text[" ".join(found)].append(example)
    best = {text: (text, 1.0) for text in measured_by_text if text in train_by_text}
    others, texts = [text for text in measured_by_text if text not in best], list(train_by_text)
    for row, column, alike in find_near(others, texts):
        if alike > best.get(others[row], ("", 0.0))[1]:
            best[others[row]] = (texts[column], alike)
    return [
        Leak(kind, example.id, train_by_text[other][0].id, alike)
        for text, (other, alike) in best.items()
        for example in measured_by_text[text]
    ]
