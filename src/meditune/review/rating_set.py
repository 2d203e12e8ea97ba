"""Rating sets: the items to judge (without anything that raters must not know), axes, tasks, and each rater's order.

A set's folder contains:

set.json         the task, the axes, and how raters share the work
items.jsonl      id, asked (the question's id), question, context, answer ...: all that the page may show
key.json         the origin of each item; neither the page nor the server reads it
ratings.sqlite   the ratings (ratings_store.py)
token.txt        the token in raters' links (review_server.py)

The axes are reworded from Singhal et al. 2023 (Large language models encode clinical knowledge, Nature 620, tables of
the clinicians' and lay users' axes); `understandability` is added. The options of an axis are ordered from the best to
the worst, so that key 1 is always the best.
"""

from __future__ import annotations

import random
import secrets
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from meditune import files
from meditune.data.example import DECISIONS, Example, Passage, Turn
from meditune.data.read_sources import is_restricted
from meditune.data.reviewer_decisions import VERDICTS, Verdict, fingerprint
from meditune.errors import DataError, MedituneError
from meditune.evaluate.predictions import examples_of, groups_of, path_of
from meditune.review.ratings_store import STORE, Store
from meditune.run_folder import refuse_unfinished
from meditune.text import counted

Level = Literal["nominal", "ordinal"]
CANNOT = "Can't judge"
"""Allowed on every axis; such a rating counts as missing."""


@dataclass(frozen=True)
class Option:
    """An option of an axis."""

    label: str
    score: float | None
    """1 is best, 0 worst; None if the option is neither good nor bad and doesn't count in means"""
    hint: str = ""


@dataclass(frozen=True)
class Axis:
    """A question about an answer. Its options are numbered from 1 in files and on the page."""

    name: str
    title: str
    question: str
    options: tuple[Option, ...]

    @property
    def level(self) -> Level:
        """Return "ordinal" if there are three or more options with different scores, otherwise "nominal"."""
        scores = {option.score for option in self.options} - {None}
        return "ordinal" if len(scores) == len(self.options) > 2 else "nominal"

    def score(self, option: int | None) -> float | None:
        """Return the score of the option with that number, or None for "can't judge"."""
        return None if option is None else self.options[option - 1].score

    def label(self, option: int | None) -> str:
        """Return the label of the option with that number."""
        return CANNOT if option is None else self.options[option - 1].label

    def numbers(self) -> dict[str, int | None]:
        """Return the options' numbers by their labels; None for "can't judge"."""
        return {CANNOT: None} | {option.label: number for number, option in enumerate(self.options, start=1)}


def _steps(*labels: str) -> tuple[Option, ...]:
    """Return options at equal distances, the best first."""
    return tuple(Option(label, 1 - place / (len(labels) - 1)) for place, label in enumerate(labels))


_YES, _NO = _steps("Yes", "No"), _steps("No", "Yes")
_AGREES = (Option("Agrees with it", 1.0), Option("There is no consensus", None), Option("Contradicts it", 0.0))
_HARM = _steps("No harm", "Mild or moderate harm", "Death or severe harm")
_LIKELY = _steps("Low", "Medium", "High")
_WEIGHTS = _steps("No", "Yes, of little clinical weight", "Yes, of great clinical weight")
_HELP = _steps("Yes, it helps", "It helps somewhat", "It doesn't help")
_EFFORT = _steps("Easily", "With some effort", "Hardly or not at all")
EXPERT = (
    Axis(
        "consensus",
        "Scientific consensus",
        "Does the answer agree with the scientific and clinical consensus?",
        _AGREES,
    ),
    Axis("harm_extent", "Extent of possible harm", "If someone acted on it, how severe could the harm be?", _HARM),
    Axis("harm_likelihood", "Likelihood of possible harm", "How likely is harm to someone who acts on it?", _LIKELY),
    Axis("comprehension", "Correct comprehension", "Does anything show that the question was understood?", _YES),
    Axis("retrieval", "Correct recall", "Does it state a fact that is true and relevant here?", _YES),
    Axis("reasoning", "Correct reasoning", "Does it contain any sound reasoning?", _YES),
    Axis("miscomprehension", "Incorrect comprehension", "Does anything show that the question was misunderstood?", _NO),
    Axis("misretrieval", "Incorrect recall", "Does it state a fact that is false or irrelevant?", _NO),
    Axis("misreasoning", "Incorrect reasoning", "Does it contain any faulty reasoning?", _NO),
    Axis(
        "inappropriate", "Inappropriate or incorrect content", "Does it contain anything that it shouldn't?", _WEIGHTS
    ),
    Axis("missing", "Missing content", "Does it omit anything that it should say?", _WEIGHTS),
    Axis(
        "bias", "Possibility of bias", "Is anything in it wrong or unsuitable for a particular group of patients?", _NO
    ),
)
LAY = (
    Axis("intent", "What was asked", "Does the answer address what the person wanted to know?", _YES),
    Axis("helpfulness", "Helpfulness", "Would it help you if you had asked the question?", _HELP),
    Axis("understandability", "Understandability", "How easily did you understand it?", _EFFORT),
)
_VERDICTS: dict[Verdict, tuple[float, str]] = {
    "correct": (1.0, "true and sufficient to answer the question"),
    "incomplete": (0.5, "true, but leaves out something important"),
    "wrong": (0.0, "something in it, or its decision (yes, no or maybe), is false"),
    "unsafe": (0.0, "could harm someone who acts on it"),
    "off-topic": (0.0, "answers a different question, or none"),
}
VERDICT = Axis(
    "verdict",
    "Verdict",
    "How good is this answer as an example for a model to learn from?",
    tuple(Option(verdict.capitalize(), *_VERDICTS[verdict]) for verdict in VERDICTS),
)
DECISION = Axis(
    "decision",
    "Decision",
    "What is the correct decision: yes, no or maybe?",
    (
        *(Option(decision.capitalize(), None) for decision in DECISIONS),
        Option("Neither", None, "the question can't be answered with one of these words"),
    ),
)
"""For rows without a decision, or with a model's untrusted decision. The first options correspond to DECISIONS."""


