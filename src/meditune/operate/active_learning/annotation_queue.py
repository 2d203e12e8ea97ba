"""The queue for experts (`meditune learn queue`): choose candidates, write them as a set, and read the results.

Candidates from stores and files are read, known and already asked questions are removed, and the most urgent are
chosen, each with its reasons. `meditune annotate` serves the set. `rows` turns the experts' results into training rows
for a recipe's `own` source.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from meditune.data.example import Decision, Example, Passage
from meditune.data.read_sources import is_restricted
from meditune.data.reviewer_decisions import KEPT_VERDICTS, fingerprint
from meditune.data.sources import SOURCES
from meditune.data.splits import context_key, question_key
from meditune.errors import DataError
from meditune.files import is_result_of, write_jsonl
from meditune.operate.active_learning import acquisition
from meditune.operate.active_learning.acquisition import (
    DEFAULT,
    FAMILIES,
    MIN_REASON_SCORE,
    SIGNALS,
    VECTOR_STRATEGIES,
    Array,
    Embed,
    Family,
    Pick,
    SignalScore,
    Strategy,
    Vectors,
    check_strategy,
    novel,
    novelty,
    picks,
    scattered,
)
from meditune.operate.active_learning.candidates import Candidate, Find, NothingToAskError, merged, read
from meditune.phi.detector import mask
from meditune.review.annotation_results import Resolved, read_checked, resolve
from meditune.review.rating_set import (
    DECISION,
    KEY,
    VALIDATE,
    VERDICT,
    check_sharing,
    read_key,
    row_key,
    shown_row,
    write_set,
)
from meditune.store.open_store import StoreLocation, named

if TYPE_CHECKING:
    from meditune.models.sentence_encoder import SentenceEncoder

SEED = 17


@dataclass(frozen=True)
class Chosen:
    """A candidate that was chosen for experts."""

    candidate: Candidate
    score: float
    """0 to 1: the combined score of its signals"""
    reasons: Mapping[str, str]
    """Signal -> reason, the strongest first; never empty"""


def choose(
    candidates: Sequence[Candidate],
    budget: int,
    strategy: str = DEFAULT,
    *,
    known: Sequence[str] = (),
    embed: Embed | None = None,
    vectors: Vectors | None = None,
    known_vectors: Vectors | None = None,
    seed: int = SEED,
) -> list[Chosen]:
    """Return at most `budget` of the candidates, most urgent first.

    `known` are questions whose answers are in the training data. `embed` returns vectors (n, size) of length 1 for
    texts; the default is the sentence model, loaded only if the strategy needs it. Existing question vectors can be
    passed. The seed breaks ties. Raises DataError for an unknown strategy, or if no candidate matches it; ModelError if
    the sentence model is unavailable.
    """
    checked_strategy = check_strategy(strategy)
    if not candidates:
        return []
    embed = embed or _embed()
    if checked_strategy in VECTOR_STRATEGIES:
        vectors = embed([each.example.question for each in candidates]) if vectors is None else vectors
        known_vectors = embed(known) if known_vectors is None and known else known_vectors
    seen = [_seen(each) for each in candidates]
    if checked_strategy in ("mix", "disagreement"):
        _add(seen, "scattered", "disagreement", [scattered(each, embed) for each in candidates])
    if vectors is not None and known_vectors is not None and len(known_vectors):
        _add(seen, "novel", "novelty", list(map(novel, *novelty(vectors, known_vectors))))
    scores = {family: _scores(seen, family) for family in FAMILIES}
    found = picks(checked_strategy, scores, vectors, known_vectors, budget, np.random.default_rng(seed))
    return [
        Chosen(candidates[pick.place], pick.score, _reasons(seen[pick.place], pick, checked_strategy)) for pick in found
    ]


_Signals = dict[str, tuple[Family, SignalScore]]


def _seen(candidate: Candidate) -> _Signals:
    """Return the family and score of every signal that applies, by name."""
    return {
        name: (family, found)
        for family, signals in SIGNALS.items()
        for name, signal in signals.items()
        if (found := signal(candidate)) is not None
    }


def _add(seen: Sequence[_Signals], name: str, family: Family, scores: Iterable[SignalScore | None]) -> None:
    for signals, each in zip(seen, scores, strict=True):
        if each is not None:
            signals[name] = family, each


def _scores(seen: Sequence[_Signals], family: Family) -> Array:
    """Return (n,) the strongest signal of a family, 0 if none applies."""
    return np.array([max((each.score for of, each in s.values() if of == family), default=0.0) for s in seen])


def _reasons(signals: _Signals, pick: Pick, strategy: Strategy) -> dict[str, str]:
    """Return the strongest reasons; if no signal applies, how the candidate was chosen."""
    telling = sorted(
        ((each.score, name, each.why) for name, (_, each) in signals.items() if each.score >= MIN_REASON_SCORE),
        reverse=True,
    )
    found = {name: why for _, name, why in telling}
    if strategy == "random":
        return {"random": "chosen at random"}
    if strategy in FAMILIES and not found:
        found = {name: each.why for name, (family, each) in signals.items() if family == strategy and each.score > 0}
    if not found and pick.gap is not None:
        found["unlike"] = (
            "different from the others"
            if pick.gap >= 1
            else f"different from the others (nearest chosen before: cosine {1 - pick.gap:.2f})"
        )
    return found


def _embed(name: str | None = None) -> Embed:
    """Return the `encode` of a sentence encoder that is loaded at the first call; None: the default encoder."""

    @cache
    def encoder() -> SentenceEncoder:
        from meditune.models.sentence_encoder import load_encoder

        return load_encoder(name) if name else load_encoder()

    return lambda texts: encoder().encode(texts)


FORM = "label"
SAMPLE = "queue"
"""Marks in the set's results that its rows came from a queue"""
_CORRECTION, _COMMENT = "A user's correction", "A user's comment"


