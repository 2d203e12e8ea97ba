"""onnxruntime, one answer after another: for machines on which nothing else runs, and to check an export.

It opens what `meditune export --to onnx` made. Answers share the thread, not the passes, so the other engines are
faster for several users.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from meditune.engines.batching import Batching
from meditune.engines.checks import refuse_unscorable
from meditune.engines.engine import Job, Likely
from meditune.engines.exported import exported
from meditune.engines.onnx_batch import OnnxBatch
from meditune.engines.tokenizer import PlainTokenizer


class OnnxEngine(Batching[OnnxBatch]):
    """An exported ONNX model."""

    def __init__(self, folder: Path, at_once: int = 32) -> None:
        """Raises ModelError where onnxruntime isn't installed or can't open the folder."""
        model = exported(folder)
        tokenizer = PlainTokenizer(folder)
        super().__init__(f"onnx {model.weights}", tokenizer, model.context_tokens, OnnxBatch(model, tokenizer, at_once))

    def score(self, prompt: Sequence[int], texts: Sequence[Sequence[int]]) -> list[list[Likely]]:
        """See engine.py. Of each place the five likeliest tokens are told, too."""
        refuse_unscorable(len(prompt), max(map(len, texts), default=0), self.context_tokens)
        return self._worker.call(lambda: self._batch.scored(prompt, texts))

    def _refuse(self, job: Job) -> None:
        super()._refuse(job)
        if job.json_schema is not None:
            self._batch.schemas.answer(job.json_schema)
