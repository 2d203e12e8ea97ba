"""The queue of questions for experts (`meditune learn queue`), and the training rows from the experts' judgements.

Candidates are a server's stored answers and rows of data. Questions that were asked before are removed, and so are
questions in known data unless users gave feedback. Answers that users corrected or rated down come first. The others
are chosen at random, or the least certain decisions are chosen. `meditune annotate` shows the queue to experts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from meditune.data.example import DECISIONS, Decision, Example, Passage, plain_text
from meditune.data.read_sources import is_restricted
from meditune.data.readers import pubmedqa, tables
from meditune.data.readers.tables import LAYOUTS, Rejects
from meditune.data.readers.user_files import NO_CONTEXT, cell, group_of, passages, records
from meditune.data.reviewer_decisions import KEPT_VERDICTS, fingerprint
from meditune.data.sources import SOURCES
from meditune.data.splits import context_key, question_key, short_digest
from meditune.errors import DataError
from meditune.files import write_jsonl
from meditune.operate.drift.signals import decision_of
from meditune.phi.detector import mask
from meditune.review import rating_set
from meditune.review.annotation_results import Resolved, read_checked, resolve
from meditune.review.rating_set import DECISION, VALIDATE, VERDICT
from meditune.store import StoreLocation, exists, named, open_store
from meditune.store.answers import Answers
from meditune.store.database import FILE


class NothingToAskError(DataError):
    """Raised if no question is left to ask, because none exists or all are known or were asked before."""


@dataclass(frozen=True)
class Candidate:
    """A question for experts, made from a stored answer or from a row of data."""

    example: Example
    origin: Literal["answer", "row"] = "row"
    feedback: Sequence[Mapping[str, Any]] = ()
    """Users' feedback in the format of the store: rating (up or down), reasons, comment, correction"""
    times_asked: int = 1
    margin: float | None = None
    """The probability of the answer's decision minus that of the second most likely label; None if it isn't stored"""

    @property
    def id(self) -> str:
        """The example's id."""
        return self.example.id


ANSWERS = "answers"
REASON_TITLES = {"disliked": "rated down"}
"""How messages name a reason of the queue's file, if they don't use its name"""
Find = Callable[[str], Passage | None]
"""Finds a passage by id; returns None if it no longer exists"""


def read(source: StoreLocation, passage: Find = lambda _: None) -> tuple[list[Candidate], int]:
    """Return the candidates in `source`, and the number of answers or rows in it that have no question.

    `source` is a store (a folder, the file in it, or a database URL), a folder of prepared data, or a file of rows.
    `passage` finds the passages of a stored answer. Raises DataError if `source` contains no question, and StoreError
    if the store can't be read.
    """
    if exists(source):
        return _stored(source, passage)
    path = Path(source)
    if path.is_dir():
        data = next((each for each in (path / "data/train.jsonl", path / "train.jsonl") if each.is_file()), None)
        if data is None:
            raise DataError(f"{path}: neither a store (a folder with {FILE}) nor prepared data (train.jsonl).")
        return _rows(data)
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder. Use the --store of `meditune serve`, or a file of rows.")
    return _rows(path)


def _stored(source: StoreLocation, passage: Find) -> tuple[list[Candidate], int]:
    base = open_store(source)
    # Rules answer off-topic questions and emergencies, so there is nothing to learn from them.
    stored = [row for row in Answers(base).exported() if row["outcome"] not in ("escalated", "declined")]
    given = [_answer(row, passage) for row in stored if row["question"]]
    if not stored:
        raise NothingToAskError(f"{base.place}: no answers yet.")
    if not given:
        raise DataError(
            f"{base.place}: {len(stored):,} answers, but no questions. Start the server with --keep-text, which masks "
            "questions and stores them."
        )
    return given, len(stored) - len(given)


def _answer(row: Mapping[str, Any], passage: Find) -> Candidate:
    facts = row["facts"]
    decision = decision_of(facts)
    when = datetime.fromtimestamp(row["time"], UTC).isoformat(timespec="seconds")
    example = Example(
        # Masked again, because an older version of Meditune, which knew fewer identifiers, may have stored the answer.
        id=f"{ANSWERS}:{row['id']}",
        source=ANSWERS,
        question=mask(row["question"]),
        context=tuple(found for id in facts.get("passages") or () if (found := passage(str(id)))),
        # If the assistant abstained, it gave a standard text, which is not a training target.
        answer=mask(row["answer"] or "") if row["outcome"] == "answered" else "",
        decision=next((each for each in DECISIONS if each == decision), None),
        group=group_of("", row["question"]),
        meta={"model": row["model"], "index": row["index_content"], "when": when},
    )
    return Candidate(example, "answer", row["feedback"], margin=_margin(facts.get("decision")))