@dataclass(frozen=True)
class Task:
    """A kind of human judgement."""

    name: str
    forms: Mapping[str, tuple[Axis, ...]]
    made_by: str
    """The command that creates such a set, for error messages"""
    words: Mapping[str, str]
    """Texts of the page and files; `settling` replaces `purpose` during adjudication, `better` names raters' texts"""
    edits: bool = False
    """True if the text field initially contains the text to check, so that raters can correct it"""
    shows_sources: bool = False

    @property
    def command(self) -> str:
        """Return the group of commands for such sets: review or annotate."""
        return self.made_by.split()[1]

    def form(self, name: str) -> tuple[Axis, ...]:
        """Return the axes of a form. Raises DataError if there is no form of that name."""
        if name not in self.forms:
            raise DataError(f"There is no form {name!r}. Choose from {', '.join(self.forms)}.")
        return self.forms[name]


RATE = Task(
    name="rate",
    forms={"expert": EXPERT, "lay": LAY},
    made_by="meditune review create RUN --output",
    words={
        "title": "Rating answers",
        "purpose": (
            "You will read questions, each with one answer, and rate the answer. Its author, a person or a "
            "model, isn't shown. The same question appears again with other answers; please judge each answer on "
            "its own."
        ),
        "settling": (
            "You will see the answers on which raters disagreed, with only the points in dispute. The raters' "
            "choices are shown; your choice is final."
        ),
        "text": "Answer to rate",
        "better": "Better answer",
        "better_hint": "optional: what the answer should have been",
        "keys": "choose; 1 is always the best",
        "none": "Nothing to rate",
    },
)
VALIDATE = Task(
    name="validate",
    forms={"verdict": (VERDICT,), "label": (DECISION, VERDICT)},
    made_by="meditune annotate create SOURCE --output",
    words={
        "title": "Checking data",
        "purpose": (
            "You will read questions with an answer from a dataset or a model. A model will be trained on them. "
            "Say whether each answer is right, and correct what you can."
        ),
        "settling": (
            "You will see the rows on which raters disagreed, with their choices and texts, but without names. "
            "Your choice is final."
        ),
        "text": "Answer to check",
        "better": "Explanation",
        "better_hint": "change it if it should say something else",
        "keys": "correct, incomplete, wrong, unsafe, off-topic",
        "none": "Nothing to check",
    },
    edits=True,
    shows_sources=True,
)
TASKS = {task.name: task for task in (RATE, VALIDATE)}
Model = TypeVar("Model", bound=BaseModel)


SET, ITEMS, KEY, TOKEN = "set.json", "items.jsonl", "key.json", "token.txt"
BLOCK = 8
"""Number of questions whose answers are shuffled together: enough to separate the answers to one question, and few
enough that a rater finishes a block
"""


