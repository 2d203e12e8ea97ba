"""A BERT encoder with 8-bit matrix products, which needs two thirds of the time of BF16.

When the encoder is created, calibration texts determine a fixed range for the input of each matrix product (static
quantization: Jacob et al. 2018, arXiv:1712.05877). A text's vector therefore doesn't depend on the other texts in its
batch. Large input channels are scaled down, and their weights are scaled up to compensate (SmoothQuant: Xiao et al.
2023, arXiv:2211.10438). Sums, norms and softmax are computed in 32 or 16 bits. Texts are concatenated without padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from meditune.progress import Progress

Vectors = NDArray[np.float32]

MAX_TOKENS = 256
BATCH_TOKENS = 1024
MIN_TOKENS_PER_THREAD = 48
"""Minimum number of tokens per thread; with fewer tokens, fewer threads are used"""
HEADROOM = 1.05
"""Ratio of the 8-bit range to the range of the values that the calibration texts give"""
SMOOTHING = 0.7
"""Exponent that determines how much of an input channel's scale is moved to the weights; 1: all of it"""
CPU_INFO = Path("/proc/cpuinfo")
CALIBRATION = (
    "gout",
    "What are the symptoms of diabetes?",
    "Is Crigler-Najjar syndrome inherited ?",
    "Hello, my mother is 67 and was told last week that her kidneys are failing. She takes lisinopril 10 mg and "
    "metformin. Is it safe for her to use ibuprofen, and how long do people live on dialysis? Thank you so much, Ann",
    "What causes familial Mediterranean fever ?\ncauses\nFamilial Mediterranean fever is an inherited condition with "
    "recurrent episodes of painful inflammation in the abdomen, chest, or joints, often with fever and a rash. "
    "Mutations in the MEFV gene cause it; about 1 in 200 to 1,000 people of some populations are affected. This "
    "condition is inherited in an autosomal recessive pattern: both copies of the gene in each cell have mutations.",
    "Does radiotherapy reduce recurrence of early rectal cancer ?\nResults\nThe rate of recurrence after 5 years was "
    "12.4 % (95 % CI 8.1-16.9, p<0.001) in 212 patients treated with radiotherapy and 9.7 % in 198 controls (odds "
    "ratio 0.78). Median follow-up was 61 months; age, sex and stage were adjusted for in a logistic regression.",
    "What are the treatments for high blood pressure ?\ntreatment\n- Eat less salt. - Be active for 30 minutes a day. "
    "- Limit alcohol. Medicines: diuretics, ACE inhibitors, beta blockers, calcium channel blockers. Call a doctor "
    "if you have chest pain, shortness of breath, dizziness, swelling of your lips, or fainting. See nhlbi.nih.gov.",
    "How should Methotrexate be used and what is the dosage ?\nTake it once a week, by mouth, exactly as directed. Do "
    "not take more or less of it. Your doctor will order blood tests to check your liver, kidneys, and bone marrow.",
)


@dataclass(frozen=True)
class Int8MatMul:
    """A linear layer with 8-bit weights in oneDNN's layout, and the range of its input.

    `step` is the scale of the quantized input, and `zero` is its zero point. To quantize an input, each channel is
    multiplied by its number in `factors`, and `shift`, which is `zero` minus 128, is added.
    """

    weight: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    bias: torch.Tensor
    step: float
    zero: int
    factors: torch.Tensor
    shift: torch.Tensor

    def __call__(self, rows: torch.Tensor, dtype: torch.dtype = torch.float32, after: str = "none") -> torch.Tensor:
        """Return the layer's (n, outputs) output in `dtype`.

        `rows` is (n, inputs) in FP32, and `after` is the activation, "none" or "gelu".
        """
        # Convert to signed 8-bit numbers, then flip the sign bit: in PyTorch, direct conversion to unsigned numbers
        # takes four times as long.
        small = torch.addcmul(self.shift, rows, self.factors).clamp_(-128, 127).round_().to(torch.int8)
        small = small.view(torch.uint8).bitwise_xor_(128)
        weights = (self.weight, self.scales, self.zeros, self.bias)
        product: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            small, self.step, self.zero, *weights, 1.0, 0, dtype, after, [], "none"
        )
        return product