def _margin(stated: Any) -> float | None:
    """Return the margin of a stored decision with the probabilities of its labels; None for anything else."""
    if not isinstance(stated, Mapping) or not isinstance(found := stated.get("probabilities"), Mapping):
        return None
    first, second, *_ = [*sorted(map(float, found.values()), reverse=True), 0.0, 0.0]
    return first - second if found else None


def _rows(path: Path) -> tuple[list[Candidate], int]:
    """Return the candidates in a file, and the number of rejected rows.

    The file is PubMedQA's JSON file or the user's own table, in which only the question is required.
    """
    rejects, is_pubmedqa = Rejects(), False
    if path.suffix.lower() == ".json":
        with path.open("rb") as stream:
            is_pubmedqa = b'"CONTEXTS"' in stream.read(100_000)
    if is_pubmedqa:
        examples = list(pubmedqa.read(path, rejects))
    else:
        given, layout = tables.rows(path, "own", rejects), tables.Layout(LAYOUTS["questions"].guesses, (("question",),))
        no_rows = f"{path}: no rows. Use a file with at least one question."
        examples = list(records(given, rejects, _example, "own", path.stem, no_rows, None, layout))
    if not examples:
        first = next(rejects.rows(), None)
        why = f" The first rejected row: {first['where']}: {first['reason']}." if first else ""
        raise DataError(f"{path}: no row has a question.{why}")
    return [Candidate(each) for each in examples], len(rejects)


def _example(values: Mapping[str, Any], others: Mapping[str, Any], fallback: str) -> Example | str:
    question, stated = cell(values.get("question")), cell(values.get("decision")).casefold()
    context = passages(values.get("context"))
    if not question:
        return "no question"
    if context is None:
        return NO_CONTEXT
    # Prepared rows contain the name of their source, with which their ids begin.
    source = cell(others.get("source")) or "own"
    id = cell(values.get("id"))
    meta = {column: value for column, value in others.items() if column != "source"}
    nested = meta.pop("meta") if isinstance(meta.get("meta"), Mapping) else {}
    example = Example(
        id=id if id.startswith(f"{source}:") else f"{source}:{id or fallback}",
        source=source,
        question=question,
        context=context,
        answer=cell(values.get("answer")),
        decision=next((each for each in DECISIONS if each == stated), None),
        group=group_of(cell(values.get("group")), question),
        meta=plain_text(meta | dict(nested)),
    )
    # The digest distinguishes the rows of files with the same name.
    return example if id else example.model_copy(update={"id": f"{example.id}-{short_digest(example)}"})


def candidate_pool(
    places: Sequence[StoreLocation], known: Sequence[Candidate], done: Sequence[Candidate], index: str | None = None
) -> tuple[list[Candidate], list[str]]:
    """Return the candidates in `places`, and remarks on the numbers left out.

    Each question is included once; known questions and those that were asked before are left out. Raises DataError if
    no candidate is left.
    """
    find = _in_index(index) if index else lambda _: None
    found = [read(place, find) for place in places]
    every = _merged(each for given, _ in found for each in given)
    learnt, asked = _seen(known), _seen(done)
    pool = [each for each in every if _key(each) not in asked and (each.feedback or _key(each) not in learnt)]
    if not pool:
        raise NothingToAskError("Every question is in the known data or was asked before; none is left to ask.")
    counts = {
        "answers or rows without a question are left out.": sum(without for _, without in found),
        "known or previously asked questions are left out.": len(every) - len(pool),
        "rows are restricted: only people who may read that data may judge these rows.": sum(
            is_restricted(each.example) for each in pool
        ),
    }
    return pool, [f"{count:,} {what}" for what, count in counts.items() if count]


