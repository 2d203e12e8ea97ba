"""The rows that an audit leaves, as a file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meditune.data.example import Example
from meditune.data.quality.spool import Spool
from meditune.files import write_jsonl
from meditune.progress import track

TOGETHER = 1000
"""Rows that are written together."""


def write(
    folder: Path, kind: str, spool: Spool, rows: NDArray[np.int64], changed: dict[int, Example]
) -> dict[str, Counter[int]]:
    """Write those rows of a spool, `changed` in place of what is there, as rows.parquet, or else as rows.jsonl.

    Returns how often questions, contexts and answers have how many words.
    """
    words: dict[str, Counter[int]] = {"question": Counter(), "context": Counter(), "answer": Counter()}
    found = _counted(spool, rows, changed, words)
    if kind == ".parquet":
        _write_parquet(folder / "rows.parquet", found)
    else:
        write_jsonl(folder / "rows.jsonl", found)
    return words


def _counted(
    spool: Spool, rows: NDArray[np.int64], changed: dict[int, Example], words: dict[str, Counter[int]]
) -> Iterator[dict[str, Any]]:
    for row in track(rows, "Writing rows", unit="rows"):
        found = changed[int(row)].model_dump(mode="json") if int(row) in changed else json.loads(spool.text(int(row)))
        words["question"][len(found["question"].split())] += 1
        words["context"][sum(len(passage["text"].split()) for passage in found["context"])] += 1
        if found["answer"]:
            words["answer"][len(found["answer"].split())] += 1
        yield found


def _write_parquet(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    """`meta` is JSON: each row may have keys of its own."""
    import pyarrow
    import pyarrow.parquet

    text = pyarrow.string()
    passage = pyarrow.struct([("text", text), ("label", text)])
    kinds = {"context": pyarrow.list_(passage)}
    names = ("id", "source", "question", "context", "answer", "decision", "group", "meta")
    schema = pyarrow.schema([(name, kinds.get(name, text)) for name in names])
    waiting: list[dict[str, Any]] = []
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for row in rows:
            waiting.append(row | {"meta": json.dumps(row["meta"], ensure_ascii=False)})
            if len(waiting) == TOGETHER:
                writer.write_table(pyarrow.Table.from_pylist(waiting, schema=schema))
                waiting = []
        writer.write_table(pyarrow.Table.from_pylist(waiting, schema=schema))
