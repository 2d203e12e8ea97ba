"""Messages that lean on what was said before them ("What about paracetamol?")."""

from __future__ import annotations

import re
from collections.abc import Sequence

from meditune.serve.safety import requests

_GOES_ON = re.compile(
    r"\b(?:it|its|that|this|they|them|those|these|he|she|one|there)\b|^(?:and|or|what about|how about|why)\b",
    re.IGNORECASE,
)
SHORT = 9
"""Words of a question that may go on with the one before"""


def with_what_it_goes_on_from(question: str, before: Sequence[str]) -> str:
    """A short question that leans on the one before ("Is it contagious?"), with that one put ahead of it.

    What the one before tells a model to do is left out.
    """
    if not (before and _leans(question)):
        return question
    earlier, _ = requests.without_orders(before[-1].strip())
    return f"{earlier} {question.strip()}".strip()


def with_all_it_goes_on_from(message: str, before: Sequence[str]) -> str:
    """A message with everything that it leans on, and that this leans on: what is asked in the end."""
    said = [message.strip()]
    for earlier in reversed(before):
        if not _leans(said[0]):
            break
        said.insert(0, earlier.strip())
    return "\n".join(said)


def _leans(question: str) -> bool:
    return len(question.split()) < SHORT and bool(_GOES_ON.search(question.strip()))
