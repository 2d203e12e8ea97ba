"""What a reranker knows of an index, made from its titles, in a folder beside it.

names.jsonl      topics with all that they are called
titles.json      the titles
vectors.npy      their vectors, as 16-bit numbers
embedding.json   which model made them
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from meditune.errors import DataError, ModelError
from meditune.files import read_json, read_jsonl, replacing_folder, write_json, write_jsonl
from meditune.retrieve import titles
from meditune.retrieve.rerank import Reranker
from meditune.retrieve.synonyms import Synonyms
from meditune.retrieve.title_vectors import Embed, TitleVectors

NAMES, TITLES, VECTORS, EMBEDDING = "names.jsonl", "titles.json", "vectors.npy", "embedding.json"


def make(
    folder: Path, some: Iterable[str], embed: Embed, model: str, thesaurus: Iterable[Sequence[str]] = ()
) -> Reranker:
    """A reranker for passages with these titles, stored in the folder, which is whole or not there.

    `model` says by which name the embedding model is known again; `thesaurus` are topics with their other names,
    besides those that the titles give (`thesaurus.of_medquad`).
    """
    once = [title for title in dict.fromkeys(some) if title]
    groups = [*(titles.read(title).names for title in once), *map(tuple, thesaurus)]
    vectors = TitleVectors.made(once, embed)
    with replacing_folder(folder) as partial:
        write_jsonl(partial / NAMES, ({"names": list(names)} for names in groups))
        write_json(partial / TITLES, {"titles": once})
        write_json(partial / EMBEDDING, {"model": model})
        np.save(partial / VECTORS, vectors.vectors.astype(np.float16))
    return Reranker(Synonyms(groups), vectors, embed)


def load(folder: Path, embed: Embed, model: str) -> Reranker:
    """The reranker stored there.

    Raises DataError where there is none or it is damaged, ModelError where its vectors are another model's.
    """
    try:
        made_by = read_json(folder / EMBEDDING)["model"]
        once = read_json(folder / TITLES)["titles"]
        groups = [row["names"] for row in read_jsonl(folder / NAMES)]
        vectors = np.load(folder / VECTORS, allow_pickle=False).astype(np.float32)
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise DataError(f"{folder}: no reranker here, or a damaged one ({error}). Build the index again.") from error
    if made_by != model:
        raise ModelError(
            f"{folder} was made with the embedding model {made_by}, and {model} gives other vectors. Build the index "
            "again with this one, or search with that one."
        )
    if len(vectors) != len(once):
        raise DataError(f"{folder}: {len(once):,} titles but {len(vectors):,} vectors. Build the index again.")
    return Reranker(Synonyms(groups), TitleVectors(once, vectors), embed)
