"""A text as the finders look at it: in small letters too, and where its digits are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

_DIGITS = re.compile(r"\d+")


@dataclass(frozen=True)
class View:
    """One text. The finders go from digits or capitals to what stands around them, which is quick: both are few."""

    text: str

    @cached_property
    def low(self) -> str:
        """The text in small letters, every character in its place (letters that would become two stay large)."""
        low = self.text.lower()
        if len(low) == len(self.text):
            return low
        return "".join(letter if len(letter.lower()) != 1 else letter.lower() for letter in self.text)

    @cached_property
    def digits(self) -> list[tuple[int, int]]:
        """Start and end of each run of digits."""
        return [found.span() for found in _DIGITS.finditer(self.text)]

    def before(self, place: int, length: int) -> str:
        """So many characters before `place`, in small letters."""
        return self.low[max(0, place - length) : place]

    def has(self, *parts: str) -> bool:
        """Whether any of these stands anywhere in the text, small or large."""
        return any(part in self.low for part in parts)

    def word_start(self, place: int, most: int = 12) -> int:
        """Where the letters, digits and hyphens begin that lead up to `place`, at most so many."""
        text, start = self.text, place
        while start and place - start < most and (text[start - 1].isalnum() or text[start - 1] == "-"):
            start -= 1
        return start
