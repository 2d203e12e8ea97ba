"""By what a model's files are known again: a hash that takes milliseconds, however large they are."""

from __future__ import annotations

import hashlib
from pathlib import Path

from meditune.models.names import ADAPTER_FILE

ENDINGS = {".safetensors", ".gguf", ".bin", ".xml", ".onnx"}
PART = 1 << 20


def fingerprint(place: Path) -> str:
    """SHA-256 of the sizes, beginnings and ends of a file, or of a folder's files of weights and its JSON files.

    A run's folder is known by its model's. Empty where there is nothing to read.
    """
    if (place / "model").is_dir() and not (place / "config.json").is_file():
        place = place / "model"
    if place.is_file():
        files = [place]
    else:
        wanted = (
            path for path in place.rglob("*") if path.suffix in ENDINGS or path.name in {ADAPTER_FILE, "config.json"}
        )
        files = sorted(path for path in wanted if path.is_file())
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as stream:
            digest.update(stream.read(PART))
            if size > 2 * PART:
                stream.seek(-PART, 2)
            digest.update(stream.read(PART))
    return digest.hexdigest() if files else ""
