"""From tokens to text, as they come: whole characters only, and nothing of a text that may end the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

TAIL = 6
"""Tokens of the prompt that are decoded with the answer: whether it begins with a space depends on what is before"""
LONGEST_CHARACTER = 4
"""Tokens that one character takes at most, where each is a byte"""
HALF = "\ufffd"
"""What a tokenizer writes for a character that isn't whole"""


class Wording:
    """The text of one answer. Special tokens aren't part of it."""

    def __init__(self, tokenizer: Any, prompt: Sequence[int], stop: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.stop = [text for text in stop if text]
        self.stopped = False
        """Whether one of the texts that end the answer came"""
        self._ids = list(prompt[-TAIL:])
        self._before, self._read = 0, len(self._ids)
        self._held = ""

    def add(self, token: int) -> str:
        """What is certain to come next in the text, now that this token is known; often nothing."""
        self._ids.append(token)
        new, read = self._new(), len(self._ids)
        if new.endswith(HALF):
            if read - self._read < LONGEST_CHARACTER:
                return ""
            # Nothing completes the first of these tokens any more, but the others may begin a character.
            read = self._read + 1
            new = self._new(read)
        self._before, self._read = self._read, read
        return self._release(self._held + new)

    def rest(self) -> str:
        """What is left when no more tokens come, without half a character at its end."""
        if self.stopped:
            return ""
        text = self._release(self._held + self._new().rstrip(HALF))
        return text if self.stopped else text + self._held

    def _new(self, end: int | None = None) -> str:
        known = self._decoded(self._ids[self._before : self._read])
        return self._decoded(self._ids[self._before : end])[len(known) :]

    def _release(self, text: str) -> str:
        found = [place for place in (text.find(stop) for stop in self.stop) if place >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = max((_overlap(text, stop) for stop in self.stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def _decoded(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` with which `stop` may begin."""
    most = min(len(text), len(stop) - 1)
    return next((length for length in range(most, 0, -1) if text.endswith(stop[:length])), 0)