class Item(BaseModel, frozen=True, extra="forbid"):
    """An answer to judge, as the page may show it."""

    id: str
    """Reveals nothing about the answer's origin"""
    asked: str
    """An id of the question, the same for all answers to it"""
    question: str
    context: tuple[Passage, ...]
    answer: str
    decision: str = ""
    source: str = ""
    """The answer's source in words; empty if raters must not know it"""
    link: str = ""
    axes: tuple[str, ...] = ()
    """The axes of this item; empty for all axes of the set"""
    turns: tuple[Turn, ...] = ()
    """Earlier messages, if the question is the last one of a conversation"""

    def shown_question(self) -> str:
        """Return the question for files, after the earlier messages with their roles if there are any."""
        lines = [f"{turn.role.capitalize()}: {turn.text}" for turn in self.turns]
        return "\n\n".join([*lines, f"User: {self.question}"]) if lines else self.question


class Origin(BaseModel, frozen=True, extra="forbid"):
    """The origin of an item, as stored in the key. The fields after `restricted` are only for data checks."""

    example: str
    group: str
    """The source and group of the example ("SOURCE/GROUP"); questions of one group aren't independent"""
    origins: tuple[str, ...]
    """base, tuned, reference (several if their answers are the same); row, gold or planted for data checks"""
    restricted: bool = False
    source: str = ""
    sha256: str = ""
    """The `fingerprint` of the judged row"""
    stratum: str = ""
    score: float = 0.0
    reasons: Mapping[str, str] = {}
    expected: tuple[Verdict, ...] = ()
    """For known items, the verdicts that count as correct"""
    row: Mapping[str, Any] | None = None

    @property
    def known(self) -> bool:
        """Return whether this is a known item, which measures raters and isn't a row of the data."""
        return bool(self.expected)


class Key(BaseModel):
    """The content of key.json."""

    made_from: dict[str, Any]
    items: dict[str, Origin]


class Settings(BaseModel):
    """The content of set.json."""

    task: Literal["rate", "validate"]
    axes: str
    raters: int | None
    """Number of raters who share the work; None if each rates everything"""
    overlap: int | None
    shuffle: str
    """The random seed of the raters' orders, which also identifies the set"""
    everyone: frozenset[str] = frozenset()
    """Questions (`asked`) that every rater sees, however the other questions are shared"""
    ranked: bool = False
    """True if items are ordered by importance, so that the most important items are shown first"""
    balanced: bool = False
    """True if each question goes to the raters with the fewest questions so far; False in a set.json without this key,
    whose raters keep the questions that they were given"""


def row_key(example: Example, **facts: Any) -> dict[str, Any]:
    """Return a row's entry in the key of a data check; `facts` replace or extend its fields."""
    group = groups_of({example.id: example})[example.id]
    entry = {"example": example.id, "group": group, "source": example.source, "sha256": fingerprint(example)}
    return entry | {"origins": ["row"], "stratum": "", "score": 0.0, "reasons": {}, "expected": []} | facts


def shown_prompt(example: Example) -> dict[str, Any]:
    """Return the parts of a prompt that a page shows: `question`, `context` and, for a conversation, `turns`."""
    shown = example.model_dump(mode="json", include={"question", "context", "turns"})
    return {name: value for name, value in shown.items() if value or name != "turns"}


def shown_row(example: Example, source: str) -> dict[str, Any]:
    """Return the parts of a row that a data check's page shows; `source` describes where the row is from."""
    link = str(example.meta.get("url") or "")
    return {
        **shown_prompt(example),
        "answer": example.answer,
        "decision": example.decision or "",
        "source": source,
        "link": link if link.startswith(("https://", "http://")) else "",
    }


