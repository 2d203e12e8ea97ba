"""A plain folder as an ONNX model that onnxruntime runs, with weights in 8 bits.

optimum-onnx needs an older transformers, and onnxruntime-genai's builder wrote worse text than the weights it was
given. So torch writes what export/tracing.py traces, and onnxruntime's own tool rounds the matrices: blocks of 32
numbers with a common scale, as in Q8_0. Inputs and outputs are called as optimum called them, so other programs know
them.
"""

from __future__ import annotations

import importlib.metadata
import logging
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from meditune.engines.installed import package
from meditune.errors import ModelError
from meditune.export.tracing import INPUTS, Traced, cache_shapes, example, past_names, present
from meditune.models.load import loading
from meditune.models.quiet import quiet_transformers

NAME = "model.onnx"
OPSET = 18
BLOCK = 32


def write_onnx(source: Path, folder: Path) -> dict[str, str]:
    """Put the model of a plain folder into `folder`; returns the packages that made it, with their versions.

    Raises ModelError where a package is missing or the architecture can't be traced.
    """
    onnx = package("onnx", "onnx")
    package("onnx", "onnxruntime")
    # onnxruntime's tool for rounding imports it, and doesn't bring it along.
    package("onnx", "onnx_ir")
    from transformers import AutoModelForCausalLM

    with loading(str(source), str(source)):
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="sdpa").eval()
    with TemporaryDirectory() as temporary:
        whole = Path(temporary) / NAME
        try:
            _write_traced(model, whole)
        except (RuntimeError, TypeError, ValueError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelError(f"ONNX can't take a {model.config.model_type} model: {first}") from error
        del model
        onnx.save(_rounded(onnx.load(whole)), folder / NAME)
    return {name: importlib.metadata.version(name) for name in ("onnx", "onnxruntime")}


def _write_traced(model: Any, path: Path) -> None:
    shapes = cache_shapes(model)
    past = past_names(len(shapes))
    names = {name: {0: "rows", 1: "new"} for name in ("input_ids", "position_ids", "logits")}
    names |= {"attention_mask": {0: "rows", 1: "all"}}
    names |= {name: {0: "rows", 2: "before"} for name in past} | {present(name): {0: "rows", 2: "all"} for name in past}
    with torch.no_grad(), quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Traced(model),
            example(shapes),
            path,
            input_names=[*INPUTS, *past],
            output_names=["logits", *map(present, past)],
            dynamic_axes=names,
            opset_version=OPSET,
            dynamo=False,
        )


def _rounded(model: Any) -> Any:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer").setLevel(logging.ERROR)
    # Level 4: the products are of 8-bit numbers, too.
    rounding = MatMulNBitsQuantizer(model, bits=8, block_size=BLOCK, is_symmetric=True, accuracy_level=4)
    rounding.process()
    return rounding.model.model
