"""Messages that lean on the ones before ("Is it contagious?", "What about paracetamol?")."""

from __future__ import annotations

import re
from collections.abc import Sequence

from meditune.serve.safety import requests

SHORT = 9
"""Words of a question that may go on with the one before"""
FURTHEST = 3
"""So many messages back it may lean on"""
_GOES_ON = re.compile(
    r"\b(?:it|its|that|this|they|them|those|these|he|she|one|there|same)\b"
    r"|^(?:and|or|so|then|what about|how about|why|tell me (?:how|more))\b"
    r"|^(?:how|how (?:much|many|often|long)|when|where|which|go on)\W*$",
    re.IGNORECASE,
)


def goes_on(question: str) -> bool:
    """Whether a question is short and leans on the one before."""
    return len(question.split()) < SHORT and bool(_GOES_ON.search(question.strip()))


def with_what_it_goes_on_from(question: str, before: Sequence[str]) -> str:
    """A question that leans on the one before, with that one put ahead of it, and what that one leans on ahead of both.

    Orders to the model, and what isn't about health, are left out of what is put ahead. `before`: the oldest first.
    """
    parts = [question.strip()]
    for earlier in reversed(before[-FURTHEST:]):
        if not goes_on(parts[0]):
            break
        kept = requests.without_orders(earlier)[0].strip()
        if not kept or requests.is_outside(kept):
            break
        parts.insert(0, kept)
    whole = " ".join(parts)
    # two messages may be an order only together
    return question if len(parts) == 1 or requests.without_orders(whole)[1] else whole