@dataclass(frozen=True)
class Int8BertLayer:
    """An encoder layer: two norms and four matrix products. `qkv` computes queries, keys and values together."""

    qkv: Callable[..., torch.Tensor]
    attention_output: Callable[..., torch.Tensor]
    intermediate: Callable[..., torch.Tensor]
    output: Callable[..., torch.Tensor]
    attention_norm: Any
    output_norm: Any


class Int8Bert:
    """An encoder that returns a vector for each text: the mean of its token states, scaled to length 1."""

    def __init__(self, bert: Any, tokenizer: Any) -> None:
        """Quantize `bert`, which must be in FP32 and supported (`fits`). These requirements aren't checked."""
        self.tokenizer = tokenizer
        self.size = int(bert.config.hidden_size)
        self.heads = int(bert.config.num_attention_heads)
        self.embeddings = bert.embeddings
        self.threads = torch.get_num_threads()
        self.layers = [_calibrating(layer) for layer in bert.encoder.layer]
        rows = self._rows(CALIBRATION)
        with torch.inference_mode():
            self._states(rows)
            self.layers = [_quantized(layer) for layer in self.layers]

    def encode(self, texts: Sequence[str], label: str | None = None) -> Vectors:
        """Return the (n, size) vectors of the texts. Show progress only if a label is given."""
        found = np.empty((len(texts), self.size), dtype=np.float32)
        rows = self._rows(texts)

        def read(batch: list[int]) -> int:
            found[batch] = self._vectors([rows[index] for index in batch])
            return sum(len(rows[index]) for index in batch)

        with Progress(label, sum(map(len, rows)), "tokens") if label else nullcontext() as progress:
            readers = self._readers
            for tokens in (readers.map if readers else map)(read, _batches(rows, self.threads)):
                if progress:
                    progress.advance(tokens)
        return found

    @cached_property
    def _readers(self) -> ThreadPoolExecutor | None:
        """A pool of threads, each of which encodes separate batches; None if there is only one thread.

        This is faster than splitting each small matrix product among threads, mainly on a busy machine.
        """
        if self.threads < 2:
            return None
        before, all_there = torch.get_num_threads(), Barrier(self.threads)

        def begin() -> None:
            torch.set_num_threads(1)
            all_there.wait()

        pool = ThreadPoolExecutor(self.threads, "embedding", initializer=begin)
        list(pool.map(lambda _: None, range(self.threads)))
        torch.set_num_threads(before)
        return pool

    def _rows(self, texts: Sequence[str]) -> list[list[int]]:
        ids = self.tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS)["input_ids"] if texts else []
        return [list(each) for each in ids]

    def _vectors(self, rows: Sequence[Sequence[int]]) -> Vectors:
        with torch.inference_mode():
            states = self._states(rows)
            ends = np.cumsum([len(row) for row in rows])
            means = torch.stack([states[end - len(row) : end].mean(dim=0) for row, end in zip(rows, ends, strict=True)])
            vectors: Vectors = torch.nn.functional.normalize(means, dim=-1).numpy()
        return vectors

    def _states(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return the (tokens of all rows, size) states in FP32.

        Adjacent rows of the same length share one attention product.
        """
        tables = self.embeddings
        tokens = torch.tensor([token for row in rows for token in row])
        places = torch.tensor([place for row in rows for place in range(len(row))])
        states: torch.Tensor = tables.word_embeddings(tokens) + tables.position_embeddings(places)
        states = tables.LayerNorm(states + tables.token_type_embeddings.weight[0])
        alike = [(length, len(list(group))) for length, group in groupby(map(len, rows))]
        for layer in self.layers:
            context = self._attention(layer.qkv(states, torch.bfloat16), alike)
            states = layer.attention_norm(states + layer.attention_output(context))
            states = layer.output_norm(states + layer.output(layer.intermediate(states, after="gelu")))
        return states

    def _attention(self, qkv: torch.Tensor, length_counts: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Return the (tokens, size) output of attention within each text, in FP32.

        `qkv` is (tokens, 3 * size). For each run of texts of equal length, `length_counts` contains the length
        and the number of texts.
        """
        width = self.size // self.heads
        output = torch.empty(len(qkv), self.size)
        start = 0
        for length, count in length_counts:
            end = start + length * count
            queries, keys, values = (
                part.reshape(count * self.heads, length, width)
                for part in qkv[start:end].view(count, length, 3, self.heads, width).permute(2, 0, 3, 1, 4)
            )
            likely = torch.softmax(torch.bmm(queries * width**-0.5, keys.transpose(1, 2)), dim=-1)
            context = torch.bmm(likely, values).view(count, self.heads, length, width)
            output[start:end] = context.transpose(1, 2).reshape(length * count, self.size)
            start = end
        return output


def fits(bert: Any) -> bool:
    """Return whether `Int8Bert` supports this model, which must be a BERT on a CPU with fast 8-bit products."""
    config = bert.config
    plain = getattr(config, "model_type", "") == "bert" and getattr(config, "hidden_act", "") == "gelu"
    on_cpu = next(bert.parameters()).device.type == "cpu" and hasattr(torch.ops.onednn, "qlinear_pointwise")
    return plain and on_cpu and CPU_INFO.is_file() and "avx512_vnni" in CPU_INFO.read_text(encoding="utf-8")


class _Calibrator:
    """An unquantized linear layer that records the range of each input channel."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        self.weight, self.bias = weight.detach(), bias.detach()
        self.low = self.high = torch.zeros(weight.shape[1])

    def __call__(self, rows: torch.Tensor, dtype: torch.dtype = torch.float32, after: str = "none") -> torch.Tensor:
        self.low = torch.minimum(self.low, rows.amin(dim=0))
        self.high = torch.maximum(self.high, rows.amax(dim=0))
        product = torch.nn.functional.linear(rows, self.weight, self.bias)
        return (torch.nn.functional.gelu(product) if after == "gelu" else product).to(dtype)

    def quantized(self) -> Int8MatMul:
        size = torch.maximum(self.high, -self.low).clamp_min(1e-3) ** SMOOTHING
        smoothed = self.weight.abs().amax(dim=0).clamp_min(1e-4) ** (1 - SMOOTHING) / size
        low, high = float((self.low * smoothed).min()), float((self.high * smoothed).max())
        step = max(HEADROOM * (high - low) / 255, 1e-9)
        weight = self.weight / smoothed
        scales = (weight.abs().amax(dim=1) / 127).clamp_min(1e-9)
        numbers = (weight / scales[:, None]).round().to(torch.int8)
        packed = torch.ops.onednn.qlinear_prepack(numbers, [BATCH_TOKENS, weight.shape[1]])
        zeros = torch.zeros(len(scales), dtype=torch.int32)
        zero = round(-HEADROOM * low / step)
        return Int8MatMul(
            packed, scales, zeros, self.bias, step, zero, smoothed / step, torch.full_like(smoothed, zero - 128)
        )


def _calibrating(layer: Any) -> Int8BertLayer:
    attention, after = layer.attention.self, layer.attention.output
    parts = (attention.query, attention.key, attention.value)
    return Int8BertLayer(
        _Calibrator(torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])),
        _Calibrator(after.dense.weight, after.dense.bias),
        _Calibrator(layer.intermediate.dense.weight, layer.intermediate.dense.bias),
        _Calibrator(layer.output.dense.weight, layer.output.dense.bias),
        after.LayerNorm,
        layer.output.LayerNorm,
    )


def _quantized(layer: Int8BertLayer) -> Int8BertLayer:
    products = ("qkv", "attention_output", "intermediate", "output")
    return replace(layer, **{name: getattr(layer, name).quantized() for name in products})


def _batches(rows: Sequence[Sequence[int]], threads: int) -> Iterator[list[int]]:
    """Yield batches of row indices: one batch per thread if there are few tokens, else rows of similar length."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    tokens = sum(map(len, rows))
    if tokens <= threads * BATCH_TOKENS:
        yield from _shares(rows, order[::-1], min(threads, tokens // MIN_TOKENS_PER_THREAD))
        return
    batch: list[int] = []
    for index in order:
        if batch and sum(len(rows[one]) for one in batch) + len(rows[index]) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    yield batch


def _shares(rows: Sequence[Sequence[int]], longest_first: Sequence[int], count: int) -> Iterator[list[int]]:
    """Yield up to `count` lists of row indices with similar numbers of tokens; rows of equal length are adjacent."""
    shares: list[list[int]] = [[] for _ in range(max(count, 1))]
    tokens = [0] * len(shares)
    for index in longest_first:
        fewest = tokens.index(min(tokens))
        shares[fewest].append(index)
        tokens[fewest] += len(rows[index])
    yield from filter(None, shares)
