"""How likely given texts are by an OpenVINO model: the model itself, beside the pipeline that writes.

The pipeline tells the likelihood of what it wrote and nothing else. Here a prompt is read once, its state is handed to
as many rows as there are texts, and the output head reads only where something is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meditune.engines.engine import Likely
from meditune.engines.installed import package

OTHERS = 5
"""Likeliest tokens that are told of each place"""
ROW_TOKENS = 1024
"""Tokens of texts that are read at once, padding included"""
END = 2**31 - 1
KERNELS = "CPU_RUNTIME_CACHE_CAPACITY"
MOST_KERNELS = 64
"""Compiled kernels that OpenVINO keeps, each for one shape; by default 5,000, which come together while it serves
and are hundreds of megabytes"""


class Scorer:
    """The model of an exported folder, compiled to score."""

    def __init__(self, folder: Path) -> None:
        ov = package("openvino", "openvino")
        core = ov.Core()
        model = core.read_model(folder / "openvino_model.xml")
        _head_reads_last(model)
        self._request = core.compile_model(model, "CPU", {KERNELS: MOST_KERNELS}).create_infer_request()

    def score(self, prompt: Sequence[int], texts: Sequence[Sequence[int]]) -> list[list[Likely]]:
        """The log-probability of every token of each text after the prompt."""
        scored: list[list[Likely]] = [[] for _ in texts]
        order = sorted((number for number, text in enumerate(texts) if text), key=lambda number: len(texts[number]))
        while order:
            longest = len(texts[order[-1]])
            together = [order.pop() for _ in range(min(len(order), max(1, ROW_TOKENS // longest)))]
            first = self._read_prompt(prompt)
            rest = self._read_texts(len(prompt), [texts[number] for number in together]) if longest > 1 else None
            for row, number in enumerate(together):
                text = texts[number]
                places = [first] if rest is None else [first, *rest[row, : len(text) - 1]]
                scored[number] = [_likely(logits, token) for logits, token in zip(places, text, strict=True)]
        return scored

    def _read_prompt(self, prompt: Sequence[int]) -> Any:
        """(vocabulary,) logits after the prompt, which the model's state holds afterwards."""
        self._request.reset_state()
        return self._logits(np.array([prompt], dtype=np.int64), 0, 1)[0, -1]

    def _read_texts(self, start: int, texts: Sequence[Sequence[int]]) -> Any:
        """(N, longest - 1, vocabulary) logits after each token of the texts but the last."""
        fed = np.zeros((len(texts), max(map(len, texts)) - 1), dtype=np.int64)
        for row, text in enumerate(texts):
            fed[row, : len(text) - 1] = text[:-1]
        return self._logits(fed, start, fed.shape[1])

    def _logits(self, tokens: Any, start: int, last: int) -> Any:
        rows, length = tokens.shape
        result = self._request.infer(
            {
                "input_ids": tokens,
                "attention_mask": np.ones((rows, start + length), dtype=np.int64),
                "position_ids": np.broadcast_to(np.arange(start, start + length), (rows, length)),
                # The state has one row, the prompt's; every text goes on from it.
                "beam_idx": np.zeros(rows, dtype=np.int32),
                "last": np.array([last], dtype=np.int64),
            }
        )
        return result["logits"]


def _head_reads_last(model: Any) -> None:
    """Give the model an input, `last`: its output head reads so many of the last places."""
    opset = package("openvino", "openvino.opset13")
    node = model.output("logits").get_node().input_value(0).get_node()
    while node.get_type_name() != "MatMul":
        node = node.input_value(0).get_node()
    last = opset.parameter([1], dtype=np.int64, name="last")
    last.output(0).get_tensor().set_names({"last"})
    one = opset.constant([1], dtype=np.int64)
    end = opset.constant([END], dtype=np.int64)
    part = opset.slice(node.input_value(0), opset.negative(last), end, one, one)
    node.input(0).replace_source_output(part.output(0))
    model.add_parameters([last])
    model.validate_nodes_and_infer_types()


def _likely(logits: Any, token: int) -> Likely:
    values = logits.astype(np.float64)
    logprobs = values - (values.max() + np.log(np.exp(values - values.max()).sum()))
    best = np.argpartition(logprobs, -OTHERS)[-OTHERS:] if len(logprobs) > OTHERS else np.arange(len(logprobs))
    ordered = best[np.argsort(-logprobs[best])]
    return Likely(token, float(logprobs[token]), {int(one): float(logprobs[one]) for one in ordered})
