"""PubMedQA: research questions with abstracts, conclusions and yes/no/maybe decisions.

Jin et al., "PubMedQA: A Dataset for Biomedical Research Question Answering", EMNLP 2019
(https://arxiv.org/abs/1909.06146), https://github.com/pubmedqa/pubmedqa. The module reads the publisher's JSON files,
the rows of the Hugging Face copy `qiaojin/PubMedQA` (Parquet or JSON Lines), and Meditune's synthetic sample, which has
PubMedQA's format and invented content.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from meditune.data.example import DECISIONS, Decision, Example, Passage
from meditune.data.readers.tables import Rejects, Row, accepted, open_unchanging, refuse_other_kinds, rows
from meditune.errors import DataError
from meditune.files import parse_json, read_json, read_text

SOURCE = "pubmedqa"
LICENCE = "MIT"
LABELED, ARTIFICIAL, UNLABELED = "PQA-L", "PQA-A", "PQA-U"
GROUND_TRUTH = "test_ground_truth.json"
FOLDS = 10

_FILES = ("ori_pqal.json", "pqa_labeled/*.parquet", "pqa_labeled*.parquet", "pqa_labeled*.jsonl")
_OTHER_SUBSETS = {"pqaa": ARTIFICIAL, "pqa_artificial": ARTIFICIAL, "pqau": UNLABELED, "pqa_unlabeled": UNLABELED}
"""Part of a file's name -> subset, if it isn't the labelled one"""


def read(path: Path, rejects: Rejects) -> Iterator[Example]:
    """Yield examples in the file's order; the context is the abstract without its conclusion.

    `path` is a file of any subset, or a folder with the labelled subset. `meta` has `url`, `licence`, `subset`, `mesh`
    (list) and `year` (int or None). The conclusion (LONG_ANSWER) is the answer and is never in the context. Raises
    DataError if a file can't be read; items that can't be used go to `rejects`.
    """
    subset, files = _chosen(path)
    yield from from_rows((row for file in files for row in _rows(file, rejects)), rejects, subset)


def from_rows(found: Iterable[Row], rejects: Rejects, subset: str = LABELED) -> Iterator[Example]:
    """Yield examples from rows in memory, such as those of `datasets.load_dataset("qiaojin/PubMedQA")`.

    Each item is (location, row). The row has the hub's format (`pubid`, `question`, `context`, ...) or the publisher's
    format with the PubMed id added as `pubid`.
    """
    yield from accepted(SOURCE, found, partial(_example, subset=subset), rejects)


def ground_truth(path: Path) -> dict[str, Decision]:
    """Return the official test set as PubMed id -> decision, from `test_ground_truth.json` or its folder."""
    file = path / GROUND_TRUTH if path.is_dir() else path
    value = read_json(file)
    if not isinstance(value, dict) or not value or not set(value.values()) <= set(DECISIONS):
        raise DataError(f"{file}: expected an object that maps PubMed ids to yes, no or maybe. Download it again.")
    return value


def official_split(
    examples: Iterable[Example], test_ids: Collection[str] | None = None
) -> tuple[list[Example], list[Example]]:
    """Return the 500 training and 500 official test items of PQA-L.

    If `test_ids` (PubMed ids) are given, they are the test set. Otherwise, the publisher's seeded procedure is
    repeated. The procedure needs all 1,000 items in the file's order, and selects exactly the ids that are in
    `test_ground_truth.json`. Raises DataError if ids are missing.
    """
    by_pmid = _labeled(examples)
    if test_ids is None:
        _, test = _reproduced(by_pmid)
    else:
        test = list(test_ids)
        missing = [pmid for pmid in test if pmid not in by_pmid]
        if missing:
            raise DataError(
                f"PubMedQA: {len(missing)} of {len(test)} official test items are missing from the data "
                f"(first: {missing[0]}). Use the publisher's complete ori_pqal.json."
            )
    chosen = set(test)
    return [example for pmid, example in by_pmid.items() if pmid not in chosen], [by_pmid[pmid] for pmid in test]


def official_folds(examples: Iterable[Example]) -> list[list[Example]]:
    """Return the publisher's ten development folds of 50 items each, from all 1,000 items in the file's order.

    For fold i, the other nine folds are the training set, as in the publisher's `pqal_fold0` to `pqal_fold9`.
    """
    by_pmid = _labeled(examples)
    folds, _ = _reproduced(by_pmid)
    return [[by_pmid[pmid] for pmid in fold] for fold in folds]


def _labeled(examples: Iterable[Example]) -> dict[str, Example]:
    return {e.group: e for e in examples if e.source == SOURCE and e.meta.get("subset") == LABELED}


def _reproduced(by_pmid: Mapping[str, Example]) -> tuple[list[list[str]], list[str]]:
    """Return ten folds and the test ids, drawn from one seeded random stream: first the test set, then the folds.

    The procedure is that of `preprocess/split_dataset.py` in https://github.com/pubmedqa/pubmedqa (seed 0).
    """
    decided = {pmid: str(example.decision) for pmid, example in by_pmid.items() if example.decision}
    if len(decided) != 1000:
        raise DataError(
            "PubMedQA: the official split is drawn from the 1,000 items of PQA-L with a decision, but these data "
            f"contain {len(decided)}. Use the publisher's complete ori_pqal.json, or provide the ids in {GROUND_TRUTH}."
        )
    random_stream = random.Random(0)
    development, test = _stratified(decided, 2, random_stream)
    return _stratified({pmid: decided[pmid] for pmid in development}, FOLDS, random_stream), test


def _stratified(decisions: Mapping[str, str], parts: int, random_stream: random.Random) -> list[list[str]]:
    """Split ids into lists with equal shares of each decision; a shorter last list gets one id from each other list."""
    lists: list[list[str]] = [[] for _ in range(parts)]
    for decision in DECISIONS:
        ids = [pmid for pmid, own in decisions.items() if own == decision]
        random_stream.shuffle(ids)
        size = math.ceil(len(ids) / parts)
        for index, part in enumerate(lists):
            part += ids[index * size :] if index == parts - 1 else ids[index * size : (index + 1) * size]
    if len(lists[-1]) != len(lists[0]):
        for part in lists[:-1]:
            moved = random_stream.choice(part)
            part.remove(moved)
            lists[-1].append(moved)
    return lists


def _chosen(path: Path) -> tuple[str, list[Path]]:
    """Return the subset of a file and the file, or the labelled subset and its files in a folder."""
    if path.exists() and not path.is_dir():
        name = f"{path.parent.name}/{path.name}".lower()
        return next((subset for mark, subset in _OTHER_SUBSETS.items() if mark in name), LABELED), [path]
    if not path.is_dir():
        raise DataError(
            f"{path}: no such file or folder. Specify PubMedQA's ori_pqal.json or the folder that contains it."
        )
    files = next((found for pattern in _FILES if (found := sorted(path.glob(pattern)))), [])
    if not files:
        raise DataError(f"{path}: no {_FILES[0]} in this folder. Add the publisher's file for {LABELED}.")
    return LABELED, files


def _rows(file: Path, rejects: Rejects) -> Iterator[Row]:
    """Yield the location of each row, and the row with the PubMed id as `pubid`."""
    if file.suffix in {".parquet", ".jsonl"}:
        yield from rows(file, SOURCE, rejects)
        return
    with open_unchanging(file):
        refuse_other_kinds(file)
        value = parse_json(read_text(file), file, _Object)
        if not isinstance(value, _Object):
            raise DataError(f"{file}: expected an object that maps PubMed ids to items, found {type(value).__name__}.")
        for pmid, item in value.pairs():
            yield f"{file}, item {pmid}", {"pubid": pmid} | (item if isinstance(item, dict) else {"value": item})


class _Object(dict[str, Any]):
    """A JSON object that keeps repeated keys."""

    __slots__ = ("_all",)

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self._all = pairs if len(pairs) > len(self) else None

    def pairs(self) -> Iterable[tuple[str, Any]]:
        """Return all keys with their values, including repeated keys."""
        return self._all or self.items()


def _example(row: Mapping[str, Any], subset: str) -> list[Example] | str:
    """Return the row as an Example, or the reason for rejecting it."""
    hub = "question" in row
    nested = row.get("context") if hub else None
    context = nested if isinstance(nested, Mapping) else {}
    pmid = str(row.get("pubid") or "").strip()
    question = _text(row.get("question" if hub else "QUESTION"))
    answer = _text(row.get("long_answer" if hub else "LONG_ANSWER"))
    texts = _strings(context.get("contexts") if hub else row.get("CONTEXTS"))
    labels = _strings(context.get("labels") if hub else row.get("LABELS"))
    mesh = _strings(context.get("meshes") if hub else row.get("MESHES"))
    decision = _text(row.get("final_decision")) or None
    if not pmid:
        return "no PubMed id"
    if not question:
        return "no question"
    if not texts:
        return "no context"
    if decision is not None and decision not in DECISIONS:
        return "unknown decision (not yes, no or maybe)"
    if not answer and decision is None:
        return "neither answer nor decision"
    if len(labels) != len(texts):
        labels = [""] * len(texts)  # a shifted label would name the wrong section
    year = _text(row.get("YEAR"))
    return [
        Example(
            id=f"{SOURCE}:{pmid}",
            source=SOURCE,
            question=question,
            context=tuple(Passage(text=text, label=label) for text, label in zip(texts, labels, strict=True)),
            answer=answer,
            decision=decision,
            group=pmid,
            meta={
                "url": f"https://pubmed.ncbi.nlm.nih.gov/{pmid}/",
                "licence": LICENCE,
                "subset": subset,
                "mesh": mesh,
                "year": int(year) if re.fullmatch("[0-9]{4}", year) else None,
            },
        )
    ]


def _text(value: object) -> str:
    return str(value).strip() if isinstance(value, str | int) else ""


def _strings(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list | tuple) else []


SYNTHETIC_SOURCE = "sample"
SYNTHETIC_LICENCE = "CC0-1.0"
FILE = Path(__file__).parent / "sample" / "synthetic_pqal.json"


def read_synthetic(path: Path, rejects: Rejects) -> Iterator[Example]:
    """Yield the invented examples. They are marked `synthetic` and have no URL, so none is mistaken for a study."""
    for example in read(path, rejects):
        meta = {key: value for key, value in example.meta.items() if key not in {"url", "subset"}}
        yield example.model_copy(
            update={
                "id": f"{SYNTHETIC_SOURCE}:{example.group}",
                "source": SYNTHETIC_SOURCE,
                "meta": meta | {"licence": SYNTHETIC_LICENCE, "synthetic": True},
            }
        )
