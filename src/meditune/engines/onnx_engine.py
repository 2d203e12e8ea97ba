"""The engine for models exported with `meditune export --to onnx`, for machines on which no other engine runs.

One thread generates all answers. In every step, each answer's next token is computed in a separate pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from meditune.engines.engine import ALTERNATIVES, TokenLogprob
from meditune.engines.exported_model import import_package, read_exported_model
from meditune.engines.sampling import ConstraintCompiler, TokenSampler, top_logprobs
from meditune.engines.scheduler import BatchingEngine, ScheduledRequest, add_tokens
from meditune.engines.tokenizer import PlainTokenizer
from meditune.errors import ModelError
from meditune.hardware import cores

READ_TOKENS = 128
"""Maximum number of tokens that are read in one pass; each needs memory for the logits of the whole vocabulary"""
Past = dict[str, NDArray[np.float32]]


class OnnxModel:
    """An onnxruntime session that computes logits."""

    def __init__(self, file: Path) -> None:
        """Open the file. Raises ModelError if onnxruntime isn't installed or can't open it."""
        runtime = import_package("onnx", "onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = cores()
        try:
            self._session = runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ModelError(f"onnxruntime can't open {file}: {error}. Export the model again.") from error
        shapes = {one.name: one.shape for one in self._session.get_inputs() if one.name.startswith("past_")}
        self.nothing: Past = {name: np.zeros((1, at[1], 0, at[3]), np.float32) for name, at in shapes.items()}
        """Keys and values before the first token"""

    def read(self, tokens: Sequence[int], past: Past, rows: int = 1) -> tuple[torch.Tensor, Past]:
        """Read tokens, and return the (rows, vocabulary) logits after the last ones, and all keys and values so far."""
        logits = torch.empty(0)
        for start in range(0, len(tokens), READ_TOKENS):
            ids = np.array([tokens[start : start + READ_TOKENS]], dtype=np.int64)
            before = next(iter(past.values())).shape[2]
            given = {
                "input_ids": ids,
                "attention_mask": np.ones((1, before + ids.shape[1]), dtype=np.int64),
                "position_ids": np.arange(before, before + ids.shape[1], dtype=np.int64)[None],
            }
            part, *present = self._session.run(None, given | past)
            past = dict(zip(past, present, strict=True))
            logits = torch.cat([logits, torch.from_numpy(part[0, -rows:])])[-rows:]
        return logits, past


class OnnxEngine(BatchingEngine):
    """An exported ONNX model. Running answers take turns in using it."""

    def __init__(self, folder: Path, concurrency: int = 32) -> None:
        """Open the model. Raises ModelError if onnxruntime isn't installed or can't open it."""
        model, tokenizer = read_exported_model(folder), PlainTokenizer(folder)
        self.model = OnnxModel(folder / next(name for name in model.files if name.endswith(".onnx")))
        self.ends, self.constraints = model.stop_tokens, ConstraintCompiler(tokenizer, model.stop_tokens, folder)
        super().__init__(f"onnx {model.weights}", tokenizer, model.context_tokens, concurrency)

    def _join(self, answers: list[ScheduledRequest]) -> None:
        for answer in answers:
            logits, answer.state = self.model.read(answer.request.prompt, self.model.nothing)
            answer.sampler = TokenSampler(answer.request, answer.constraint)
            self.running.append(answer)
            add_tokens(logits, [answer], self.ends)

    def _step(self) -> None:
        self._leave()
        for answer in self.running:
            logits, answer.state = self.model.read(answer.tokens[-1:], answer.state)
            add_tokens(logits, [answer], self.ends)
        self._leave()

    def _score(self, prompt: Sequence[int], texts: Sequence[Sequence[int]]) -> list[list[TokenLogprob]]:
        first, past = self.model.read(prompt, self.model.nothing)
        found = []
        for text in texts:
            rest = [self.model.read(text[:-1], past, len(text) - 1)[0]] if len(text) > 1 else []
            logits = torch.cat([first, *rest])
            found.append([top_logprobs(row, token, ALTERNATIVES) for row, token in zip(logits, text, strict=False)])
        return found
