"""What engines have in common that batch in this process: a batch of answers, and the thread that works on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from meditune.engines.answer import Answer
from meditune.engines.checks import refuse_unfit
from meditune.engines.choices import Choices
from meditune.engines.engine import Job, Load, Piece, Running
from meditune.engines.worker import Batch, Worker
from meditune.errors import EngineError

B = TypeVar("B", bound=Batch)


class Batching(Generic[B]):
    """An engine but for scoring, which each does in its own way."""

    def __init__(self, name: str, tokenizer: Any, context_tokens: int, batch: B) -> None:
        self.name, self.tokenizer, self.context_tokens = name, tokenizer, context_tokens
        self._batch = batch
        self._worker = Worker(batch)

    def start(self, job: Job, deliver: Callable[[Piece], None]) -> Running:
        """See engine.py."""
        self._refuse(job)
        answer = Answer(job, deliver, self.tokenizer)
        self._worker.start(answer)
        return answer

    def load(self) -> Load:
        """See engine.py."""
        return self._worker.load()

    def opened(self) -> None:
        """See engine.py. The model was opened before."""

    def failure(self) -> EngineError | None:
        """See engine.py. Its thread can break down or end."""
        return self._worker.failure()

    def close(self) -> None:
        """See engine.py."""
        self._worker.close()

    def _refuse(self, job: Job) -> None:
        """Raise ModelError where the engine can't do what a job asks."""
        refuse_unfit(job, self.context_tokens)
        if job.choices:
            Choices(self.tokenizer, job.choices, 0)
