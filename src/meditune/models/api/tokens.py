"""How many tokens a text has for a model whose tokenizer isn't here: an estimate."""

from __future__ import annotations

import math
from collections.abc import Sequence

RULE = "a token for every 4 ASCII characters and every other character, and at least 4 for every 3 words"
PER_MESSAGE, PER_CHAT = 4, 3
"""What the chat format puts around each message, and once around all of them."""


def estimated(text: str) -> int:
    """Tokens of a text by RULE."""
    plain = sum(map(str.isascii, text))
    return math.ceil(max(plain / 4 + len(text) - plain, len(text.split()) * 4 / 3))


def of_chat(messages: Sequence[dict[str, str]]) -> int:
    """Tokens of a chat, its format included."""
    return PER_CHAT + sum(PER_MESSAGE + estimated(message["content"]) for message in messages)
