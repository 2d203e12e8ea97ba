"""What a reranker knows of an index, made from its titles, in a file beside the table.

One numpy archive, so that it is whole or not there, in a folder as in object storage:

model        by which name the embedding model is known again
titles       the titles
vectors      their vectors, as 16-bit numbers
thesaurus    topics with their other names, besides those that titles give
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from meditune.errors import DataError, ModelError
from meditune.retrieve import titles
from meditune.retrieve.near import Vectors
from meditune.retrieve.rerank import Reranker
from meditune.retrieve.synonyms import Synonyms
from meditune.retrieve.title_vectors import Embed, TitleVectors

MOST_TITLES = 100_000
"""More different titles than these get neither names nor vectors: passages then count by their own vectors"""

Names = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Knowledge:
    """All that is stored."""

    model: str
    titles: tuple[str, ...]
    vectors: Vectors
    """(titles, size), of length 1"""
    thesaurus: Names = ()

    def reranker(self, embed: Embed) -> Reranker:
        """One that knows this; `embed` is the same model's function."""
        groups = [*(titles.read(title).names for title in self.titles), *self.thesaurus]
        return Reranker(Synonyms(groups), TitleVectors(self.titles, self.vectors), embed)


def make(
    some: Iterable[str],
    embed: Embed,
    model: str,
    thesaurus: Iterable[Sequence[str]] = (),
    before: Knowledge | None = None,
) -> Knowledge:
    """What there is to know of passages with these titles; only those that `before` doesn't hold are embedded.

    `thesaurus`: topics with their other names (`thesaurus.of_medquad`). Empty titles don't count.
    """
    once = tuple(title for title in dict.fromkeys(some) if title)
    names = tuple(tuple(group) for group in thesaurus)
    if len(once) > MOST_TITLES:
        once = ()
    known = TitleVectors(before.titles, before.vectors) if before and before.model == model else None
    if not once:
        return Knowledge(model, (), np.zeros((0, 0), dtype=np.float32), names)
    return Knowledge(model, once, known.of(once, embed) if known else embed(once), names)


def as_bytes(known: Knowledge) -> bytes:
    """The archive."""
    stream = io.BytesIO()
    parts = {"model": known.model, "titles": known.titles, "thesaurus": known.thesaurus}
    texts: dict[str, Any] = {
        name: np.frombuffer(json.dumps(value).encode(), dtype=np.uint8) for name, value in parts.items()
    }
    texts["vectors"] = known.vectors.astype(np.float16)
    np.savez_compressed(stream, allow_pickle=False, **texts)
    return stream.getvalue()


def read(data: bytes | None, name: str, model: str) -> Knowledge:
    """What the archive called `name` holds.

    Raises DataError where there is none or it is damaged, ModelError where its vectors are another model's.
    """
    try:
        if data is None:
            raise ValueError("there is no such file")
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            said: dict[str, Any] = {
                part: json.loads(stored[part].tobytes()) for part in ("model", "titles", "thesaurus")
            }
            vectors = stored["vectors"].astype(np.float32)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{name}: what the reranker knows is missing or damaged ({error}). {REBUILD}") from error
    if said["model"] != model:
        raise ModelError(
            f"{name} was made with the embedding model {said['model']}, and {model} gives other vectors. {REBUILD}"
        )
    if len(vectors) != len(said["titles"]):
        raise DataError(f"{name}: {len(said['titles']):,} titles but {len(vectors):,} vectors. {REBUILD}")
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9) if len(vectors) else 1.0
    return Knowledge(model, tuple(said["titles"]), vectors, tuple(map(tuple, said["thesaurus"])))


REBUILD = "Build the index again with `meditune index build --replace`."
