"""The catalogue as a table: what each base model is, where it comes from, and whether it fits this machine."""

from __future__ import annotations

import re
from typing import NamedTuple

from meditune.machine import gpu, memory_gb
from meditune.models.catalogue import CATALOGUE, BaseModel

BESIDE_WEIGHTS_GB = 4.5
"""What training the small models with the default 2,048-token pieces took beside their weights, measured on a CPU."""

HERE = "here"


class Row(NamedTuple):
    """One base model."""

    name: str
    title: str
    parameters: str
    licence: str
    where: str
    """ "here", "from a Python package (93 MB)", "from the hub" or "API only"."""
    fits: str
    """Whether tuning it fits this machine's memory, by an estimate; empty where the size isn't known."""


def rows() -> list[Row]:
    """Every base model that a recipe can name, in the catalogue's order."""
    from meditune.models.load import bf16_is_fast

    card = gpu()
    room = card[1] if card else memory_gb()[1]
    # Without BF16 on a GPU the weights are kept in FP16, on a CPU in FP32.
    bytes_each = 2 if card or bf16_is_fast() else 4
    return [
        Row(model.name, model.title, model.parameters, model.licence, where(model), _fits(model, bytes_each, room))
        for model in CATALOGUE.values()
    ]


def where(model: BaseModel) -> str:
    """Where the model would come from if it was loaded now."""
    if model.api:
        return "API only"
    if model.package:
        return HERE if model.folder_is_here else f"from a Python package ({model.package.megabytes} MB)"
    return HERE if model.hub_id and _in_hub_cache(model.hub_id) else "from the hub"


def training_gb(parameters: str, bytes_each: int = 2) -> float | None:
    """Estimated memory in GB for tuning a model with so many parameters ("135 M"); None where that isn't a number."""
    match = re.fullmatch(r"([\d.]+) ([MB])", parameters)
    if match is None:
        return None
    billions = float(match[1]) * (1.0 if match[2] == "B" else 1e-3)
    return billions * bytes_each + BESIDE_WEIGHTS_GB


def table(models: list[Row]) -> str:
    """The rows as aligned text under their headings."""
    headings = ("Name", "Model", "Size", "Licence", "Where", "Fits in memory to tune (estimate)")
    lines = [headings, *models]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _fits(model: BaseModel, bytes_each: int, room: float) -> str:
    needed = training_gb(model.parameters, bytes_each)
    if model.api or needed is None:
        return ""
    return f"yes, about {needed:.0f} GB" if needed <= room else f"no, about {needed:.0f} GB; {room:.0f} GB are free"


def _in_hub_cache(hub_id: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    weights = ("model.safetensors", "model.safetensors.index.json")
    return any(isinstance(try_to_load_from_cache(hub_id, file), str) for file in weights)
