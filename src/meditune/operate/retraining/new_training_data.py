"""New training data (corrections of answers, experts' labels, new literature), and its split into train, dev and test.

A version's splits are its parent's splits plus the new rows. A hash of a row's group determines the row's split, so the
split is the same in every retraining: a row that was held out once is always held out.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from meditune.assistant.assistant import asks_yes_or_no
from meditune.data.example import Example
from meditune.data.prepare import stored_data
from meditune.data.readers.tables import Rejects
from meditune.data.readers.user_files import read
from meditune.data.reviewer_decisions import apply, fingerprint
from meditune.data.splits import Splits, sample, short_digest
from meditune.errors import DataError
from meditune.files import read_jsonl, sha256, write_jsonl
from meditune.model_registry import Registry
from meditune.operate import label_queue
from meditune.operate.literature import abstract_questions
from meditune.prompts import opening_decision
from meditune.retrieve.index import Index
from meditune.store import exists, open_store
from meditune.store.answers import Answers
from meditune.store.database import FILE

_COLUMNS = {"id", "question", "context", "answer", "decision", "group", "meta"}
PASSAGES = 3
"""Maximum number of an answer's passages that become the context of its correction"""


@dataclass(frozen=True)
class TrainingDataSources:
    """The sources of new training data."""

    store: str | None = None
    trust: tuple[str, ...] = ()
    """Ids of keys whose corrections are used, in addition to experts' keys; `all` means all callers"""
    labels: tuple[Path, ...] = ()
    """Files of questions with experts' answers or decisions; `answer_id` is the id of an answer in the store"""
    queues: tuple[Path, ...] = ()
    literature: tuple[Path, ...] = ()
    index: str | None = None

    @property
    def is_empty(self) -> bool:
        """True if no source is given."""
        return not (self.store or self.labels or self.queues or self.literature)


@dataclass
class NewTrainingData:
    """Files of new rows, and counts of what was left out."""

    files: dict[str, Path] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    index: str = ""

    def facts(self) -> dict[str, dict[str, Any]]:
        """Return, for each kind of data, the number of rows and the file's SHA-256, for the version's lineage."""
        return {kind: {"rows": self.counts[kind], "sha256": sha256(path)} for kind, path in self.files.items()}


def gather(sources: TrainingDataSources, folder: Path) -> NewTrainingData:
    """Write the new data to `folder`, one file for each kind. Raises DataError if a source cannot be read."""
    store, found = sources.store, NewTrainingData()
    if store and not exists(store):
        raise DataError(f"{store} is not a server's store: {FILE} is missing. Use the --store of `meditune serve`.")
    answers = Answers(open_store(store)) if store else None
    index = Index.open(sources.index) if sources.index else None
    found.index = index.manifest.content if index else ""
    kinds = {
        "feedback": _corrections(answers, sources.trust, index, found.left_out) if answers else (),
        "labels": _labelled(sources.labels, answers, found.left_out),
        "experts": _judged(sources.queues, answers, found.left_out),
        "literature": _literature(sources.literature),
    }
    for kind, rows in kinds.items():
        path = folder / f"{kind}.jsonl"
        if count := write_jsonl(path, rows, private=True):
            found.files[kind], found.counts[kind] = path, count
        else:
            path.unlink()
    return found


def _corrections(
    answers: Answers, trust: Sequence[str], index: Index | None, left_out: Counter[str]
) -> Iterator[dict[str, Any]]:
    """Yield one trusted correction for each answer: an expert's if there is one, and the latest of several."""
    # Callers without a key have an empty name, which must never be trusted.
    named = set(trust) - {""}
    for row in answers.exported():
        corrections = [each for each in row["feedback"] if each["correction"].strip() or each["decision"]]
        if not corrections:
            continue
        trusted = [each for each in corrections if each["expert"] or "all" in named or each["who"] in named]
        if not trusted:
            left_out["corrections by untrusted callers (--trust KEY, or --trust all)"] += 1
        elif not row["question"]:
            left_out["corrections of answers whose question wasn't stored (meditune serve --keep-text)"] += 1
        else:
            last = max(trusted, key=lambda each: (each["expert"], each["time"]))
            correction = last["correction"].strip()
            yield {
                "id": f"feedback-{row['id']}",
                "question": row["question"],
                "context": passages_of(index, row["facts"].get("passages") or []),
                "answer": correction,
                "decision": last["decision"] or _decision_of(row["question"], correction),
                "meta": {
                    "kind": "feedback",
                    "expert": last["expert"],
                    "model": row["model"],
                    "index": row["index_content"],
                },
            }


