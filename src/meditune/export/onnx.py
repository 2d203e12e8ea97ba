"""Export a plain folder to an ONNX model with 8-bit weights for onnxruntime.

optimum-onnx needs an older transformers, and onnxruntime-genai's builder produced worse text from the same weights. So
torch traces the model, with Meditune's own cache and masks, and onnxruntime's own tool quantizes the matrices: blocks
of 32 numbers with a common scale, as in Q8_0. Inputs and outputs, among them keys and values, have optimum's names, so
other programs can use them. export/openvino.py traces models with the same code.
"""

from __future__ import annotations

import importlib.metadata
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from meditune.engines.exported_model import import_package
from meditune.errors import ModelError
from meditune.models import forward
from meditune.models.load import loading
from meditune.models.quiet_libraries import quiet_transformers

BATCH, BEFORE, NEW = 2, 3, 4
"""Rows, earlier tokens and new tokens of the traced example; the model accepts any other numbers"""
INPUTS = ("input_ids", "attention_mask", "position_ids")


class Traced(torch.nn.Module):
    """The model as a function of tokens, mask, positions, and the keys and values before them."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.config = model.config.get_text_config()
        self.cache_name = forward.cache_name(model)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, *past: torch.Tensor) -> Any:
        """Return the logits, and the keys and values of all tokens so far."""
        present: list[torch.Tensor] = []

        def update(keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any) -> Any:
            pair = [torch.cat([past[2 * layer + part], new], dim=2) for part, new in enumerate((keys, values))]
            present.extend(pair)
            return tuple(pair)

        cache = forward.cache_of([])
        cache.update = update
        output = self.model(
            input_ids=tokens,
            attention_mask=self._masks(mask, positions),
            position_ids=positions,
            use_cache=True,
            **{self.cache_name: cache},
        )
        return (output.logits, *present)

    def _masks(self, mask: torch.Tensor, positions: torch.Tensor) -> Any:
        """Return the masks of models/forward.py, built from operations with dynamic shapes."""
        keys = torch.arange(mask.shape[1])[None, None, None, :]
        queries = positions[:, None, :, None]
        sees = (keys <= queries) & (mask[:, None, None, :] > 0)
        window, kinds = getattr(self.config, "sliding_window", None), getattr(self.config, "layer_types", None)
        if not window or (kinds and "sliding_attention" not in kinds):
            return sees
        near = sees & (queries - keys < window)
        return {"full_attention": sees, "sliding_attention": near} if kinds else near


def example(shapes: list[tuple[int, int]]) -> tuple[torch.Tensor, ...]:
    """Return the inputs for tracing: tokens, mask, positions, and keys and values of these shapes."""
    return (
        torch.ones(BATCH, NEW, dtype=torch.long),
        torch.ones(BATCH, BEFORE + NEW, dtype=torch.long),
        torch.arange(BEFORE, BEFORE + NEW).expand(BATCH, NEW).contiguous(),
        *(torch.zeros(BATCH, heads, BEFORE, size) for heads, size in shapes),
    )


def past_names(count: int) -> list[str]:
    """Return the names of the keys and values among the inputs."""
    return [f"past_key_values.{number // 2}.{('key', 'value')[number % 2]}" for number in range(count)]


def present(past: str) -> str:
    """Return the name of an output from that of the corresponding input."""
    return past.replace("past_key_values", "present")


def cache_shapes(model: Any) -> list[tuple[int, int]]:
    """Return the number of heads and their size for each layer's keys, then values."""
    cache = forward.cache_of([])
    with torch.no_grad(), quiet_transformers():
        model(input_ids=torch.zeros(1, 1, dtype=torch.long), use_cache=True, **{forward.cache_name(model): cache})
    return [(part.shape[1], part.shape[3]) for layer in cache.layers for part in (layer.keys, layer.values)]


NAME = "model.onnx"
OPSET = 18
BLOCK = 32


def write_onnx(source: Path, folder: Path) -> dict[str, str]:
    """Write the model of a plain folder into `folder`, and return the packages that made it with their versions.

    Raises ModelError if a package is missing or the architecture can't be traced.
    """
    onnx = import_package("onnx", "onnx")
    import_package("onnx", "onnxruntime")
    # onnxruntime's quantizer imports it, but doesn't install it.
    import_package("onnx", "onnx_ir")
    model = load_for_tracing(source)
    with TemporaryDirectory() as temporary:
        traced_file = Path(temporary) / NAME
        with tracing(model, "ONNX"):
            _write_traced(model, traced_file)
        del model
        onnx.save(_rounded(onnx.load(traced_file)), folder / NAME)
    return {name: importlib.metadata.version(name) for name in ("onnx", "onnxruntime")}


def load_for_tracing(source: Path) -> Any:
    """Return the model of a plain folder in FP32."""
    from transformers import AutoModelForCausalLM

    with loading(str(source), str(source)):
        return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="sdpa").eval()


@contextmanager
def tracing(model: Any, form: str) -> Iterator[None]:
    """Trace quietly and without gradients; raise ModelError if the architecture can't be traced."""
    try:
        with torch.no_grad(), quiet_transformers(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (RuntimeError, TypeError, ValueError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{model.config.model_type} models can't be exported to {form}: {first}") from error


def _write_traced(model: Any, path: Path) -> None:
    shapes = cache_shapes(model)
    past = past_names(len(shapes))
    names = {name: {0: "rows", 1: "new"} for name in ("input_ids", "position_ids", "logits")}
    names |= {"attention_mask": {0: "rows", 1: "all"}}
    names |= {name: {0: "rows", 2: "before"} for name in past} | {present(name): {0: "rows", 2: "all"} for name in past}
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
    # Level 4: products are computed in 8 bits, too.
    rounding = MatMulNBitsQuantizer(model, bits=8, block_size=BLOCK, is_symmetric=True, accuracy_level=4)
    rounding.process()
    return rounding.model.model