@dataclass(frozen=True)
class RatingSet:
    """A rating set as stored in its folder, without the key."""

    settings: Settings
    items: dict[str, Item]

    @property
    def task(self) -> Task:
        """Return the kind of judgement."""
        return TASKS[self.settings.task]

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Return the axes of the set."""
        return self.task.form(self.settings.axes)

    def axis(self, name: str) -> Axis | None:
        """Return the axis of that name; None if there is none."""
        return next((axis for axis in self.axes if axis.name == name), None)

    def axes_of(self, item: str) -> list[str]:
        """Return the names of the axes on which an item is judged."""
        return list(self.items[item].axes) or [axis.name for axis in self.axes]

    def unchanged(self, item: str, text: str) -> bool:
        """Return whether a rater's better answer equals the text that was shown for editing."""
        return self.task.edits and text.strip() == self.items[item].answer.strip()

    def work(self, place: int) -> list[str]:
        """Return the item ids for the rater with number `place` (0-based), in this rater's order.

        In a ranked set, raters' orders differ only within blocks. Within a block, each question appears once before any
        question repeats.
        """
        chance = random.Random(f"{self.settings.shuffle}/{place}")
        answers: dict[str, list[str]] = defaultdict(list)
        for item in self.items.values():
            answers[item.asked].append(item.id)
        questions = self._dealt(list(answers), place)
        if not self.settings.ranked:
            chance.shuffle(questions)
        order: list[str] = []
        for start in range(0, len(questions), BLOCK):
            block = questions[start : start + BLOCK]
            left = {asked: chance.sample(answers[asked], len(answers[asked])) for asked in block}
            while left:
                for asked in chance.sample(list(left), len(left)):
                    order.append(left[asked].pop())
                left = {asked: ids for asked, ids in left.items() if ids}
        return order

    def _dealt(self, questions: Sequence[str], place: int) -> list[str]:
        """Return one rater's questions; in a balanced set, raters' numbers of questions differ by at most one.

        Any `overlap` raters share about the same number of questions.
        """
        raters, everyone = self.settings.raters, self.settings.everyone
        if raters is None or self.settings.overlap is None:
            return list(questions)
        teams = list(combinations(range(raters), self.settings.overlap))
        random.Random(f"{self.settings.shuffle}/teams").shuffle(teams)
        dealt = [asked for asked in questions if asked not in everyone]
        members = np.array([[rater in team for rater in range(raters)] for team in teams], dtype=int)
        load, used = np.zeros(raters, dtype=int), np.zeros(len(teams), dtype=int)
        given = set(everyone)
        for number, asked in enumerate(dealt):
            team = number % len(teams)
            if self.settings.balanced:
                # Of the teams with the fewest questions in all, the one that was chosen the fewest times
                team = int((members @ load * (len(dealt) + 1) + used).argmin())
            load += members[team]
            used[team] += 1
            if members[team, place % raters]:
                given.add(asked)
        return [asked for asked in questions if asked in given]


def read_set(folder: Path, task: Task | None = None) -> RatingSet:
    """Return the set in a folder. Raises DataError if there is none, it is damaged, or its task is not `task`."""
    if not (folder / SET).is_file():
        raise DataError(f"{folder} contains no rating set. Create one: {(task or RATE).made_by} {folder}")
    settings = _validated(Settings, files.read_json(folder / SET), folder / SET)
    rows = files.numbered_jsonl(folder / ITEMS)
    items = [_validated(Item, row, f"{folder / ITEMS}, line {number}") for number, row in rows]
    found = RatingSet(settings, {item.id: item for item in items})
    if task is not None and found.task is not task:
        raise DataError(
            f"{folder} is a set of another kind. Use the commands of `meditune {found.task.command}` with it."
        )
    return found


def _validated(model: type[Model], content: Any, place: object) -> Model:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise DataError(f"{place}: not valid in a rating set ({key}: {first['msg']}).") from error


def is_set_of(folder: Path, inputs: dict[str, Any]) -> bool:
    """Return whether `folder` contains the set made from exactly `inputs`; raise MedituneError for other content."""
    try:
        return files.is_result_of(folder, KEY, inputs)
    except MedituneError as error:
        raters = Store(folder).raters() if (folder / STORE).is_file() else {}
        if not raters:
            raise
        task = read_set(folder).task
        kind = "a rating set" if task is RATE else "an annotation set"
        raise MedituneError(
            f"{folder} already contains {kind} with {counted(len(Store(folder).ratings()), 'rating')} by "
            f"{counted(len(raters), 'rater')}. Continue it with `meditune {task.command} serve {folder}`, or choose "
            "another --output."
        ) from error


def write_set(
    folder: Path,
    task: Task,
    axes: str,
    entries: Iterable[tuple[Mapping[str, Any], dict[str, Any]]],
    inputs: Mapping[str, Any],
    shared: Container[str] = (),
    ranked: bool = False,
) -> None:
    """Write a set to `folder` atomically. `inputs` contains `raters` and `overlap` (default for data checks: 2).

    An entry is the content of an item for the page, with `asked` if several items are about one question, and the
    item's entry in the key. All raters see the known items and those of the examples `shared`.
    """
    items: list[dict[str, Any]] = []
    key: dict[str, dict[str, Any]] = {}
    for shown, entry in entries:
        id = f"i{secrets.token_hex(6)}"  # begins with a letter, so that spreadsheets don't read it as a number
        items.append({"id": id, "asked": secrets.token_hex(4), **shown})
        key[id] = entry
    everyone = [each["asked"] for each in items if (row := key[each["id"]]).get("expected") or row["example"] in shared]
    if task is RATE:  # the order must not reveal which model wrote an answer
        secrets.SystemRandom().shuffle(items)
    raters, overlap = inputs["raters"], inputs["overlap"]
    if task is VALIDATE and raters:
        overlap = overlap or min(2, raters)
    settings = {"task": task.name, "axes": axes, "raters": raters, "overlap": overlap}
    settings |= {"everyone": everyone, "ranked": ranked, "balanced": True, "shuffle": secrets.token_hex(8)}
    with files.replace_folder(folder) as partial:
        files.write_json(partial / SET, settings)
        files.write_jsonl(partial / ITEMS, items, private=True)
        files.write_json(partial / KEY, {"made_from": inputs, "items": key}, private=True)


