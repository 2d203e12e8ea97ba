"""Candidates for experts, read from a server's store or from files of rows.

A candidate is a stored answer, or a row without a label.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from meditune.data.example import DECISIONS, Decision, Example, Passage, plain_text
from meditune.data.readers import pubmedqa
from meditune.data.readers.tables import Rejects, rows
from meditune.data.readers.user_files import NO_CONTEXT, cell, group_of, passages, records
from meditune.data.splits import context_key, question_key
from meditune.errors import DataError
from meditune.phi.detector import mask
from meditune.store.answers import Answers
from meditune.store.database import FILE
from meditune.store.open_store import StoreLocation, exists, open_store


class NothingToAskError(DataError):
    """Raised if there is no question, all are known or were asked before, or none matches. It indicates no fault."""


Origin = Literal["answer", "row"]
Chances = Mapping[str, float]
"""Probability of each decision: of yes, no and maybe, or of other labels; all opinions on a candidate use the same"""


@dataclass(frozen=True)
class UserFeedback:
    """A user's feedback on an answer. Texts are masked."""

    rating: str
    """up or down"""
    reasons: tuple[str, ...] = ()
    comment: str = ""
    correction: str = ""


@dataclass(frozen=True)
class Candidate:
    """A question, with what is known about the quality of its answer. Only `example` is required."""

    example: Example
    """What an expert is shown; its answer and decision may be missing"""
    origin: Origin = "row"
    outcome: str = ""
    """answered, abstained, escalated, declined"""
    sentences: int | None = None
    """Number of sentences that the model wrote"""
    supported: int | None = None
    """Number of those that passages support"""
    probabilities: Mapping[str, Chances] = field(default_factory=dict)
    """Model (served, base, tuned ...) -> its probability of each decision; the first one counts most"""
    samples: tuple[str, ...] = ()
    """Answers sampled from a model"""
    words: tuple[UserFeedback, ...] = ()
    times_asked: int = 1
    """How often the question was asked"""

    @property
    def id(self) -> str:
        """The example's id."""
        return self.example.id


