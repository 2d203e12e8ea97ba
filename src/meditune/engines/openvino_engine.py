"""OpenVINO GenAI: the fastest of the engines on a CPU, without torch.

It opens what `meditune export --to openvino` made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from meditune.engines.answer import Answer
from meditune.engines.checks import refuse_unfit, refuse_unscorable
from meditune.engines.choices import Choices
from meditune.engines.engine import Job, Likely, Load, Piece, Running
from meditune.engines.exported import exported
from meditune.engines.openvino_batch import OpenvinoBatch
from meditune.engines.tokenizer import PlainTokenizer
from meditune.engines.worker import Worker
from meditune.errors import ModelError


class OpenvinoEngine:
    """An exported model, in 8 bits, that continues many prompts together."""

    def __init__(self, folder: Path, at_once: int = 32) -> None:
        """Raises ModelError where OpenVINO isn't installed or can't open the folder."""
        model = exported(folder)
        self.tokenizer: Any = PlainTokenizer(folder)
        self.name = f"openvino {model.weights}"
        self.context_tokens = model.context_tokens
        self._batch = OpenvinoBatch(model, self.tokenizer, at_once)
        self._worker = Worker(self._batch)

    def start(self, job: Job, deliver: Callable[[Piece], None]) -> Running:
        """See engine.py. Of an answer's tokens OpenVINO tells only its own likelihood."""
        refuse(job, self.tokenizer, self.context_tokens)
        answer = Answer(job, deliver, self.tokenizer)
        self._worker.start(answer)
        return answer

    def score(self, prompt: Sequence[int], texts: Sequence[Sequence[int]]) -> list[list[Likely]]:
        """See engine.py. Of each place the five likeliest tokens are told, too."""
        refuse_unscorable(len(prompt), max(map(len, texts), default=0), self.context_tokens)
        return self._worker.call(lambda: self._batch.scorer.score(prompt, texts))

    def load(self) -> Load:
        """See engine.py."""
        return self._worker.load()

    def close(self) -> None:
        """See engine.py."""
        self._worker.close()


def refuse(job: Job, tokenizer: Any, context_tokens: int) -> None:
    """Raise ModelError where OpenVINO can't do what a job asks."""
    refuse_unfit(job, context_tokens)
    if job.logprobs > 1:
        raise ModelError(
            "OpenVINO tells how likely the tokens that it writes are, and not what else was likely. Ask for 1 "
            "log-probability a token, or serve the model with --engine transformers."
        )
    if job.choices:
        Choices(tokenizer, job.choices, 0)