def _write_set(
    chosen: Sequence[Chosen], folder: Path, inputs: dict[str, Any], raters: int | None, overlap: int | None
) -> None:
    """Write a set of the chosen candidates to `folder` atomically, in that order.

    `inputs` records how they were chosen; a folder that already holds the same set is left unchanged. Raises
    DataError if nothing was chosen, MedituneError if the folder holds something else.
    """
    if not chosen:
        raise NothingToAskError(f"{folder}: nothing was chosen, so there are no questions for experts.")
    check_sharing(raters, overlap)
    rows = [[each.candidate.id, fingerprint(each.candidate.example)] for each in chosen]
    asked = inputs | {"sample": SAMPLE, "raters": raters, "overlap": overlap, "rows": rows}
    if is_result_of(folder, KEY, asked):
        return
    items: list[dict[str, Any]] = []
    key: dict[str, Any] = {}
    for each in chosen:
        id, example = secrets.token_hex(6), each.candidate.example
        items.append({"id": id, "asked": secrets.token_hex(4), **_shown(each.candidate)})
        facts = {"score": round(each.score, 3), "reasons": dict(each.reasons), "row": example.model_dump(mode="json")}
        key[id] = row_key(example, **facts)
    write_set(folder, VALIDATE, FORM, items, key, asked, ranked=True)


def examples(folder: Path) -> dict[str, Example]:
    """Return the examples of a set by item. Raises DataError if the set was not made by `meditune learn queue`."""
    found = {item: origin.row for item, origin in read_key(folder)[0].items()}
    if not all(found.values()):
        raise DataError(f"{folder} was not made by `meditune learn queue`, which stores the rows with the set.")
    return {item: Example.model_validate(row) for item, row in found.items()}


def _shown(candidate: Candidate) -> dict[str, Any]:
    """Return what the page shows. User feedback on an answer is shown, but is not part of the training row."""
    example = candidate.example
    comments = [
        {"label": label, "text": text}
        for word in candidate.words
        for label, text in ((_CORRECTION, word.correction), (_COMMENT, word.comment))
        if text
    ]
    row = shown_row(example, _source(candidate))
    return row | {"context": [*comments, *row["context"]], "axes": _axes(candidate)}


def _source(candidate: Candidate) -> str:
    example = candidate.example
    if candidate.origin == "answer":
        return f"an answer by {example.meta['model']}"
    named = str(example.meta.get("source") or example.source)
    return SOURCES[named].title if named in SOURCES else named


def _axes(candidate: Candidate) -> list[str]:
    """Return what experts judge: a verdict if there is an answer; a decision if one exists or there is nothing else."""
    example = candidate.example
    decides = bool(example.decision or candidate.probabilities or not example.answer)
    return [*([DECISION.name] if decides else []), *([VERDICT.name] if example.answer else [])]


