"""What a model can learn from since its last training: corrections of its answers, labels of experts, new literature.

Each is written down as rows with ids of its own, in the form of a user's own file, before anything is made of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meditune.data.example import Example
from meditune.data.own import read
from meditune.data.rejects import Rejects
from meditune.errors import DataError
from meditune.files import read_jsonl, sha256, write_jsonl
from meditune.operate.learn import labelled, reading
from meditune.operate.literature import pairs
from meditune.prompts import decision_in
from meditune.retrieve.index import Index
from meditune.store.answers import SHADOW, Answers
from meditune.store.base import FILE
from meditune.store.opening import exists, open_store

EVERYBODY = "all"
PASSAGES = 3
"""So many of the passages that an answer rested on stand in its correction's prompt"""


@dataclass(frozen=True)
class Wanted:
    """Where it comes from."""

    store: str | None = None
    """A server's: a folder, or a PostgreSQL database's URL"""
    trust: tuple[str, ...] = ()
    """Ids of keys whose corrections are learnt from beside those of experts' keys; `all` is everybody"""
    labels: tuple[Path, ...] = ()
    """Files of questions with answers or decisions, as experts gave them. A row that names an `answer_id` is about an
    answer in the store"""
    queues: tuple[Path, ...] = ()
    """What experts judged: folders of `meditune learn queue`"""
    literature: tuple[Path, ...] = ()
    """Libraries of `meditune update`, or files of pairs"""
    index: str | None = None
    """Where the passages of corrected answers are looked up"""

    @property
    def is_empty(self) -> bool:
        """Whether there is nowhere to look."""
        return not (self.store or self.labels or self.queues or self.literature)


@dataclass
class Gathered:
    """Files of rows, and what was left out."""

    files: dict[str, Path] = field(default_factory=dict)
    """Kind -> its rows"""
    counts: dict[str, int] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    """Sentence -> how many"""
    index: str = ""
    """The hash of the index's content"""

    def facts(self) -> dict[str, dict[str, Any]]:
        """Rows and SHA-256 of each kind, for the version's lineage."""
        return {kind: {"rows": self.counts[kind], "sha256": sha256(path)} for kind, path in self.files.items()}


def gather(wanted: Wanted, folder: Path) -> Gathered:
    """Write what is there into `folder`, a file for each kind. Raises DataError where a source can't be read."""
    found = Gathered()
    index = Index.open(wanted.index) if wanted.index else None
    found.index = index.manifest.content if index else ""
    answers = _answers(wanted.store)
    if answers:
        _keep(found, folder, "feedback", _corrections(answers, wanted.trust, index, found.left_out))
    if wanted.labels:
        _keep(found, folder, "labels", _labelled(wanted.labels, answers, found.left_out))
    if wanted.queues:
        _keep(found, folder, "experts", _judged(wanted.queues, answers, found.left_out))
    if wanted.literature:
        _keep(found, folder, "literature", _literature(wanted.literature))
    return found


def _keep(found: Gathered, folder: Path, kind: str, rows: Iterable[dict[str, Any]]) -> None:
    path = folder / f"{kind}.jsonl"
    count = write_jsonl(path, rows, private=True)
    if count:
        found.files[kind], found.counts[kind] = path, count
    else:
        path.unlink()


def _answers(store: str | None) -> Answers | None:
    if store is None:
        return None
    if not exists(store):
        raise DataError(f"{store} is no store of a server: {FILE} is missing. Give its --store.")
    return Answers(open_store(store))


