"""Single tokens as texts, as clients see them beside log-probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meditune.engines.engine import Likely
from meditune.serve.schema.chat import ChatToken, TopToken

LEAST = -9999.0
"""What stands for minus infinity, which JSON can't spell"""


def text_of(tokenizer: Any, token: int) -> str:
    """A token's text; where it is half a character, its name in the vocabulary, so that no two are the same."""
    text: str = tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return str(tokenizer.convert_ids_to_tokens(token)) if "�" in text or not text else text


def named(tokenizer: Any, others: Mapping[int, float], likely: Likely) -> dict[str, float]:
    """The likeliest tokens by their text, with the one that was taken."""
    every = dict(others) | {likely.token: likely.logprob}
    ranked = sorted(every.items(), key=lambda entry: -entry[1])
    found: dict[str, float] = {}
    for token, logprob in ranked:
        found.setdefault(text_of(tokenizer, token), finite(logprob))
    return found


def chat_token(tokenizer: Any, likely: Likely, top: int) -> ChatToken:
    """A token of a chat's answer with the `top` likeliest in its place."""
    ranked = sorted(likely.others.items(), key=lambda entry: -entry[1])[:top]
    return ChatToken(
        **_told(tokenizer, likely.token, likely.logprob),
        top_logprobs=[TopToken(**_told(tokenizer, token, logprob)) for token, logprob in ranked],
    )


def finite(logprob: float) -> float:
    """A log-probability that JSON can spell."""
    return max(float(logprob), LEAST)


def _told(tokenizer: Any, token: int, logprob: float) -> dict[str, Any]:
    text = text_of(tokenizer, token)
    return {"token": text, "logprob": finite(logprob), "bytes": list(text.encode())}
