"""Prompts from chat messages: in Meditune's format (prompts.py) for a tuned model, else by the model's chat template.

A tuned model expects context, a question and a cue. System messages therefore become context, and earlier turns come
before the last question in the same format. A message that already ends in one of the format's cues is used unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from meditune.config.data_options import PromptFormat
from meditune.data.example import Passage
from meditune.prompts import prompt_text
from meditune.serve.api_errors import ApiError


@dataclass(frozen=True)
class Turn:
    """One message of a chat."""

    role: str
    """system, user or assistant"""
    text: str


class ChatPrompts:
    """The prompts of one model, as token ids."""

    def __init__(self, tokenizer: Any, form: PromptFormat | None, context_tokens: int) -> None:
        """Prepare for one model. `form` is the format that the model was tuned with; None if it wasn't tuned."""
        self.tokenizer, self.context_tokens = tokenizer, context_tokens
        self.templated = form is None and bool(getattr(tokenizer, "chat_template", None))
        self.form = form or PromptFormat()

    def chat(self, turns: Sequence[Turn]) -> list[int]:
        """Return the token ids of a chat, up to the assistant's turn. Raises ApiError if the turns aren't a chat."""
        if turns[-1].role != "user":
            raise ApiError(400, "The last message must be the user's.", "invalid_value", "messages")
        return self._by_template(turns) if self.templated else self.text(self._in_format(turns))

    def text(self, prompt: str) -> list[int]:
        """Return the token ids of a text, with the special tokens at the beginning. Special tokens in it are text."""
        ids: list[int] = self.tokenizer(prompt, split_special_tokens=True)["input_ids"]
        while ids and ids[-1] == self.tokenizer.eos_token_id:
            ids = ids[:-1]
        return ids

    def in_format(self, text: str) -> bool:
        """Return whether a message is already a prompt in the model's own format, since it ends in one of its cues."""
        cues = (self.form.answer_cue, self.form.decision_cue, self.form.plain_cue)
        return not self.templated and text.strip().endswith(tuple(filter(None, cues)))

    def room(self, prompt: Sequence[int], wanted: int | None, usual: int, param: str) -> int:
        """Return how many tokens may be generated after a prompt: the wanted number, else `usual` or as many as fit.

        Raises ApiError, with the number of excess tokens, if they don't fit.
        """
        room = self.context_tokens - len(prompt)
        least = 1 if wanted is None else wanted
        if room < least:
            excess = least - room
            given = f"{len(prompt):,} tokens plus {least:,} to generate" if wanted else f"{len(prompt):,} tokens"
            raise ApiError(
                400,
                f"{param} is {excess:,} token{'s' if excess != 1 else ''} too long: this model has room for "
                f"{self.context_tokens:,} tokens, including the answer, but the request has {given}.",
                "context_length_exceeded",
                param,
            )
        return min(usual, room) if wanted is None else wanted

    def _in_format(self, turns: Sequence[Turn]) -> str:
        form = self.form
        last = turns[-1].text.strip()
        if self.in_format(last):
            return last
        context = tuple(Passage(text=turn.text.strip()) for turn in turns if turn.role == "system")
        past: list[str] = []
        for turn in turns[:-1]:
            if turn.role == "user":
                past.append(prompt_text(form, turn.text.strip(), (), "answer"))
            elif turn.role == "assistant" and past:
                past[-1] += f" {turn.text.strip()}"
        earlier = "".join(f"{text}\n" for text in past)
        prompt = prompt_text(form, last, context, "answer")
        begin = len(prompt_text(form, "", context, "answer")) - len(prompt_text(form, "", (), "answer"))
        return f"{prompt[:begin]}{earlier}{prompt[begin:]}"

    def _by_template(self, turns: Sequence[Turn]) -> list[int]:
        from jinja2.exceptions import TemplateError

        messages = [{"role": turn.role, "content": self._harmless(turn.text)} for turn in turns]
        try:
            text: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise ApiError(
                400, f"This model's chat template rejects these messages: {error}", "invalid_value", "messages"
            ) from error
        # The template adds all special tokens, including those at the beginning.
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _harmless(self, text: str) -> str:
        """Return the text with everything that looks like one of the template's special tokens broken up."""
        marks = [token for token in self.tokenizer.all_special_tokens if len(token) > 2]
        while any(mark in text for mark in marks):
            for mark in marks:
                text = text.replace(mark, f"{mark[0]} {mark[1:]}")
        return text
