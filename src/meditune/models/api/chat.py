"""Asking a chat model: answers in its words, decisions by the likelihood of its first token where that is told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from meditune.data.example import DECISIONS
from meditune.models.api.client import ApiError, Client
from meditune.prompts import DECISION_TOKENS, decision_in

Messages = Sequence[dict[str, str]]

TOP = 20
"""Likeliest tokens asked for: the most that OpenAI's API tells."""


@dataclass(frozen=True)
class Decided:
    """What a model decides."""

    prediction: str | None
    """yes, no or maybe; None where it said none of them."""
    logits: dict[str, float] | None
    """Log-likelihood of each label; None where the API tells none."""
    text: str
    """What it wrote."""


class Chat:
    """One model. Safe to use from several threads."""

    def __init__(self, client: Client, model: str) -> None:
        self.client, self.model = client, model
        self._limit, self._likelihoods = "max_tokens", True

    def write(self, messages: Messages, max_tokens: int) -> str:
        """The model's greedy answer; empty where it refuses to give one."""
        return _text(self._ask(messages, max_tokens))

    def decide(self, messages: Messages) -> Decided:
        """The model's decision: by likelihood where the API tells it, else by the word it writes."""
        choice = self._ask(messages, DECISION_TOKENS, self._likelihoods)
        logits = label_logits(_first_token(choice))
        text = _text(choice)
        if logits and len(set(logits.values())) > 1:
            return Decided(max(logits, key=lambda label: logits[label]), logits, text)
        return Decided(decision_in(text), logits, text)

    def _ask(self, messages: Messages, max_tokens: int, likelihoods: bool = False) -> dict[str, Any]:
        body = {"model": self.model, "messages": list(messages), "temperature": 0, self._limit: max_tokens}
        if likelihoods:
            body |= {"logprobs": True, "top_logprobs": TOP}
        try:
            answer = self.client.post("/chat/completions", body)
        except ApiError as error:
            if not self._adapted(error, body):
                raise
            return self._ask(messages, max_tokens, likelihoods and self._likelihoods)
        choices = answer.get("choices")
        if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
            raise ApiError(f"{self.client.host} answered without choices. Does it serve chat completions?")
        choice: dict[str, Any] = choices[0]
        return choice

    def _adapted(self, error: ApiError, body: dict[str, Any]) -> bool:
        """Whether the model refused one of two options that it can be asked without."""
        if error.status not in {400, 422}:
            return False
        if "logprobs" in body and "logprobs" in error.said:
            self._likelihoods = False
            return True
        if "max_tokens" in body and "max_completion_tokens" in error.said:
            self._limit = "max_completion_tokens"
            return True
        return False


def label_logits(tokens: dict[str, float]) -> dict[str, float] | None:
    """Each label's log-likelihood from those of the first token's candidates; None without candidates.

    A candidate counts for the label that it is or begins, in any case and with any blank ("Yes", " may"). A label that
    is not among them gets the least of them, which its own can't exceed.
    """
    if not tokens:
        return None
    found: dict[str, list[float]] = {label: [] for label in DECISIONS}
    for token, likelihood in tokens.items():
        word = token.strip().lower()
        for label in DECISIONS:
            if word and label.startswith(word):
                found[label].append(likelihood)
    least = min(tokens.values())
    return {label: _log_sum(values) if values else least for label, values in found.items()}


def _first_token(choice: dict[str, Any]) -> dict[str, float]:
    """The likeliest first tokens with their log-likelihoods; empty where the API told none."""
    places = (choice.get("logprobs") or {}).get("content") or []
    candidates = (places[0].get("top_logprobs") or []) if places else []
    return {str(each["token"]): float(each["logprob"]) for each in candidates if each.get("logprob") is not None}


def _text(choice: dict[str, Any]) -> str:
    return str((choice.get("message") or {}).get("content") or "").strip()


def _log_sum(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values))
