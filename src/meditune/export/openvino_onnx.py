"""Export a plain folder to OpenVINO or ONNX. torch traces the model, with Meditune's own cache and masks.

optimum-intel and optimum-onnx require an older version of transformers, and onnxruntime-genai's builder produced worse
text from the same weights. OpenVINO GenAI has few requirements: the inputs are tokens, a mask and positions, the output
is logits, and keys and values are the model's own state, reordered by `beam_idx` (https://docs.openvino.ai, "Stateful
models"; GenAI's docs, "How it works"). NNCF quantizes the weights to 8 bits per channel, or, with int4, the layers'
matrices to 4 bits in groups of GROUP weights. For ONNX, onnxruntime's own tool quantizes the matrices to 8 bits in
blocks of 32 numbers with a common scale, as in Q8_0. The inputs and outputs are named as in optimum's exports, so other
programs can use them.
"""

from __future__ import annotations

import importlib.metadata
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from meditune.engines.exported_model import import_package
from meditune.errors import ModelError
from meditune.models import forward
from meditune.models.load import loading
from meditune.models.quiet_libraries import quiet_transformers

BATCH, BEFORE, NEW = 2, 3, 4
"""Numbers of rows, earlier tokens and new tokens in the traced example. The exported model accepts other numbers."""
INPUTS = ("input_ids", "attention_mask", "position_ids")


class Traced(torch.nn.Module):
    """The model as a function of tokens, mask, positions, and the keys and values of earlier tokens."""

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
        """Return the same masks as models/forward.py, built from operations with dynamic shapes."""
        keys = torch.arange(mask.shape[1])[None, None, None, :]
        queries = positions[:, None, :, None]
        sees = (keys <= queries) & (mask[:, None, None, :] > 0)
        window, kinds = getattr(self.config, "sliding_window", None), getattr(self.config, "layer_types", None)
        if not window or (kinds and "sliding_attention" not in kinds):
            return sees
        near = sees & (queries - keys < window)
        return {"full_attention": sees, "sliding_attention": near} if kinds else near


def _example(shapes: list[tuple[int, int]]) -> tuple[torch.Tensor, ...]:
    return (
        torch.ones(BATCH, NEW, dtype=torch.long),
        torch.ones(BATCH, BEFORE + NEW, dtype=torch.long),
        torch.arange(BEFORE, BEFORE + NEW).expand(BATCH, NEW).contiguous(),
        *(torch.zeros(BATCH, heads, BEFORE, size) for heads, size in shapes),
    )


def _past_names(count: int) -> list[str]:
    return [f"past_key_values.{number // 2}.{('key', 'value')[number % 2]}" for number in range(count)]


def _present(past: str) -> str:
    return past.replace("past_key_values", "present")


def _cache_shapes(model: Any) -> list[tuple[int, int]]:
    """Return (number of heads, head size) for each layer's keys and then its values, in the order of the layers."""
    cache = forward.cache_of([])
    with torch.no_grad(), quiet_transformers():
        model(input_ids=torch.zeros(1, 1, dtype=torch.long), use_cache=True, **{forward.cache_name(model): cache})
    return [(part.shape[1], part.shape[3]) for layer in cache.layers for part in (layer.keys, layer.values)]


def _load(source: Path) -> Any:
    from transformers import AutoModelForCausalLM

    with loading(str(source), str(source)):
        return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="sdpa").eval()


