"""The reference for drift checks. It is fitted once to a period without problems, and stored as arrays with a hash."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meditune.errors import DataError
from meditune.files import write_bytes
from meditune.operate.drift.e_detectors import BLOCK, Arrays, Kernel
from meditune.operate.drift.signals import BY_NAME, MEANING, SIGNALS, Request, Shape, learn_shape, words
from meditune.phi.detector import mask


def write(path: Path, kind: str, metadata: Mapping[str, Any], arrays: Arrays) -> str:
    """Write metadata and arrays to `path` atomically; return the SHA-256 of the content."""
    description = json.dumps({"kind": kind} | dict(metadata), ensure_ascii=False, sort_keys=True)
    digest = _digest(description, arrays)
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, about=np.array([description, digest]), **arrays)
    write_bytes(path, stream.getbuffer(), private=True)
    return digest


def read(path: Path, kind: str, advice: str) -> tuple[dict[str, Any], Arrays, str]:
    """Return the metadata, the arrays and the SHA-256 that `write` stored in a file.

    Raises DataError, with `advice` at the end, if the file is missing, damaged or of another kind.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        description, digest = (str(each) for each in arrays.pop("about"))
        about = json.loads(description)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file. {advice}") from error
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read: it is damaged, or not a drift {kind}. {advice}") from error
    if about.get("kind") != kind:
        raise DataError(f"{path} is a drift {about.get('kind')}, not a {kind}. {advice}")
    if _digest(description, arrays) != digest:
        raise DataError(f"{path} was changed after it was written: its hash differs. {advice}")
    return about, arrays, digest


def _digest(description: str, arrays: Arrays) -> str:
    found = hashlib.sha256(description.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


KIND = "reference"
MIN_REQUESTS = 200
MIN_VALUES = 50
"""Minimum number of values that a signal needs in the ranked half; signals with fewer values aren't monitored."""
MAX_CATEGORIES = 24
_SHAPE = ("words", "centres", "mean", "directions", "anchors")
_REFIT = "Fit a new reference: meditune drift fit STORE -o REFERENCE"


@dataclass(frozen=True)
class Reference:
    """A fitted reference."""

    shape: Shape
    numbers: dict[str, NDArray[np.float64]]
    """Name of each numeric signal -> its values (n, columns) in the ranked half"""
    shares: dict[str, dict[str, int]]
    features: NDArray[np.float32] | None
    """Features (n, FEATURES) of the questions in the ranked half, for the MMD"""
    about: dict[str, Any]
    """`requests` (number), `embedding`, `remarks`, `seed`, `of` (the source), `last` (position of the last request)"""
    sha256: str = field(default="", compare=False)

    @property
    def signals(self) -> list[str]:
        """The names of the monitored signals."""
        return [*self.numbers, *self.shares, *([MEANING] if self.features is not None else [])]


def fit(requests: Sequence[Request], embedding: dict[str, Any] | None, source: str, seed: int = 17) -> Reference:
    """Fit a reference to requests.

    The functions in `Shape` are learned from a random half of the requests. The values of the other half are stored,
    and the values of new requests are ranked among them. Raises DataError if there are too few requests.
    """
    if len(requests) < MIN_REQUESTS:
        raise DataError(
            f"{source} has {len(requests):,} requests; a reference needs at least {MIN_REQUESTS}, and a few thousand "
            "to detect small changes. Wait for more requests, or specify another source."
        )
    order = np.random.default_rng(seed).permutation(len(requests))
    half = len(requests) // 2
    first = [requests[place] for place in order[:half]]
    ranked = [requests[place] for place in order[half:]]
    shape = _shape(first, seed)
    numbers, shares, remarks = _values(ranked, shape)
    vectors = [each.vector for each in ranked if each.vector is not None]
    features = None
    if shape.kernel is not None and len(vectors) >= 4 * BLOCK:
        features = shape.kernel.features(np.stack(vectors))
    about = {"requests": len(requests), "embedding": embedding, "remarks": remarks, "seed": seed, "of": source}
    about |= {"last": max(each.sequence for each in requests)}
    return Reference(shape, numbers, shares, features, about)


def _shape(requests: Sequence[Request], seed: int) -> Shape:
    asked = [each for each in requests if each.vector is not None and each.question is not None]
    vectors = [each.vector for each in requests if each.vector is not None]
    named = len(asked) == len(vectors)
    # Masked, because topics are named after words in questions, and the names are shown.
    texts = [mask(each.question or "") for each in asked] if named else []
    stacked = np.stack(vectors) if vectors else np.zeros((0, 0), dtype=np.float32)
    return learn_shape(texts, stacked, [words(each.question) for each in requests if each.question], seed)


def _values(
    requests: Sequence[Request], shape: Shape
) -> tuple[dict[str, NDArray[np.float64]], dict[str, dict[str, int]], list[str]]:
    """Return the values of numeric signals, the counts of categories, and a remark on signals with too few values."""
    numbers: dict[str, NDArray[np.float64]] = {}
    shares: dict[str, dict[str, int]] = {}
    unwatched = []
    for signal in SIGNALS:
        rows = [row for row in (signal.read(each, shape) for each in requests) if row and None not in row]
        if len(rows) < MIN_VALUES:
            unwatched.append(f"{signal.name} ({len(rows)})")
        elif signal.kind == "number":
            numbers[signal.name] = np.array(rows, dtype=np.float64)
        else:
            shares[signal.name] = dict(Counter(str(value) for (value,) in rows).most_common(MAX_CATEGORIES))
    few = f"Not monitored, because the reference has fewer than {MIN_VALUES} values of each: {', '.join(unwatched)}."
    return numbers, shares, [few] if unwatched else []


def save(reference: Reference, path: Path) -> Reference:
    """Write a reference to a file, and return it with the file's hash."""
    shape = reference.shape
    stored: Arrays = {f"number/{name}": values for name, values in reference.numbers.items()}
    stored |= {name: getattr(shape, name) for name in _SHAPE}
    if shape.kernel is not None:
        stored |= {"weights": shape.kernel.weights, "phases": shape.kernel.phases}
    if reference.features is not None:
        stored["features"] = reference.features
    about = {"about": reference.about, "topics": list(shape.topic_names), "shares": reference.shares}
    return replace(reference, sha256=write(path, KIND, about, stored))


def load(path: Path) -> Reference:
    """Return the reference stored in a file. Raises DataError if it is missing, damaged, or of another kind."""
    about, stored, digest = read(path, KIND, _REFIT)
    try:
        kernel = Kernel(stored["weights"], stored["phases"]) if "weights" in stored else None
        shape = Shape(**{name: stored[name] for name in _SHAPE}, topic_names=tuple(about["topics"]), kernel=kernel)
        numbers = {name: stored[f"number/{name}"] for name in BY_NAME if f"number/{name}" in stored}
        shares = {name: about["shares"][name] for name in BY_NAME if name in about["shares"]}
        return Reference(shape, numbers, shares, stored.get("features"), about["about"], digest)
    except KeyError as error:
        raise DataError(f"{path} is from another version of Meditune: it has no {error}. {_REFIT}") from error
