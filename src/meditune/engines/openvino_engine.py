"""OpenVINO GenAI: the fastest of the engines on a CPU, without torch.

It opens what `meditune export --to openvino` made.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from meditune.engines.batching import Batching
from meditune.engines.checks import refuse_unfit, refuse_unscorable
from meditune.engines.choices import Choices
from meditune.engines.engine import Job, Likely
from meditune.engines.exported import exported
from meditune.engines.openvino_batch import OpenvinoBatch
from meditune.engines.tokenizer import PlainTokenizer
from meditune.errors import ModelError


class OpenvinoEngine(Batching[OpenvinoBatch]):
    """An exported model, in 8 bits, that continues many prompts together."""

    def __init__(self, folder: Path, at_once: int = 32, scores: bool = False) -> None:
        """`scores` compiles what `score` reads with at once, instead of when it is first asked.

        Raises ModelError where OpenVINO isn't installed or can't open the folder.
        """
        model = exported(folder)
        tokenizer = PlainTokenizer(folder)
        batch = OpenvinoBatch(model, tokenizer, at_once, scores)
        super().__init__(f"openvino {model.weights}", tokenizer, model.context_tokens, batch)

    def score(self, prompt: Sequence[int], texts: Sequence[Sequence[int]]) -> list[list[Likely]]:
        """See engine.py. Of each place the five likeliest tokens are told, too."""
        refuse_unscorable(len(prompt), max(map(len, texts), default=0), self.context_tokens)
        return self._worker.call(lambda: self._batch.scorer.score(prompt, texts))

    def _refuse(self, job: Job) -> None:
        refuse(job, self.tokenizer, self.context_tokens)


def refuse(job: Job, tokenizer: Any, context_tokens: int) -> None:
    """Raise ModelError where OpenVINO can't do what a job asks.

    Of an answer's tokens it tells only their own likelihood.
    """
    refuse_unfit(job, context_tokens)
    if job.logprobs > 1:
        raise ModelError(
            "OpenVINO tells how likely the tokens that it writes are, and not what else was likely. Ask for 1 "
            "log-probability a token, or serve the model with --engine transformers."
        )
    if job.choices:
        Choices(tokenizer, job.choices, 0)
