"""Well-known GPUs: memory and the speed of dense matrix products, as their vendors state them."""

from __future__ import annotations

import difflib
import re
from typing import NamedTuple

from meditune.errors import RecipeError


class Gpu(NamedTuple):
    """One GPU by its data sheet."""

    name: str
    memory_gb: float
    tflops: float
    """10^12 operations a second in BF16 (FP16 where there is none) with FP32 sums, without sparsity."""
    source: str
    bf16: bool = True


_AMPERE = "NVIDIA Ampere GA102 GPU architecture, whitepaper V2"
_ADA = "NVIDIA Ada GPU architecture, whitepaper V2"
_ONE_HALF = "; half of the figure stated with sparsity"

GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("t4", 16, 65, "NVIDIA T4 data sheet (FP16)", bf16=False),
        Gpu("v100-16gb", 16, 125, "NVIDIA V100 data sheet, SXM2 (FP16)", bf16=False),
        Gpu("v100-32gb", 32, 125, "NVIDIA V100 data sheet, SXM2 (FP16)", bf16=False),
        Gpu("rtx3090", 24, 71, _AMPERE),
        Gpu("rtx4090", 24, 165, _ADA),
        Gpu("rtx5090", 32, 209, "NVIDIA RTX Blackwell GPU architecture, whitepaper"),
        Gpu("a10", 24, 125, "NVIDIA A10 data sheet"),
        Gpu("a30", 24, 165, "NVIDIA A30 data sheet"),
        Gpu("a40", 48, 149, "NVIDIA A40 data sheet"),
        Gpu("a6000", 48, 155, "NVIDIA RTX A6000 data sheet" + _ONE_HALF),
        Gpu("a100-40gb", 40, 312, "NVIDIA A100 data sheet"),
        Gpu("a100-80gb", 80, 312, "NVIDIA A100 data sheet"),
        Gpu("l4", 24, 121, "NVIDIA L4 data sheet" + _ONE_HALF),
        Gpu("l40s", 48, 362, "NVIDIA L40S data sheet"),
        Gpu("h100-pcie", 80, 756, "NVIDIA H100 data sheet, PCIe" + _ONE_HALF),
        Gpu("h100-sxm", 80, 989, "NVIDIA H100 data sheet, SXM" + _ONE_HALF),
        Gpu("h200", 141, 989, "NVIDIA H200 data sheet, SXM" + _ONE_HALF),
        Gpu("mi210", 64, 181, "AMD Instinct MI210 data sheet"),
        Gpu("mi300x", 192, 1307, "AMD Instinct MI300X data sheet"),
    )
}


def gpu_named(name: str) -> Gpu:
    """The GPU of that name, in any spelling of case and separators ("RTX 4090").

    Raises RecipeError with near names where the table has none, or several.
    """
    wanted = _bare(name)
    for known in GPUS.values():
        if _bare(known.name) == wanted:
            return known
    bare = {_bare(known): known for known in GPUS}
    near = [known for known in GPUS if wanted and _bare(known).startswith(wanted)]
    near = near or [bare[each] for each in difflib.get_close_matches(wanted, bare, n=3)]
    hint = f"Did you mean {' or '.join(near)}?" if near else f"There are {', '.join(GPUS)}."
    raise RecipeError(
        f"--gpu: no GPU called {name!r} is in the table. {hint} Without --gpu this machine is planned for."
    )


def _bare(name: str) -> str:
    return re.sub(r"nvidia|geforce|amd|instinct|[^a-z0-9]", "", name.lower())
