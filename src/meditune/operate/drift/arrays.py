"""Arrays with a description in one file, whole or not there, which notices when a byte of it changes."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meditune.errors import DataError
from meditune.files import write_bytes

Arrays = dict[str, NDArray[Any]]


def write(path: Path, kind: str, about: Mapping[str, Any], arrays: Arrays) -> str:
    """Write them to `path`, whole or not at all; returns the SHA-256 of what they say.

    Raises MedituneError where the disk is full.
    """
    said = json.dumps({"kind": kind} | dict(about), ensure_ascii=False, sort_keys=True)
    digest = _digest(said, arrays)
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, about=np.array([said, digest]), **arrays)
    write_bytes(path, stream.getbuffer(), private=True)
    return digest


def read(path: Path, kind: str, what_to_do: str) -> tuple[dict[str, Any], Arrays, str]:
    """Description, arrays and SHA-256. Raises DataError unless such a file is there as it was written."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        said, digest = (str(each) for each in arrays.pop("about"))
        about = json.loads(said)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file. {what_to_do}") from error
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} can't be read: damaged, or not a drift {kind}. {what_to_do}") from error
    if about.get("kind") != kind:
        raise DataError(f"{path} is a drift {about.get('kind')}, not a {kind}. {what_to_do}")
    if _digest(said, arrays) != digest:
        raise DataError(f"{path} isn't as it was written: its hash differs. {what_to_do}")
    return about, arrays, digest


def _digest(said: str, arrays: Arrays) -> str:
    found = hashlib.sha256(said.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()
