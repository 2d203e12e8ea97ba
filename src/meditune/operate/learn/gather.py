"""`meditune learn queue`: from places to a campaign. Read, without what is known or asked already, judged, chosen."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from meditune.data.example import Passage
from meditune.data.restrictions import is_restricted
from meditune.data.splits import context_key, question_key
from meditune.errors import DataError
from meditune.operate.learn import campaign, opinions
from meditune.operate.learn.campaign import Sharing
from meditune.operate.learn.candidate import Candidate, NothingToAskError, merged
from meditune.operate.learn.choosing import DEFAULT, check_strategy
from meditune.operate.learn.queue import SEED, Chosen, choose
from meditune.operate.learn.reading import Find, read
from meditune.store.opening import Place, named

if TYPE_CHECKING:
    from meditune.operate.learn.signals import Embed


@dataclass(frozen=True)
class Wanted:
    """What a queue is made of, and how."""

    budget: int = 50
    strategy: str = DEFAULT
    known: tuple[Path, ...] = ()
    """Training data: files of rows, or runs"""
    done: tuple[Path, ...] = ()
    """Earlier campaigns, whose questions aren't asked again"""
    models: tuple[str, ...] = ()
    """Those that are asked for decisions"""
    predictions: tuple[Path, ...] = ()
    samples: int = 0
    """Answers that each of the models writes by chance"""
    index: str | None = None
    """Where the passages of stored answers are"""
    embedding: str | None = None
    sharing: Sharing = field(default_factory=Sharing)
    seed: int = SEED


@dataclass(frozen=True)
class Queued:
    """What became of the candidates."""

    chosen: list[Chosen]
    pool: int
    """Those to choose from"""
    remarks: list[str]


def queue(places: Sequence[Place], folder: Path, wanted: Wanted) -> Queued:
    """Leave a campaign in `folder` of what is chosen from stores and files.

    Raises DataError where there is nothing to ask, ModelError where a model can't be had, StoreError where a store is
    locked, MedituneError where the folder holds something else.
    """
    strategy = check_strategy(wanted.strategy)
    if strategy == "novelty" and not wanted.known:
        raise DataError("--strategy novelty needs to know what isn't new: name the training data with --known FILE.")
    if wanted.samples and not wanted.models:
        raise DataError("--samples needs a model that writes them: name one with --ask MODEL.")
    known = [each for place in wanted.known for each in read(place).candidates]
    done = [Candidate(each) for place in wanted.done for each in campaign.examples(place).values()]
    pool, remarks = pooled(places, known, done, wanted.index)
    for model in wanted.models:
        pool, too_long = opinions.asked(pool, model, wanted.samples, wanted.seed)
        if too_long:
            remarks.append(f"{len(too_long):,} questions are too long for the prompt of {model}: no decision of its.")
    for path in wanted.predictions:
        pool = opinions.stored(pool, path)
    embed = _embedder(wanted.embedding) if wanted.embedding else None
    learnt = [each.example.question for each in (*known, *done)]
    chosen = choose(pool, wanted.budget, strategy, known=learnt, embed=embed, seed=wanted.seed)
    remarks += _fewer(chosen, pool, wanted)
    made_from = {"places": [named(place) for place in places], "strategy": strategy, "budget": wanted.budget}
    campaign.make(chosen, folder, made_from, wanted.sharing)
    return Queued(chosen, len(pool), remarks)


def pooled(
    places: Sequence[Place], known: Sequence[Candidate], done: Sequence[Candidate], index: str | None = None
) -> tuple[list[Candidate], list[str]]:
    """The candidates of these places, each question once, and remarks on those that aren't among them.

    What is known isn't asked, unless users spoke of its answer; what was asked before isn't in any case. Raises
    DataError where nothing is left.
    """
    find = _in_index(index) if index else lambda _: None
    found = [read(place, find) for place in places]
    unread = sum(each.unread for each in found)
    learnt, asked = _Seen(known), _Seen(done)
    every = merged(each for one in found for each in one.candidates)
    pool = [each for each in every if each not in asked and (each.words or each not in learnt)]
    return pool, _remarks(unread, len(every) - len(pool), pool)


class _Seen:
    """Questions that a candidate may ask again: an answer by its words, a row with the same context, too."""

    def __init__(self, candidates: Iterable[Candidate]) -> None:
        examples = [each.example for each in candidates]
        self.questions = {question_key(each.question) for each in examples}
        self.rows = {(question_key(each.question), context_key(each)) for each in examples}

    def __contains__(self, candidate: Candidate) -> bool:
        question = question_key(candidate.example.question)
        if candidate.origin == "answer":
            return question in self.questions
        return (question, context_key(candidate.example)) in self.rows


def _remarks(unread: int, gone: int, pool: Sequence[Candidate]) -> list[str]:
    if not pool:
        raise NothingToAskError(
            "Every question is in the known data or was asked before: there is nothing left to ask."
        )
    restricted = sum(is_restricted(each.example) for each in pool)
    return [
        f"{count:,} {what}"
        for count, what in (
            (unread, "answers or rows without a question are left out."),
            (gone, "questions are known or were asked before; they are left out."),
            (restricted, "rows are restricted: only people who may read that data may judge them."),
        )
        if count
    ]


def _fewer(chosen: Collection[Chosen], pool: Collection[Candidate], wanted: Wanted) -> list[str]:
    if len(chosen) >= wanted.budget:
        return []
    if len(chosen) == len(pool):
        return [f"The budget is {wanted.budget:,}, and there are only {len(pool):,} to choose from: all are asked."]
    return [f"The budget is {wanted.budget:,}; only {len(chosen):,} have what --strategy {wanted.strategy} looks for."]


def _embedder(name: str) -> Embed:
    from meditune.retrieve.embedders import embedder

    return embedder(name).embed


def _in_index(where: str) -> Find:
    """The passages of an index, by id."""
    from meditune.retrieve.index import Index

    index = Index.open(where)
    documents: dict[str, dict[str, Passage]] = {}

    def find(id: str) -> Passage | None:
        document = id.rpartition("#")[0]
        if document not in documents:
            documents[document] = {
                str(row["id"]): Passage(text=row["text"], label=row["title"]) for row in index.passages(document)
            }
        return documents[document].get(id)

    return find