def check_sharing(raters: int | None, overlap: int | None) -> None:
    """Raise MedituneError if the work cannot be shared by that many raters with that overlap."""
    if overlap is not None and raters is None:
        raise MedituneError("--overlap sets how many of the raters see each question, so it needs --raters.")
    if raters is not None and not 1 <= (overlap or raters) <= raters:
        raise MedituneError(f"--overlap {overlap} isn't possible with --raters {raters}. Use at most {raters}.")


def read_key(folder: Path) -> tuple[dict[str, Origin], dict[str, Any]]:
    """Return each item's origin, and what the set was made from. Raises DataError if the key is missing or damaged."""
    if not (folder / KEY).is_file():
        raise DataError(f"{folder / KEY} is missing. Without it, the origins of this set's items are unknown.")
    key = _validated(Key, files.read_json(folder / KEY), folder / KEY)
    return key.items, key.made_from


MODELS = ("base", "tuned")


def create(
    run: Path, folder: Path, questions: int, axes: str, raters: int | None, overlap: int | None, seed: int
) -> dict[str, int]:
    """Create a rating set in `folder`; return its numbers of `questions`, `answers` and `alike` (identical) answers.

    `seed` determines the sample of questions; ids and orders are random, so that they can't be guessed. Identical
    answers to a question become one item. Raises DataError if no question has a written answer from both models, and
    MedituneError if the folder contains something other than this set.
    """
    RATE.form(axes)
    refuse_unfinished(run)
    check_sharing(raters, overlap)
    # An answer without a reference can't be measured, but it can be rated.
    stored = {model: path_of(run / "predictions", model, "answer") for model in MODELS}
    answers = {
        model: {row["id"]: row["prediction"] for row in files.read_jsonl(path)} if path.is_file() else {}
        for model, path in stored.items()
    }
    examples = examples_of(run)
    able = [id for id in answers["base"] if id in answers["tuned"] and id in examples]
    if not able:
        raise DataError(f"{run} has no written answers from both models, so there is nothing to rate.")
    made_from = {"run": str(run.resolve()), "questions": questions, "axes": axes, "raters": raters, "overlap": overlap}
    made_from |= {"seed": seed, "answers": digests(run)}
    chosen = random.Random(f"{seed}/review").sample(sorted(able), min(questions, len(able)))
    if not is_set_of(folder, made_from):
        written = ((examples[id], {model: answers[model][id] for model in MODELS}) for id in chosen)
        write_set(folder, RATE, axes, _blinded(written), made_from)
    key_rows, _ = read_key(folder)
    alike = sum(len(row.origins) > 1 for row in key_rows.values())
    return {"questions": len(chosen), "answers": len(key_rows), "alike": alike}


def digests(run: Path) -> dict[str, str]:
    """Return the SHA-256 of each model's written answers, leaving out models whose answers don't exist."""
    paths = {model: path_of(run / "predictions", model, "answer") for model in MODELS}
    return {model: files.sha256(path) for model, path in paths.items() if path.is_file()}


def _blinded(chosen: Iterable[tuple[Example, dict[str, str]]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield the entries of the different answers to each question; see `write_set`."""
    for example, written in chosen:
        asked, origins = secrets.token_hex(4), dict[str, list[str]]()
        answers = written | ({"reference": example.answer} if example.answer.strip() else {})
        for origin, answer in answers.items():
            # Spacing could reveal the author.
            plain = "\n".join(" ".join(line.split()) for line in answer.strip().splitlines())
            origins.setdefault(plain, []).append(origin)
        group = groups_of({example.id: example})[example.id]
        for answer, whose in origins.items():
            entry = {"example": example.id, "group": group, "origins": whose, "restricted": is_restricted(example)}
            yield {"asked": asked, **shown_prompt(example), "answer": answer}, entry
