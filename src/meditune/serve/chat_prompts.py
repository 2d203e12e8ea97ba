"""Prompts from chat messages: in the format that a model was tuned with, otherwise by the model's chat template.

A prompt in the plain format consists of context, a question and a cue. So system messages become context, and earlier
turns come before the last question in the same format. A message that already ends in one of the format's cues is used
unchanged. In the chat format, the messages are rendered with the model's chat template, as in training (prompts.py). If
the format has a cue for plain language, prompts of both formats contain this cue. The note on limits that the server
adds to its answers isn't part of any prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from meditune.chat_template import ChatTemplate, TemplateError, template_of
from meditune.config.data_options import PromptFormat
from meditune.data.example import Turn
from meditune.prompts import LIMITS_LINE, conversation_text, prompt_text
from meditune.serve.api_errors import ApiError


class ChatPrompts:
    """Builds the prompts of one model, as token ids."""

    def __init__(self, tokenizer: Any, form: PromptFormat | None, context_tokens: int) -> None:
        """Prepare for one model. `form` is the format that the model was tuned with; None for an untuned model."""
        self.tokenizer, self.context_tokens = tokenizer, context_tokens
        self.templated = form.is_chat if form else template_of(tokenizer) is not None
        self._template = ChatTemplate(tokenizer, form.thinking if form else None) if self.templated else None
        self.form = form or PromptFormat()
        self._tuned = form is not None

    def chat(self, turns: Sequence[Turn]) -> list[int]:
        """Return the token ids of a chat up to the assistant's turn. Raises ApiError 400 if the turns aren't a chat."""
        if turns[-1].role != "user":
            raise ApiError(400, "The last message must be the user's.", "invalid_value", "messages")
        # Clients send earlier answers back with the note on limits that the server added (moderation.py).
        turns = [
            turn.model_copy(update={"text": turn.text.removesuffix(f"\n\n{LIMITS_LINE}")})
            if turn.role == "assistant"
            else turn
            for turn in turns
        ]
        if self.templated:
            return self._by_template(turns)
        last = turns[-1].text.strip()
        return self.text(last if self._ends_in_cue(last) else conversation_text(self.form, turns[:-1], last)[0])

    def text(self, prompt: str) -> list[int]:
        """Return the token ids of a text, after any start tokens. Special tokens in `prompt` are plain text."""
        ids: list[int] = self.tokenizer(prompt, split_special_tokens=True)["input_ids"]
        while ids and ids[-1] == self.tokenizer.eos_token_id:
            ids = ids[:-1]
        return ids

    def in_format(self, text: str) -> bool:
        """Return whether a message is already a prompt in the model's own format, that is, ends in one of its cues."""
        return not self.templated and self._ends_in_cue(text)

    def _ends_in_cue(self, text: str) -> bool:
        cues = (self.form.answer_cue, self.form.decision_cue, self.form.plain_cue)
        return text.strip().endswith(tuple(filter(None, cues)))

    def room(self, prompt: Sequence[int], requested: int | None, default: int, param: str) -> int:
        """Return how many tokens may be generated after a prompt: `requested`, or if that is None, at most `default`.

        Raises ApiError 400, which states the number of excess tokens, if prompt and answer don't fit.
        """
        room = self.context_tokens - len(prompt)
        least = 1 if requested is None else requested
        if room < least:
            excess = least - room
            given = f"{len(prompt):,} tokens plus {least:,} to generate" if requested else f"{len(prompt):,} tokens"
            raise ApiError(
                400,
                f"{param} is {excess:,} token{'s' if excess != 1 else ''} too long: this model has room for "
                f"{self.context_tokens:,} tokens, including the answer, but the request has {given}.",
                "context_length_exceeded",
                param,
            )
        return min(default, room) if requested is None else requested

    def _by_template(self, turns: Sequence[Turn]) -> list[int]:
        assert self._template is not None, "the model's prompts are templated"
        # In training data, no message begins or ends with white space.
        texts = [turn.text.strip() if self._tuned else turn.text for turn in turns]
        if self.form.plain_cue and not self._ends_in_cue(texts[-1]):
            texts[-1] = prompt_text(self.form, texts[-1], (), "answer", "plain")
        try:
            return self._template.prompt(
                [{"role": turn.role, "content": text} for turn, text in zip(turns, texts, strict=True)]
            )
        except TemplateError as error:
            raise ApiError(400, str(error), "invalid_value", "messages") from error
