"""Chat messages as a prompt: in the one format (prompts.py) for a tuned model, by its template for a model with one.

A tuned model knows questions, context and cues, so a chat becomes that: what the system says stands first, as context
does, and earlier turns stand before the last question in the form in which it would have answered them. A message that
already ends in one of the format's cues is a prompt in that format, and is taken as it stands.
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
    """One message."""

    role: str
    """system, user or assistant"""
    text: str


class ChatPrompts:
    """Prompts in one model's tokens."""

    def __init__(self, tokenizer: Any, form: PromptFormat | None, context_tokens: int) -> None:
        """`form` is the format that the model was tuned with, if it was."""
        self.tokenizer, self.context_tokens = tokenizer, context_tokens
        self.templated = form is None and bool(getattr(tokenizer, "chat_template", None))
        self.form = form or PromptFormat()

    def chat(self, turns: Sequence[Turn]) -> list[int]:
        """Token ids of a chat, up to where the assistant's turn begins. Raises ApiError at turns that make no chat."""
        if turns[-1].role != "user":
            raise ApiError(400, "The last message must be the user's.", "invalid_value", "messages")
        return self._by_template(turns) if self.templated else self.text(self._in_format(turns))

    def text(self, prompt: str) -> list[int]:
        """Token ids of a text with the special tokens that begin one; what looks like a special token is text."""
        ids: list[int] = self.tokenizer(prompt, split_special_tokens=True)["input_ids"]
        while ids and ids[-1] == self.tokenizer.eos_token_id:
            ids = ids[:-1]
        return ids

    def in_format(self, text: str) -> bool:
        """Whether a message is a prompt in the model's own format already, which ends in one of its cues."""
        cues = (self.form.answer_cue, self.form.decision_cue, self.form.plain_cue)
        return not self.templated and text.strip().endswith(tuple(filter(None, cues)))

    def room(self, prompt: Sequence[int], wanted: int | None, usual: int, param: str) -> int:
        """How many tokens may be written after a prompt: those wanted, or as many as usual, or as fit.

        Raises ApiError, with the number of tokens that are too many, where they don't fit.
        """
        room = self.context_tokens - len(prompt)
        least = 1 if wanted is None else wanted
        if room < least:
            excess = least - room
            asked = f"{len(prompt):,} tokens and {least:,} to write" if wanted else f"{len(prompt):,} tokens"
            raise ApiError(
                400,
                f"{param} is {excess:,} token{'s' if excess != 1 else ''} too long: this model has room for "
                f"{self.context_tokens:,} with the answer, and was given {asked}.",
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
        said: list[str] = []
        for turn in turns[:-1]:
            if turn.role == "user":
                said.append(prompt_text(form, turn.text.strip(), (), "answer"))
            elif turn.role == "assistant" and said:
                said[-1] += f" {turn.text.strip()}"
        earlier = "".join(f"{text}\n" for text in said)
        whole = prompt_text(form, last, context, "answer")
        begin = len(prompt_text(form, "", context, "answer")) - len(prompt_text(form, "", (), "answer"))
        return f"{whole[:begin]}{earlier}{whole[begin:]}"

    def _by_template(self, turns: Sequence[Turn]) -> list[int]:
        from jinja2.exceptions import TemplateError

        messages = [{"role": turn.role, "content": self._harmless(turn.text)} for turn in turns]
        try:
            text: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise ApiError(
                400, f"This model's chat template refuses these messages: {error}", "invalid_value", "messages"
            ) from error
        # The template writes the special tokens, also those that begin a text.
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _harmless(self, text: str) -> str:
        """The text with whatever looks like one of the template's own marks broken up."""
        marks = [token for token in self.tokenizer.all_special_tokens if len(token) > 2]
        while any(mark in text for mark in marks):
            for mark in marks:
                text = text.replace(mark, f"{mark[0]} {mark[1:]}")
        return text