_NO = re.compile(r"\W*no[^\S\n]*(?:[^\w\s]|$|\b(?:it|they|this|that|he|she)\b)", re.IGNORECASE | re.MULTILINE)
"""The answer "no", also before a punctuation mark or a pronoun ("No it is not"), unlike "no more than 4 g"."""


def _decision_of(question: str, correction: str) -> str | None:
    """Return the decision with which the correction of an answer to a yes/no question begins; otherwise None."""
    found = opening_decision(correction) if asks_yes_or_no(question) else None
    return None if found == "no" and not _NO.match(correction) else found


def passages_of(index: Index | None, ids: Sequence[str]) -> list[dict[str, str]]:
    """Return the passages with the first PASSAGES of these ids, except those no longer in the index."""
    if index is None:
        return []
    rows = (row for id in ids[:PASSAGES] for row in index.passages(id.rpartition("#")[0]) if row["id"] == id)
    return [{"text": row["text"], "label": ""} for row in rows]


def _labelled(paths: Sequence[Path], answers: Answers | None, left_out: Counter[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of experts' files.

    The id of a row that has none in its file comes from the row's question and context, because files of different
    months can have the same name.
    """
    repeated: Counter[str] = Counter()
    for path in paths:
        rejects = Rejects()
        for example in read(path, rejects):
            about = example.meta.get("answer_id")
            if about and answers is not None and answers.get(str(about)) is None:
                # The answer was deleted, or it belongs to another store, so labels of it aren't used.
                left_out["labels of answers that are not in the store (deleted, or from another store)"] += 1
                continue
            row = example.model_dump(mode="json", include=_COLUMNS)
            id = f"labels-{path.stem}-{example.id.partition(':')[2]}"
            if re.fullmatch(rf"{re.escape(path.stem)}-\d+", example.id.partition(":")[2]):
                id = f"labels-{path.stem}-{short_digest(example)}"
                repeated[id] += 1
                id += f"-{repeated[id]}" if repeated[id] > 1 else ""
            yield row | {"id": id, "meta": row["meta"] | {"kind": "labels"}}
        for reason, count in rejects.counts().get("own", {}).items():
            left_out[f"rows of {path.name}: {reason}"] += count


def _judged(folders: Sequence[Path], answers: Answers | None, left_out: Counter[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows from judged queues; if several queues contain a row, the last queue counts."""
    found: dict[str, dict[str, Any]] = {}
    for folder in folders:
        judged = label_queue.rows(folder)
        for why, count in judged.left_out.items():
            left_out[f"items of {folder.name}: {why}"] += count
        for row in judged.rows:
            source, _, about = str(row["id"]).partition(":")
            if source == label_queue.ANSWERS and answers is not None and answers.get(about) is None:
                left_out["labels of answers that are not in the store (deleted, or from another store)"] += 1
                continue
            found[row["id"]] = row | {"id": f"experts-{row['id']}", "meta": row["meta"] | {"kind": "experts"}}
    yield from found.values()


def _literature(paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    for given in paths:
        path = given / abstract_questions.FILE if given.is_dir() else given
        if not path.is_file():
            raise DataError(
                f"{path} is missing, so there are no training pairs. Make them: meditune update {given} ..."
            )
        for row in read_jsonl(path):
            if row["id"] not in seen:
                seen.add(row["id"])
                yield row | {"id": f"literature-{row['id']}", "meta": row.get("meta", {}) | {"kind": "literature"}}


Place = Literal["train", "dev", "test"]


@dataclass(frozen=True)
class Shares:
    """The shares for splitting new rows."""

    held_out: float = 0.3
    """Share of the new rows' groups that are held out for evaluation"""
    dev: float = 0.1
    replay: float = 1.0
    """Number of old training rows that are added for each new training row; if there are fewer, all are added."""


class TooFewError(DataError):
    """Raised if there is too little new data to train on."""


@dataclass
class DealtRows:
    """The splits of the next version, and the ids of the new held-out items."""

    splits: Splits
    new: frozenset[str]
    """Ids of the dev and test items that are new in this retraining"""
    trained: int
    replayed: int
    left_out: Counter[str] = field(default_factory=Counter)
    decided: dict[str, Any] = field(default_factory=dict)


def known_rows(registry: Registry, id: str) -> dict[str, Example]:
    """Return all training rows of a version and its ancestors, by id; the latest version of a row counts."""
    found: dict[str, Example] = {}
    for parent in registry.get(id).parents:
        found |= known_rows(registry, parent)
    return found | {example.id: example for example in stored_data(registry.place(id) / "data").splits.train}


def deal(
    rows: Sequence[Example],
    old: Splits,
    pool: dict[str, Example],
    shares: Shares,
    seed: int,
    decisions: Path | None = None,
    min_rows: int = 0,
) -> DealtRows:
    """Split the new rows, and add them to the old splits.

    `pool` contains all training rows of the current version and its ancestors. A new row that is similar to a held-out
    item isn't trained on, and a new row that is similar to an old training row isn't held out for testing. Raises
    TooFewError if too few new rows remain.
    """
    left_out: Counter[str] = Counter()
    seen = {fingerprint(example) for example in (*pool.values(), *old.dev, *old.test)}
    fresh = [example for example in rows if fingerprint(example) not in seen]
    left_out["rows that were known before"] += len(rows) - len(fresh)
    if len(fresh) < min_rows:
        raise TooFewError(
            f"{len(fresh):,} of {len(rows):,} rows are new, but at least {min_rows:,} are needed (--min-rows)."
        )
    dealt: dict[Place, list[Example]] = {"train": [], "dev": [], "test": []}
    had: dict[str, Place] = dict.fromkeys(pool, "train")
    had |= dict.fromkeys((example.id for example in old.dev), "dev")
    had |= dict.fromkeys((example.id for example in old.test), "test")
    for example in fresh:
        dealt[had.get(example.id) or place_of(example.group, shares)].append(example)
    changed = {example.id for example in fresh}
    old_dev = [example for example in old.dev if example.id not in changed]
    old_test = [example for example in old.test if example.id not in changed]
    trained = [*pool.values(), *old_dev]
    test = _unlike(dealt["test"], trained, left_out, "test items that are similar to a row trained on before")
    measured = [*old_test, *test]
    dev = _unlike(dealt["dev"], measured, left_out, "dev items that are similar to a test item")
    learnt = _unlike(
        dealt["train"], [*measured, *old_dev, *dev], left_out, "training rows that are similar to a held-out item"
    )
    left_out = +left_out
    if not learnt or not test:
        raise TooFewError(
            f"{len(fresh)} new rows leave {len(learnt)} to train on and {len(test)} to evaluate on ("
            + (", ".join(f"{count} {why}" for why, count in left_out.items()) or "none was left out")
            + "). Gather more data before retraining."
        )
    old_rows = [example for id, example in sorted(pool.items()) if id not in changed]
    old_splits = Splits(old_rows, old_dev, old_test, old.test_set)
    old_splits, applied = apply(str(decisions) if decisions else None, old_splits)
    replayed = sample(old_splits.train, round(shares.replay * len(learnt)), f"{seed}/replay")
    name = f"{old.test_set}+new-{len(test)}"
    splits = Splits([*replayed, *learnt], [*old_splits.dev, *dev], measured, name)
    new = frozenset(example.id for example in (*dev, *test))
    return DealtRows(splits, new, len(learnt), len(replayed), left_out, applied.facts)


def place_of(group: str, shares: Shares) -> Place:
    """Return the split of a group, by a hash of its name."""
    at = int.from_bytes(hashlib.sha256(f"release/{group}".encode()).digest()[:8], "big") / 2**64
    if at < shares.held_out:
        return "test"
    return "dev" if at < shares.held_out + shares.dev else "train"


def _unlike(rows: list[Example], others: Sequence[Example], left_out: Counter[str], reason: str) -> list[Example]:
    """Return the rows that don't match any of `others`, and add the number of removed rows to `left_out`."""
    rest, removed = abstract_questions.without_matches(rows, others)
    left_out[reason] += len(removed)
    return rest
