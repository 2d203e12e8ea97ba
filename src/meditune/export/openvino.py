"""Export a plain folder to an OpenVINO model with 8-bit or 4-bit weights, for OpenVINO GenAI.

The usual exporter, optimum-intel, is tied to an older transformers. GenAI requires little: the inputs are tokens, a
mask and positions, the output is logits, and keys and values are the model's own state, reordered by `beam_idx`
(https://docs.openvino.ai, "Stateful models"; GenAI's docs, "How it works"). So the model is traced once with Meditune's
own cache and masks, its cache inputs become states, and NNCF quantizes the weights to 8 bits per channel. With int4,
the layers' matrices get 4 bits in groups of GROUP weights, and the embeddings and the output head keep 8.
"""

from __future__ import annotations

import logging
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from meditune.engines.exported_model import import_package
from meditune.export.onnx import (
    INPUTS,
    Traced,
    cache_shapes,
    example,
    load_for_tracing,
    past_names,
    present,
    tracing,
)

GROUP = 64
TOLERANCE_FACTORS = {"int4": 2.0}
"""Number formats -> a factor on the tolerances of the check (verify.py), which are meant for 8 bits"""


def write_openvino(source: Path, folder: Path, weights: str = "int8") -> dict[str, str]:
    """Write the model of a plain folder into `folder`, and return the packages that made it with their versions.

    `weights` is int8 or int4.

    Raises ModelError if a package is missing or the architecture can't be traced.
    """
    ov, nncf = import_package("openvino", "openvino"), import_package("openvino", "nncf")
    tokenizers = import_package("openvino", "openvino_tokenizers")
    from transformers import AutoTokenizer

    model = load_for_tracing(source)
    with tracing(model, "OpenVINO"):
        converted = _stateful(_traced(model))
    nncf.set_log_level(logging.ERROR)
    with redirect_stdout(sys.stderr):
        converted = nncf.compress_weights(converted, **_options(nncf, weights))
    ov.save_model(converted, folder / "openvino_model.xml")
    # GenAI reads the vocabulary for grammars from these files.
    for name, part in zip(
        ("openvino_tokenizer", "openvino_detokenizer"),
        tokenizers.convert_tokenizer(AutoTokenizer.from_pretrained(source), with_detokenizer=True),
        strict=True,
    ):
        ov.save_model(part, folder / f"{name}.xml")
    return {"openvino": ov.__version__, "nncf": nncf.__version__, "openvino_tokenizers": tokenizers.__version__}


def _options(nncf: Any, weights: str) -> dict[str, Any]:
    """Return the options of NNCF for a number format."""
    if weights == "int8":
        return {"mode": nncf.CompressWeightsMode.INT8_ASYM}
    smaller = nncf.AdvancedCompressionParameters(group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST)
    return {"mode": nncf.CompressWeightsMode.INT4_ASYM, "group_size": GROUP, "advanced_parameters": smaller}


def _traced(model: Any) -> Any:
    """Return an OpenVINO model with dynamic shapes, whose cache is passed as inputs and outputs."""
    ov = import_package("openvino", "openvino")
    shapes = cache_shapes(model)
    converted = ov.convert_model(Traced(model), example_input=example(shapes))
    past = past_names(len(shapes))
    names = [*INPUTS, *past]
    open_shapes = [[-1, -1]] * len(INPUTS) + [[-1, heads, -1, size] for heads, size in shapes]
    for port, name, shape in zip(converted.inputs, names, open_shapes, strict=True):
        port.get_tensor().set_names({name})
        # GenAI's paged attention identifies nodes by their friendly names.
        port.get_node().set_friendly_name(name)
        port.get_node().set_partial_shape(ov.PartialShape(shape))
    for port, name in zip(converted.outputs, ["logits", *map(present, past)], strict=True):
        port.get_tensor().set_names({name})
    converted.validate_nodes_and_infer_types()
    return converted


def _stateful(model: Any) -> Any:
    """Turn keys and values into the model's state, with rows that `beam_idx` selects from the last call's."""
    ov, opset = import_package("openvino", "openvino"), import_package("openvino", "openvino.opset13")
    transformations = import_package("openvino", "openvino._offline_transformations")
    beam = opset.parameter(name="beam_idx", dtype=ov.Type.i32, shape=ov.PartialShape([-1]))
    beam.output(0).get_tensor().add_names({"beam_idx"})
    model.add_parameters([beam])
    past = [port for port in model.inputs if port.get_any_name().startswith("past_key_values.")]
    names = {port.get_any_name(): present(port.get_any_name()) for port in past}
    for port in past:
        readers = port.get_target_inputs()
        gathered = opset.gather(port, beam, opset.constant(0))
        for reader in readers:
            reader.replace_source_output(gathered.output(0))
    model.validate_nodes_and_infer_types()
    transformations.apply_make_stateful_transformation(model, names)
    # The initial state has no tokens, and as many rows as the inputs.
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
