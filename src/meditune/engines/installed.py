"""Packages that only some engines need, imported with a sentence where they are missing."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import Any

from meditune.errors import ModelError, install_command
from meditune.models.quiet import no_telemetry

EXTRAS = {"openvino": ("openvino", "openvino_genai"), "llamacpp": ("xllamacpp",), "onnx": ("onnxruntime",)}
"""By engine: the packages that its extra installs"""


def is_installed(engine: str) -> bool:
    """Whether an engine's packages are here."""
    return all(find_spec(package) is not None for package in EXTRAS.get(engine, ()))


def package(engine: str, name: str) -> Any:
    """A package of an engine's. Raises ModelError, with the line that installs it, where it isn't here."""
    no_telemetry()
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ModelError(
            f"The {engine} engine needs the package {name.split('.')[0]} ({error}). Install it: "
            f"{install_command(engine)}"
        ) from error