@dataclass(frozen=True)
class QueueOptions:
    """The options of a queue."""

    budget: int = 50
    strategy: str = DEFAULT
    known: tuple[Path, ...] = ()
    """Training data: files of rows, or runs"""
    done: tuple[Path, ...] = ()
    """Earlier queues, whose questions aren't asked again"""
    models: tuple[str, ...] = ()
    """Models that are asked for decisions"""
    predictions: tuple[Path, ...] = ()
    samples: int = 0
    """Number of answers that each model samples"""
    index: str | None = None
    """Index that holds the passages of stored answers"""
    embedding: str | None = None
    raters: int | None = None
    """Number of experts who share the rows; None: everyone sees every row"""
    overlap: int | None = None
    """Number of experts per row; default 2"""
    seed: int = SEED


@dataclass(frozen=True)
class Queued:
    """The result of building a queue."""

    chosen: list[Chosen]
    pool: int
    """Number of candidates to choose from"""
    remarks: list[str]


def queue(sources: Sequence[StoreLocation], folder: Path, options: QueueOptions) -> Queued:
    """Choose from stores and files, and write the queue to `folder`.

    Raises DataError if there is nothing to ask, ModelError if a model is unavailable, StoreError if a store is locked,
    MedituneError if the folder holds something else.
    """
    strategy = check_strategy(options.strategy)
    if strategy == "novelty" and not options.known:
        raise DataError("--strategy novelty needs the known data: give the training data with --training-data FILE.")
    if options.samples and not options.models:
        raise DataError("--samples needs a model to write the answers: give one with --model MODEL.")
    known = [each for place in options.known for each in read(place).candidates]
    done = [Candidate(each) for place in options.done for each in examples(place).values()]
    pool, remarks = candidate_pool(sources, known, done, options.index)
    for model in options.models:
        pool, too_long = acquisition.asked_decisions(pool, model, options.samples, options.seed)
        if too_long:
            remarks.append(
                f"{len(too_long):,} questions are too long for the prompt of {model}; they have no decision by "
                "this model."
            )
    for path in options.predictions:
        pool = acquisition.stored(pool, path)
    learnt = [each.example.question for each in (*known, *done)]
    chosen = choose(pool, options.budget, strategy, known=learnt, embed=_embed(options.embedding), seed=options.seed)
    remarks += _fewer(chosen, pool, options)
    made_from = {"places": [named(place) for place in sources], "strategy": strategy, "budget": options.budget}
    _write_set(chosen, folder, made_from, options.raters, options.overlap)
    return Queued(chosen, len(pool), remarks)


def candidate_pool(
    places: Sequence[StoreLocation], known: Sequence[Candidate], done: Sequence[Candidate], index: str | None = None
) -> tuple[list[Candidate], list[str]]:
    """Return the candidates in these places, each question once, and remarks on those left out.

    Known questions are left out unless users gave feedback on the answer; questions asked before are always left out.
    Raises DataError if none is left.
    """
    find = _in_index(index) if index else lambda _: None
    found = [read(place, find) for place in places]
    unread = sum(each.without_question for each in found)
    learnt, asked = _Seen(known), _Seen(done)
    every = merged(each for one in found for each in one.candidates)
    pool = [each for each in every if each not in asked and (each.words or each not in learnt)]
    return pool, _remarks(unread, len(every) - len(pool), pool)


class _Seen:
    """The questions already seen. An answer matches by its question, a row by its question and context."""

    def __init__(self, candidates: Iterable[Candidate]) -> None:
        examples = [each.example for each in candidates]
        self.questions = {question_key(each.question) for each in examples}
        self.rows = {(question_key(each.question), context_key(each)) for each in examples}

    def __contains__(self, candidate: Candidate) -> bool:
        question = question_key(candidate.example.question)
        if candidate.origin == "answer":
            return question in self.questions
        return (question, context_key(candidate.example)) in self.rows


def _remarks(unreadable: int, excluded: int, pool: Sequence[Candidate]) -> list[str]:
    if not pool:
        raise NothingToAskError("Every question is in the known data or was asked before; none is left to ask.")
    restricted = sum(is_restricted(each.example) for each in pool)
    return [
        f"{count:,} {what}"
        for count, what in (
            (unreadable, "answers or rows without a question are left out."),
            (excluded, "known or previously asked questions are left out."),
            (restricted, "rows are restricted: only people who may read that data may judge them."),
        )
        if count
    ]