def merged(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Merge candidates with the same question: keep the latest with user feedback, otherwise the latest.

    Rows match only if their context is the same too. Feedback on other answers is dropped.
    """
    found: dict[tuple[str, str], Candidate] = {}
    counts: Counter[tuple[str, str]] = Counter()
    for each in candidates:
        key = question_key(each.example.question), "" if each.origin == "answer" else context_key(each.example)
        counts[key] += each.times_asked
        if key not in found or each.words or not found[key].words:
            found[key] = each
    return [replace(each, times_asked=counts[key]) for key, each in found.items()]


ANSWERS = "answers"
"""The source of examples made from stored answers"""
_NEEDED = (("question",),)
Find = Callable[[str], Passage | None]
"""Finds a passage by id; returns None if it no longer exists"""


@dataclass(frozen=True)
class CandidateRead:
    """The content of a store or file."""

    candidates: list[Candidate]
    without_question: int = 0
    """Number of answers without a stored question, or of rows without a question"""


def read(source: StoreLocation, passage: Find = lambda _: None) -> CandidateRead:
    """Read the candidates in a store (a folder, its file, or a database URL) or in a file of rows.

    `passage` finds the passages that a stored answer used. Raises DataError if the place is neither, or has no usable
    question; StoreError if the store is locked or damaged.
    """
    if exists(source):
        return _stored(source, passage)
    source = Path(source)
    if source.is_dir():
        data = next(
            (each for each in (source / "data" / "train.jsonl", source / "train.jsonl") if each.is_file()), None
        )
        if data is None:
            raise DataError(f"{source}: neither a store (a folder with {FILE}) nor prepared data (train.jsonl).")
        return _rows(data)
    if not source.is_file():
        raise DataError(f"{source}: no such file or folder. Give the --store of `meditune serve`, or a file of rows.")
    return _rows(source)


def _stored(source: StoreLocation, passage: Find) -> CandidateRead:
    given, without = [], 0
    base = open_store(source)
    for row in Answers(base).exported():
        # Rules answer off-topic questions and emergencies, so there is nothing to learn from them.
        if row["outcome"] in ("escalated", "declined"):
            continue
        if not row["question"]:
            without += 1
            continue
        given.append(_answer(row, passage))
    if not given:
        if without:
            raise DataError(
                f"{base.place}: {without:,} answers, but no question. Start the server with --keep-text, which masks "
                "questions and stores them."
            )
        raise NothingToAskError(f"{base.place}: no answers yet.")
    return CandidateRead(given, without)


def _answer(row: Mapping[str, Any], passage: Find) -> Candidate:
    facts = row["facts"]
    stated = facts.get("decision")
    given = stated if isinstance(stated, Mapping) else {"answer": stated}
    decision: Decision | None = next((each for each in DECISIONS if each == given.get("answer")), None)
    chances = given.get("probabilities")
    found = [each for id in facts.get("passages") or () if (each := passage(str(id)))]
    when = datetime.fromtimestamp(row["time"], UTC).isoformat(timespec="seconds")
    return Candidate(
        # Masked again, because an older version that knew fewer identifiers may have stored the answer.
        example=Example(
            id=f"{ANSWERS}:{row['id']}",
            source=ANSWERS,
            question=mask(row["question"]),
            context=tuple(found),
            # The text of an abstention is fixed, so it isn't a training target.
            answer=mask(row["answer"] or "") if row["outcome"] == "answered" else "",
            decision=decision,
            group=group_of("", row["question"]),
            meta={"model": row["model"], "index": row["index_content"], "when": when},
        ),
        origin="answer",
        outcome=row["outcome"],
        sentences=_count(facts.get("sentences")),
        supported=_count(facts.get("supported")),
        probabilities={"served": {each: float(chances.get(each) or 0.0) for each in DECISIONS}}
        if isinstance(chances, Mapping) and chances
        else {},
        words=tuple(
            UserFeedback(each["rating"], tuple(map(str, each["reasons"])), each["comment"], each["correction"])
            for each in row["feedback"]
        ),
    )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _rows(path: Path) -> CandidateRead:
    """Read rows of the user's own table, in which only the question is required, or PubMedQA's JSON file."""
    rejects = Rejects()
    examples = list(pubmedqa.read(path, rejects) if _is_pubmedqa(path) else _own(path, rejects))
    if not examples:
        first = next(rejects.rows(), None)
        why = f" The first: {first['where']}: {first['reason']}." if first else ""
        raise DataError(f"{path}: no row has a question.{why}")
    return CandidateRead([Candidate(each) for each in examples], len(rejects))


def _is_pubmedqa(path: Path) -> bool:
    if path.suffix.lower() != ".json":
        return False
    with path.open("rb") as stream:
        return b'"CONTEXTS"' in stream.read(100_000)


def _own(path: Path, rejects: Rejects) -> Iterator[Example]:
    """Read rows as `data.own` does, except that a row needs neither answer nor decision."""
    no_rows = f"{path}: no rows. Give a file with at least one question."
    return records(rows(path, "own", rejects), rejects, _example, "own", path.stem, no_rows, None, needed=_NEEDED)


def _example(row: Mapping[str, Any], columns: Mapping[str, str], fallback: str) -> tuple[Example | None, str]:
    values = {name: row.get(column) for name, column in columns.items()}
    question, stated = cell(values.get("question")), cell(values.get("decision")).casefold()
    context = passages(values.get("context"))
    if not question:
        return None, "no question"
    if context is None:
        return None, NO_CONTEXT
    # Prepared rows state their source, and so do their ids.
    source = cell(row.get("source")) or "own"
    id = cell(values.get("id")) or fallback
    others = {column: value for column, value in row.items() if column not in {*columns.values(), "source"}}
    nested = others.pop("meta") if isinstance(others.get("meta"), Mapping) else {}
    return Example(
        id=id if id.startswith(f"{source}:") else f"{source}:{id}",
        source=source,
        question=question,
        context=context,
        answer=cell(values.get("answer")),
        decision=next((each for each in DECISIONS if each == stated), None),
        group=group_of(cell(values.get("group")), question),
        meta=plain_text(others | dict(nested)),
    ), ""