def _corrections(
    answers: Answers, trust: Sequence[str], index: Index | None, left_out: Counter[str]
) -> Iterator[dict[str, Any]]:
    """Of each answer what somebody trusted says it should have been; an expert's word stands above others', a later one
    above an earlier.
    """
    # Callers without a key have an empty name, which nobody can be trusted by.
    named = set(trust) - {""}
    for row in answers.exported():
        said = [each for each in row["feedback"] if each["correction"].strip() or each["decision"]]
        if not said or row["route"] == SHADOW:
            continue
        trusted = [each for each in said if each["expert"] or EVERYBODY in named or each["who"] in named]
        if not trusted:
            left_out["corrections by callers who aren't trusted (--trust KEY, or --trust all)"] += 1
        elif not row["question"]:
            left_out["corrections of answers whose question wasn't kept (meditune serve --keep-text)"] += 1
        else:
            last = max(trusted, key=lambda each: (each["expert"], each["time"]))
            correction = last["correction"].strip()
            yield {
                "id": f"feedback-{row['id']}",
                "question": row["question"],
                "context": _context(index, row["facts"].get("passages") or []),
                "answer": correction,
                "decision": last["decision"] or _decision(correction),
                "meta": {
                    "kind": "feedback",
                    "expert": last["expert"],
                    "model": row["model"],
                    "index": row["index_content"],
                },
            }


def _decision(correction: str) -> str | None:
    """What a correction that begins with yes, no or maybe decides."""
    if not correction:
        return None
    first = correction.split(maxsplit=1)[0]
    return decision_in(first) if len(first.strip(",.;:!-–—").split("-")) == 1 else None


def _context(index: Index | None, ids: Sequence[str]) -> list[dict[str, str]]:
    """The passages of these ids that the index still holds."""
    if index is None:
        return []
    found = []
    for id in ids[:PASSAGES]:
        document = id.rpartition("#")[0]
        found += [row["text"] for row in index.passages(document) if row["id"] == id]
    return [{"text": text, "label": ""} for text in found]


def _labelled(paths: Sequence[Path], answers: Answers | None, left_out: Counter[str]) -> Iterator[dict[str, Any]]:
    """The rows of experts' files, with ids that differ between files."""
    for path in paths:
        rejects = Rejects()
        for example in read(path, rejects):
            about = example.meta.get("answer_id")
            if about and answers is not None and answers.get(str(about)) is None:
                # It was deleted on somebody's request, or never was: what rests on it isn't learnt.
                left_out["labels of answers that the store doesn't have (deleted, or another store's)"] += 1
                continue
            yield _row(example, "labels", f"{path.stem}-{example.id.partition(':')[2]}")
        for reason, count in rejects.counts().get("own", {}).items():
            left_out[f"rows of {path.name}: {reason}"] += count


def _judged(folders: Sequence[Path], answers: Answers | None, left_out: Counter[str]) -> Iterator[dict[str, Any]]:
    """What experts taught of queues; a row of an earlier one that came again is taken from the later."""
    found: dict[str, dict[str, Any]] = {}
    for folder in folders:
        said = labelled.rows(folder)
        for why, count in said.left_out.items():
            left_out[f"items of {folder.name}: {why}"] += count
        for row in said.rows:
            source, _, about = str(row["id"]).partition(":")
            if source == reading.ANSWERS and answers is not None and answers.get(about) is None:
                left_out["labels of answers that the store doesn't have (deleted, or another store's)"] += 1
                continue
            found[row["id"]] = row | {"id": f"experts-{row['id']}", "meta": row["meta"] | {"kind": "experts"}}
    yield from found.values()


def _literature(paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    for given in paths:
        path = given / pairs.FILE if given.is_dir() else given
        if not path.is_file():
            raise DataError(f"{path}: no training pairs there. Make them: meditune update {given} ...")
        for row in read_jsonl(path):
            if row["id"] not in seen:
                seen.add(row["id"])
                yield row | {"id": f"literature-{row['id']}", "meta": row.get("meta", {}) | {"kind": "literature"}}


def _row(example: Example, kind: str, id: str) -> dict[str, Any]:
    row = example.model_dump(mode="json")
    return {
        "id": f"{kind}-{id}",
        "question": row["question"],
        "context": row["context"],
        "answer": row["answer"],
        "decision": row["decision"],
        "group": row["group"],
        "meta": row["meta"] | {"kind": kind},
    }