def _fewer(chosen: Collection[Chosen], pool: Collection[Candidate], options: QueueOptions) -> list[str]:
    if len(chosen) >= options.budget:
        return []
    if len(chosen) == len(pool):
        return [f"The budget is {options.budget:,}, but there are only {len(pool):,} candidates; all are in the queue."]
    return [
        f"The budget is {options.budget:,}, but only {len(chosen):,} candidates match --strategy {options.strategy}."
    ]


def _in_index(location: str) -> Find:
    """Return a function that finds the passages of an index by id."""
    from meditune.retrieve.index import Index

    index = Index.open(location)
    documents: dict[str, dict[str, Passage]] = {}

    def find(id: str) -> Passage | None:
        document = id.rpartition("#")[0]
        if document not in documents:
            documents[document] = {
                str(row["id"]): Passage(text=row["text"], label=row["title"]) for row in index.passages(document)
            }
        return documents[document].get(id)

    return find


NOT_JUDGED, NOTHING = "not judged yet", "experts gave neither an answer nor a decision"


@dataclass(frozen=True)
class Rows:
    """The training rows of a queue."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    """id, question, context, answer, decision, group, and where each came from"""
    left_out: dict[str, int] = field(default_factory=dict)
    """Reason -> number of items that gave no row"""


def rows(folder: Path, excluded_raters: Sequence[str] = ()) -> Rows:
    """Return the training rows from the judged items of a queue.

    An answer becomes a target if experts found it correct, or wrote a better one, which is masked; incomplete, wrong,
    unsafe or off-topic answers without a correction do not. A decision becomes a target if experts gave it, or found
    the answer beside it correct. Raises DataError if `folder` is not a queue of `meditune learn queue`.
    """
    known = examples(folder)
    checked = read_checked(folder, excluded_raters)
    verdicts, open_verdicts = resolve(checked.rated)
    labels, open_labels = resolve(checked.rated, DECISION)
    found: list[dict[str, Any]] = []
    left_out: Counter[str] = Counter()
    for item, example in known.items():
        verdict, label = verdicts.get(item), labels.get(item)
        answer, decision = _training_targets(example, verdict, label)
        if answer or decision:
            found.append(_row(example, answer, decision, verdict, label, checked.rated.set.shuffle))
        else:
            why = open_verdicts.get(item) or open_labels.get(item)
            left_out[why or (NOTHING if verdict or label else NOT_JUDGED)] += 1
    return Rows(found, dict(left_out))


def write(folder: Path, path: Path, excluded_raters: Sequence[str] = ()) -> Rows:
    """Write the training rows of a queue to `path` atomically, and return them.

    Raises DataError if there is no row yet.
    """
    found = rows(folder, excluded_raters)
    if not found.rows:
        why = ", ".join(f"{count} {reason}" for reason, count in found.left_out.items())
        raise DataError(
            f"{folder}: no training rows yet ({why}). Let experts judge the queue: meditune annotate serve {folder}"
        )
    write_jsonl(path, found.rows, private=True)
    return found


def _training_targets(
    example: Example, verdict: Resolved | None, label: Resolved | None
) -> tuple[str, Decision | None]:
    """Return the answer and the decision to train on; either may be missing."""
    answer, decision = "", None
    if verdict:
        answer = mask(verdict.answer) if verdict.answer else example.answer if verdict.label == "correct" else ""
        decision = example.decision if verdict.label in KEPT_VERDICTS else None
    elif label and not example.answer:
        answer = mask(label.answer)
    return answer, cast(Decision | None, label.label) if label else decision


def _row(
    example: Example,
    answer: str,
    decision: Decision | None,
    verdict: Resolved | None,
    label: Resolved | None,
    campaign: str,
) -> dict[str, Any]:
    resolved = [each for each in (verdict, label) if each]
    return {
        "id": example.id,
        "question": example.question,
        "context": [passage.model_dump(mode="json") for passage in example.context],
        "answer": answer,
        "decision": decision or "",
        "group": example.group,
        "meta": {
            **example.meta,
            "expert": {
                "verdict": verdict.label if verdict else None,
                "rewritten": bool(answer) and answer != example.answer,
                "raters": sorted({code for each in resolved for code in each.raters}),
                "settled": any(each.settled for each in resolved),
                "when": max(each.when for each in resolved),
                "campaign": campaign,
            },
        },
    }
