"""One job while it runs: its tokens become pieces of text, and someone may end it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from meditune.engines.engine import Finish, Job, Likely, Piece
from meditune.engines.wording import Wording

log = logging.getLogger(__name__)


class Answer:
    """A job with what it has got so far. Only the engine's thread calls anything but `cancel`."""

    def __init__(self, job: Job, deliver: Callable[[Piece], None], tokenizer: Any) -> None:
        self.job = job
        self.cancelled = False
        self.tokens: list[int] = []
        self.ended = False
        self._deliver = deliver
        self._wording = Wording(tokenizer, job.prompt, job.stop)
        self._untold: list[int] = []
        self._likely: list[Likely] = []
        self.cached = 0
        """Tokens of the prompt that needed no reading; not told yet"""

    def cancel(self) -> None:
        """End it now; its last piece says so."""
        self.cancelled = True

    def take(self, token: int, likely: Likely | None = None) -> None:
        """The answer goes on with this token, and ends where a text that ends it comes or it is long enough."""
        self.tokens.append(token)
        self._untold.append(token)
        if likely is not None:
            self._likely.append(likely)
        text = self._wording.add(token)
        if self._wording.stopped:
            self._tell(text, "stop")
        elif len(self.tokens) >= self.job.max_new_tokens:
            self._tell(text + self._wording.rest(), "stop" if self._wording.stopped else "length")
        elif text:
            self._tell(text)

    def end(self, finish: Finish = "stop") -> None:
        """Nothing more comes."""
        if not self.ended:
            self._tell(self._wording.rest(), finish)

    def fail(self, error: Exception) -> None:
        """Something broke it off."""
        if not self.ended:
            self._tell("", None, error)

    def _tell(self, text: str, finish: Finish | None = None, error: Exception | None = None) -> None:
        if self.ended:
            return
        piece = Piece(text, tuple(self._untold), tuple(self._likely), finish, error, self.cached)
        self.cached = 0
        self._untold, self._likely = [], []
        self.ended = finish is not None or error is not None
        try:
            self._deliver(piece)
        except Exception:
            log.exception("What a piece was delivered to failed; its answer is cancelled")
            self.cancelled = True