def _merged(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Return one candidate for each key: the one about which users complained most; of several, the last one."""
    found: dict[tuple[str, str | None], Candidate] = {}
    counts: Counter[tuple[str, str | None]] = Counter()
    for each in candidates:
        key = _key(each)
        counts[key] += 1
        if key not in found or _complaint(each) >= _complaint(found[key]):
            found[key] = each
    return [replace(each, times_asked=counts[key]) for key, each in found.items()]


def _complaint(candidate: Candidate) -> tuple[float, bool]:
    return _with_feedback(candidate).score, bool(candidate.feedback)


def _key(candidate: Candidate) -> tuple[str, str | None]:
    """Return the key of a candidate: its question and, for a row, also its context."""
    context = None if candidate.origin == "answer" else context_key(candidate.example)
    return question_key(candidate.example.question), context


def _seen(candidates: Iterable[Candidate]) -> set[tuple[str, str | None]]:
    """Return two keys for each candidate: with and without its context."""
    return {key for each in candidates for key in (_key(each), _key(replace(each, origin="answer")))}


def _in_index(location: str) -> Find:
    """Return a function that finds a passage of an index by its id."""
    from meditune.retrieve.index import Index

    index = Index.open(location)

    @cache
    def of_document(document: str) -> dict[str, Passage]:
        rows = index.passages(document)
        return {str(row["id"]): Passage(text=row["text"], label=row["title"]) for row in rows}

    return lambda id: of_document(id.rpartition("#")[0]).get(id)


STRATEGIES = ("feedback", "margin", "random")
NO_MARGIN = 2.0
"""A value above every margin, so that candidates without a decision come last"""
DISLIKE_WEIGHT = 0.8
SEED = 17


@dataclass(frozen=True)
class Chosen:
    """A candidate that was chosen for experts."""

    candidate: Candidate
    score: float
    """1 if a user wrote a correction, otherwise 0.8 times the share of users who rated the answer down"""
    reasons: Mapping[str, str]


def choose(
    candidates: Sequence[Candidate], budget: int, strategy: str = STRATEGIES[0], seed: int = SEED
) -> list[Chosen]:
    """Return at most `budget` candidates in random order.

    With `feedback` and `margin`, corrected and disliked answers come first. With `margin`, they are followed by the
    answers with the smallest margin (Scheffer et al. 2001, "Active hidden Markov models for information extraction").
    """
    if strategy not in STRATEGIES:
        raise DataError(f"Unknown --strategy {strategy}. Choose from {', '.join(STRATEGIES)}.")
    order = np.random.default_rng(seed).permutation(len(candidates))
    if strategy == "random":
        found = [Chosen(candidates[place], 0.0, {"random": "chosen at random"}) for place in order]
    else:
        found = [_with_feedback(candidates[place]) for place in order]
        found.sort(key=lambda each: -each.score)
    if strategy == "margin":
        found = [_with_margin(each) for each in found]
        found.sort(
            key=lambda each: (-each.score, NO_MARGIN if each.candidate.margin is None else each.candidate.margin)
        )
    return found[:budget]


def _with_margin(chosen: Chosen) -> Chosen:
    if chosen.score or chosen.candidate.margin is None:
        return chosen
    points = 100 * chosen.candidate.margin
    return replace(chosen, reasons={"uncertain": f"its two likeliest labels are {points:.0f} percentage points apart"})


def _with_feedback(candidate: Candidate) -> Chosen:
    given, reasons, score = candidate.feedback, {}, 0.0
    if any(each["correction"] for each in given):
        reasons["corrected"], score = "a user wrote a correction", 1.0
    if down := [each for each in given if each["rating"] == "down"]:
        why = ", ".join(sorted({reason for each in down for reason in each["reasons"]}))
        of = "a user" if len(given) == 1 else f"{len(down)} of {len(given)} users"
        reasons["disliked"] = f"{of} rated it down{f' ({why})' if why else ''}"
        score = max(score, DISLIKE_WEIGHT * len(down) / len(given))
    return Chosen(candidate, score, reasons or {"random": "chosen at random"})


@dataclass(frozen=True)
class QueueOptions:
    """The options of a queue."""

    budget: int = 50
    strategy: str = STRATEGIES[0]
    known: tuple[Path, ...] = ()
    """Training data, whose questions aren't asked: files of rows, or runs"""
    done: tuple[Path, ...] = ()
    index: str | None = None
    raters: int | None = None
    """Number of experts who share the rows; if None, every expert sees every row"""
    overlap: int | None = None
    """Number of experts per row; default 2"""
    seed: int = SEED


@dataclass(frozen=True)
class Queued:
    """The result of building a queue."""

    chosen: list[Chosen]
    pool: int
    remarks: list[str]


def queue(sources: Sequence[StoreLocation], folder: Path, options: QueueOptions) -> Queued:
    """Choose questions from stores and files, and write them to `folder`. Raises DataError if no question is left."""
    known = [each for place in options.known for each in read(place)[0]]
    done = [Candidate(each) for place in options.done for each in examples(place).values()]
    pool, remarks = candidate_pool(sources, known, done, options.index)
    chosen = choose(pool, options.budget, options.strategy, options.seed)
    if len(chosen) < options.budget:
        remarks.append(f"All candidates ({len(pool):,}) are in the queue, fewer than the budget of {options.budget:,}.")
    rating_set.check_sharing(options.raters, options.overlap)
    made_from = {"places": list(map(named, sources)), "strategy": options.strategy, "budget": options.budget}
    made_from |= {"sample": "queue", "raters": options.raters, "overlap": options.overlap}
    made_from |= {"rows": [[each.candidate.id, fingerprint(each.candidate.example)] for each in chosen]}
    if not rating_set.is_set_of(folder, made_from):
        entries = ((_shown(each.candidate), _key_entry(each)) for each in chosen)
        rating_set.write_set(folder, VALIDATE, "label", entries, made_from, ranked=True)
    return Queued(chosen, len(pool), remarks)


def _key_entry(chosen: Chosen) -> dict[str, Any]:
    example = chosen.candidate.example
    facts = {"score": round(chosen.score, 3), "reasons": dict(chosen.reasons), "row": example.model_dump(mode="json")}
    return rating_set.row_key(example, **facts)


def _shown(candidate: Candidate) -> dict[str, Any]:
    """Return the content that the page shows. It includes users' feedback, which is not part of the training row."""
    example = candidate.example
    source = str(example.meta.get("source") or example.source)
    if candidate.origin == "answer":
        source = f"an answer by {example.meta['model']}"
    elif source in SOURCES:
        source = SOURCES[source].title
    comments = [
        {"label": label, "text": text}
        for each in candidate.feedback
        for label, text in (("A user's correction", each["correction"]), ("A user's comment", each["comment"]))
        if text
    ]
    axes = [DECISION.name] if example.decision or not example.answer else []
    axes += [VERDICT.name] if example.answer else []
    row = rating_set.shown_row(example, source)
    return row | {"context": [*comments, *row["context"]], "axes": axes}


def examples(folder: Path) -> dict[str, Example]:
    """Return the examples of a set by item id. Raises DataError if the set was not made by `meditune learn queue`."""
    found = {item: origin.row for item, origin in rating_set.read_key(folder)[0].items()}
    if not all(found.values()):
        raise DataError(f"{folder} was not made by `meditune learn queue`, so it doesn't contain the queued rows.")
    return {item: Example.model_validate(row) for item, row in found.items()}


_ROW = ("id", "question", "context", "answer", "decision", "group", "meta")
NOT_JUDGED, NOTHING = "not judged yet", "experts gave neither an answer nor a decision"


@dataclass(frozen=True)
class Rows:
    """The training rows of a queue."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)


def rows(folder: Path, excluded_raters: Sequence[str] = ()) -> Rows:
    """Return the training rows from the judged items of a queue.

    The target answer is the one that experts wrote, masked, or the original answer if experts found it correct. The
    target decision is the one that experts gave. If experts weren't asked for a decision, it is the original decision,
    provided that they found the answer correct or incomplete.
    """
    known = examples(folder)
    checked = read_checked(folder, excluded_raters)
    verdicts, open_verdicts = resolve(checked.rated)
    labels, open_labels = resolve(checked.rated, DECISION)
    found: list[dict[str, Any]] = []
    left_out: Counter[str] = Counter()
    for item, example in known.items():
        verdict, label = verdicts.get(item), labels.get(item)
        was_asked = DECISION.name in checked.rated.set.axes_of(item)
        answer, decision = _training_targets(example, verdict, label, was_asked)
        if answer or decision:
            resolved = [each for each in (verdict, label) if each]
            expert = {
                "verdict": verdict.label if verdict else None,
                "rewritten": bool(answer) and answer != example.answer,
                "raters": sorted({code for each in resolved for code in each.raters}),
                "settled": any(each.settled for each in resolved),
                "when": max(each.when for each in resolved),
                "campaign": checked.rated.set.settings.shuffle,
            }
            row = example.model_dump(mode="json", include=set(_ROW))
            found.append(row | {"answer": answer, "decision": decision or "", "meta": row["meta"] | {"expert": expert}})
        else:
            why = open_verdicts.get(item) or open_labels.get(item)
            left_out[why or (NOTHING if verdict or label else NOT_JUDGED)] += 1
    return Rows(found, dict(left_out))


def _training_targets(
    example: Example, verdict: Resolved | None, label: Resolved | None, was_asked: bool
) -> tuple[str, Decision | None]:
    answer, decision = "", None
    if verdict:
        answer = mask(verdict.answer) if verdict.answer else example.answer if verdict.label == "correct" else ""
        decision = example.decision if verdict.label in KEPT_VERDICTS and not was_asked else None
    elif label and not example.answer:
        answer = mask(label.answer)
    return answer, cast(Decision | None, label.label) if label else decision


def write(folder: Path, path: Path, excluded_raters: Sequence[str] = ()) -> Rows:
    """Write the training rows of a queue to `path` atomically, and return them. Raises DataError if there are none."""
    found = rows(folder, excluded_raters)
    if not found.rows:
        why = ", ".join(f"{count} {reason}" for reason, count in found.left_out.items())
        raise DataError(
            f"{folder}: no training rows yet ({why}). Let experts judge the queue: meditune annotate serve {folder}"
        )
    write_jsonl(path, found.rows, private=True)
    return found