@contextmanager
def _tracing(model: Any, form: str) -> Iterator[None]:
    """Disable warnings and gradients inside the block; raise ModelError if the architecture can't be traced."""
    try:
        with torch.no_grad(), quiet_transformers(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (RuntimeError, TypeError, ValueError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{model.config.model_type} models can't be exported to {form}: {first}") from error


NAME = "model.onnx"
OPSET = 18
BLOCK = 32


def write_onnx(source: Path, folder: Path) -> dict[str, str]:
    """Write a plain folder as ONNX to `folder`, and return package -> version. Raises ModelError if that fails."""
    onnx = import_package("onnx", "onnx")
    import_package("onnx", "onnxruntime")
    # onnxruntime's quantizer imports this package, but onnxruntime doesn't install it.
    import_package("onnx", "onnx_ir")
    model = _load(source)
    with TemporaryDirectory() as temporary:
        traced_file = Path(temporary) / NAME
        with _tracing(model, "ONNX"):
            _write_traced(model, traced_file)
        del model
        onnx.save(_rounded(onnx.load(traced_file)), folder / NAME)
    return {name: importlib.metadata.version(name) for name in ("onnx", "onnxruntime")}


def _write_traced(model: Any, path: Path) -> None:
    shapes = _cache_shapes(model)
    past = _past_names(len(shapes))
    names = {name: {0: "rows", 1: "new"} for name in ("input_ids", "position_ids", "logits")}
    names |= {"attention_mask": {0: "rows", 1: "all"}}
    names |= {name: {0: "rows", 2: "before"} for name in past} | {
        _present(name): {0: "rows", 2: "all"} for name in past
    }
    torch.onnx.export(
        Traced(model),
        _example(shapes),
        path,
        input_names=[*INPUTS, *past],
        output_names=["logits", *map(_present, past)],
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


GROUP = 64
TOLERANCE_FACTORS = {"int4": 2.0}
"""Number format -> factor for the tolerances in verify.py, which are meant for 8-bit weights"""


def write_openvino(
    source: Path, folder: Path, weights: str = "int8", rows: Sequence[Sequence[int]] = ()
) -> dict[str, str]:
    """Like `write_onnx`, but for OpenVINO. `weights` is int8 or int4.

    With int4, `rows` are token ids of typical texts, on which NNCF measures the activations to choose the scales.
    """
    ov, nncf = import_package("openvino", "openvino"), import_package("openvino", "nncf")
    tokenizers = import_package("openvino", "openvino_tokenizers")
    from transformers import AutoTokenizer

    model = _load(source)
    with _tracing(model, "OpenVINO"):
        converted = _stateful(_traced_openvino(model))
    nncf.set_log_level(logging.ERROR)
    with redirect_stdout(sys.stderr):
        converted = nncf.compress_weights(converted, **_options(nncf, weights, rows))
    ov.save_model(converted, folder / "openvino_model.xml")
    # GenAI reads the vocabulary for JSON schemas from these files.
    for name, part in zip(
        ("openvino_tokenizer", "openvino_detokenizer"),
        tokenizers.convert_tokenizer(AutoTokenizer.from_pretrained(source), with_detokenizer=True),
        strict=True,
    ):
        ov.save_model(part, folder / f"{name}.xml")
    return {"openvino": ov.__version__, "nncf": nncf.__version__, "openvino_tokenizers": tokenizers.__version__}


def _options(nncf: Any, weights: str, rows: Sequence[Sequence[int]]) -> dict[str, Any]:
    if weights == "int8":
        return {"mode": nncf.CompressWeightsMode.INT8_ASYM}
    smaller = nncf.AdvancedCompressionParameters(group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST)
    options = {"mode": nncf.CompressWeightsMode.INT4_ASYM, "group_size": GROUP, "advanced_parameters": smaller}
    if rows:
        # AWQ (Lin et al. 2023) protects the weights of channels with large activations.
        data = nncf.Dataset(rows, _inputs)
        options |= {"dataset": data, "subset_size": len(rows), "awq": True, "scale_estimation": True}
    return options


def _inputs(row: Sequence[int]) -> dict[str, np.ndarray]:
    """Return the exported model's inputs for one row of tokens."""
    count = len(row)
    return {
        "input_ids": np.array([row]),
        "attention_mask": np.ones((1, count), dtype=np.int64),
        "position_ids": np.arange(count)[None],
        "beam_idx": np.zeros(1, dtype=np.int32),
    }


def _traced_openvino(model: Any) -> Any:
    """Return an OpenVINO model with dynamic shapes. Its inputs include the old cache, and its outputs the new cache."""
    ov = import_package("openvino", "openvino")
    shapes = _cache_shapes(model)
    converted = ov.convert_model(Traced(model), example_input=_example(shapes))
    past = _past_names(len(shapes))
    names = [*INPUTS, *past]
    open_shapes = [[-1, -1]] * len(INPUTS) + [[-1, heads, -1, size] for heads, size in shapes]
    for port, name, shape in zip(converted.inputs, names, open_shapes, strict=True):
        port.get_tensor().set_names({name})
        # GenAI's paged attention identifies nodes by their friendly names.
        port.get_node().set_friendly_name(name)
        port.get_node().set_partial_shape(ov.PartialShape(shape))
    for port, name in zip(converted.outputs, ["logits", *map(_present, past)], strict=True):
        port.get_tensor().set_names({name})
    converted.validate_nodes_and_infer_types()
    return converted


def _stateful(model: Any) -> Any:
    """Turn keys and values into the model's state. `beam_idx` says which row of the last call each row continues."""
    ov, opset = import_package("openvino", "openvino"), import_package("openvino", "openvino.opset13")
    transformations = import_package("openvino", "openvino._offline_transformations")
    beam = opset.parameter(name="beam_idx", dtype=ov.Type.i32, shape=ov.PartialShape([-1]))
    beam.output(0).get_tensor().add_names({"beam_idx"})
    model.add_parameters([beam])
    past = [port for port in model.inputs if port.get_any_name().startswith("past_key_values.")]
    names = {port.get_any_name(): _present(port.get_any_name()) for port in past}
    for port in past:
        readers = port.get_target_inputs()
        gathered = opset.gather(port, beam, opset.constant(0))
        for reader in readers:
            reader.replace_source_output(gathered.output(0))
    model.validate_nodes_and_infer_types()
    transformations.apply_make_stateful_transformation(model, names)
    # The initial state contains no tokens, and as many rows as the inputs.
    shape = opset.shape_of(model.input("input_ids"), output_type="i64")
    rows = opset.gather(shape, opset.constant([0]), opset.constant(0))
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            _, heads, _, size = node.get_output_partial_shape(0)
            rest = [opset.constant([count], dtype="int64") for count in (heads.get_length(), 0, size.get_length())]
            empty = opset.broadcast(opset.constant(0.0, dtype="float32"), opset.concat([rows, *rest], axis=0))
            node.set_arguments([empty.output(0)])
    model.validate_nodes_and_infer_types()
    return model
