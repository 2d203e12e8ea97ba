"""Render conversations as tokens with a tokenizer's chat template, and find the assistant's tokens.

For an assistant turn, a conversation is rendered twice: up to the header that the model continues
(`add_generation_prompt`), and with the turn. If the first text is a prefix of the second, the rest up to the
end-of-turn token is what the model has to write. If the template marks this part itself, with `{% generation %}`, the
marks decide what is trained on (as in TRL's assistant_only_loss).

    <|im_start|>user\\nIs it flu?<|im_end|>\\n<|im_start|>assistant\\n  Perhaps.<|im_end|>  \\n
    '------------------------- prompt ------------------------------'  '---- target ----'
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date
from functools import cached_property
from typing import Any

from meditune.errors import DataError, ModelError

Messages = Sequence[dict[str, str]]  # {role, content} of each message

_MARKER = re.compile(r"\{%-?\s*generation\b")
_THINKING = "enable_thinking"
"""The template option of Qwen3 and others. If it is false, an empty thought comes before the answer."""
_THOUGHTS_OFF = "{%- if enable_thinking is not defined %}{%- set enable_thinking = false %}{%- endif %}\n"
_TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
DATE = date(2024, 7, 26)
"""The date that replaces today's date in templates. It is the default date in Llama 3.1's and 3.2's templates."""
_MARK = re.compile(r"\[/?[A-Z][A-Z_]*\]|<{1,2}/?\|?[\w:-]+\|?>{1,2}|#{2,} ?[A-Z]\w+:")
"""Marks of turns in templates, such as [INST], <|user|>, <<SYS>> and ### Instruction:"""
_THOUGHT_MARKS = {"<think>", "</think>"}
_PROBE = "Hello"
_ROLES = ("system", "user", "assistant", "user")
_TEXTS = ("SYSTEM-TEXT", "FIRST-QUESTION", "FIRST-REPLY", "SECOND-QUESTION")


def _cut(text: str, at: Sequence[str]) -> list[str]:
    """Return the pieces of a text before, between and after the given texts. Pieces after a missing text are empty."""
    pieces = []
    for each in at:
        piece, _, text = text.partition(each)
        pieces.append(piece)
    return [*pieces, text]


class TemplateError(DataError):
    """A conversation that the model's chat template rejects or can't render as needed."""


def template_of(tokenizer: Any) -> str | None:
    """Return a tokenizer's chat template, or None."""
    found = getattr(tokenizer, "chat_template", None)
    if isinstance(found, dict):
        found = found.get("default")
    return found or None


def special_ids(tokenizer: Any) -> set[int]:
    """Return the ids of all special tokens: those with a role (BOS, EOS ...) and others, such as <|im_end|>."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {*tokenizer.all_special_ids, *(number for number, token in added.items() if token.special)}


def without_special_tokens(text: str, special: Sequence[str]) -> str:
    """Return a message's text with all strings that look like special tokens broken up, so that they stay text."""
    marks = [token for token in special if len(token) > 2]
    while any(mark in text for mark in marks):
        for mark in marks:
            text = text.replace(mark, f"{mark[0]} {mark[1:]}")
    return text


class ChatTemplate:
    """The chat template of one tokenizer."""

    def __init__(self, tokenizer: Any, thinking: bool | None = None) -> None:
        """Prepare the template. `thinking` says whether a thinking model's template leaves room for thoughts.

        With None, the template decides, and its text is unchanged. Raises ModelError if the tokenizer has no template.
        """
        template = template_of(tokenizer)
        if template is None:
            raise ModelError(
                "prompt.format is chat, but the model's tokenizer has no chat template. Set prompt.format to plain, "
                "choose an instruct model as model.base, or put a chat_template.jinja into the model's folder."
            )
        self.is_dated = bool(_TODAY.search(template))
        """True if the template writes today's date. DATE replaces it, so that prompts are the same every day."""
        if self.is_dated:
            template = _TODAY.sub(lambda found: repr(DATE.strftime(found[2])), template)
            tokenizer.chat_template = template
        self.tokenizer = tokenizer
        self.has_markers = bool(_MARKER.search(template))
        """True if the template has generation markers around assistant turns"""
        self.thinks = _THINKING in template  # whether the template has the option `enable_thinking`
        self._options: dict[str, Any] = {_THINKING: thinking} if self.thinks and thinking is not None else {}
        self.text = template
        """The template that is saved with the model; with `thinking=False`, it switches thoughts off by default"""
        if self._options:
            # The template of a base model that was tuned without thoughts already begins with _THOUGHTS_OFF.
            self.text = f"{'' if thinking else _THOUGHTS_OFF}{template.removeprefix(_THOUGHTS_OFF)}"
        names = tokenizer.convert_ids_to_tokens(sorted(special_ids(tokenizer)))
        self.special: list[str] = sorted(names, key=len, reverse=True)
        self._ends = re.compile(f"(?:{'|'.join(map(re.escape, self.special))})+") if self.special else None
        self._marks = self.special
        self._marks = sorted({*self.special, *self._turn_marks()}, key=len, reverse=True)

    def prompt(self, messages: Messages) -> list[int]:
        """Return the tokens of the messages and of the header of the assistant's turn, which the model continues."""
        return self._ids(self._render(messages, header=True))

    def check(self, messages: Messages) -> None:
        """Raise TemplateError if the template rejects a conversation, or if its assistant turns can't be found."""
        replies = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        for number in replies[-1:] if self.has_markers else replies:
            self._split(messages[: number + 1])
        if messages[-1]["role"] != "assistant":
            self._render(messages, header=True)

    def answered(self, messages: Messages) -> tuple[list[int], list[int]]:
        """Return the tokens before the last message (the assistant's), and its tokens up to the end of the turn."""
        before, turn = self._split(messages)
        prompt, whole = self._ids(before), self._ids(before + turn)
        if whole[: len(prompt)] == prompt:
            return prompt, whole[len(prompt) :]
        return prompt, self._ids(turn)

    def earlier_turns(self, messages: Messages) -> list[int] | None:
        """Return the indices, in the tokens of `prompt`, of assistant turns with their end-of-turn tokens.

        Returns None if the template renders earlier turns differently, or if the tokenizer provides no offsets.
        """
        text = self._render(messages, header=True)
        spans = []
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                before, turn = self._split(messages[: number + 1])
                if not text.startswith(before + turn):
                    return None
                spans.append((len(before), len(before) + len(turn)))
        return within(self.tokenizer, text, spans, add_special_tokens=False)

    def marked(self, messages: Messages) -> tuple[list[int], list[int]]:
        """Return a conversation's tokens, and the indices of the tokens between markers and of end-of-turn tokens."""
        found = self._apply(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        ids, mask = list(found["input_ids"]), list(found["assistant_masks"])
        places = [place for place, is_marked in enumerate(mask) if is_marked]
        after = [place + 1 for place in places if place + 1 < len(ids) and not mask[place + 1]]
        return ids, sorted([*places, *(place for place in after if ids[place] == self.end_id)])

    @cached_property
    def end_id(self) -> int:
        """The token that ends an assistant turn."""
        return self.answered([{"role": "user", "content": _PROBE}, {"role": "assistant", "content": _PROBE}])[1][-1]

    def answer_ids(self, text: str) -> list[int]:
        """Return the tokens of a text that begins an assistant turn, without the end-of-turn token."""
        return self.answered([{"role": "user", "content": _PROBE}, {"role": "assistant", "content": text}])[1][:-1]

    def described(self) -> str:
        """Return sentences that say how assistant turns are found, and whether the model learns to think."""
        how = "its generation markers" if self.has_markers else "rendering one turn after the other"
        thoughts = ""
        if self.thinks:
            thoughts = " Thoughts are trained on (prompt.thinking)."
            if self._options.get(_THINKING) is False:
                thoughts = " The model is trained to answer without thoughts; prompt.thinking: true changes that."
        day = f" Where the template writes today's date, {DATE:%d %b %Y} is written instead." if self.is_dated else ""
        return f"Conversations are in the model's chat template; assistant turns are found by {how}.{thoughts}{day}"

    def parts(self) -> dict[str, str]:
        """Return the constant parts of the template, from which other template languages can be written.

        `start` begins a text without a system message. The other parts enclose messages: `system_start` and
        `system_end` (absent if the template accepts no system message), `user_start` and `user_end` (which includes the
        assistant's header), and `assistant_start` (usually empty) and `assistant_end`. Raises TemplateError if the
        template has no constant parts.
        """
        system, *chat = ({"role": role, "content": text} for role, text in zip(_ROLES, _TEXTS, strict=True))
        first, end, between, last = _cut(self._render(chat, header=True), _TEXTS[1:])
        try:
            system_start, middle, *rest = _cut(self._render([system, *chat], header=True), _TEXTS)
        except TemplateError:
            system_start, middle, rest = "", between, [end, between, last]
        user_start = self._common_end([first, middle, between])
        reply = self._split(chat[:2])[1].partition(_TEXTS[2])[2]
        if user_start.startswith(reply):
            user_start = user_start.removeprefix(reply).lstrip("\n")
        if not end.startswith(last) or rest != [end, between, last] or not user_start:
            raise TemplateError(
                "The model's chat template has no constant parts for system, user and assistant messages, so it can't "
                "be written in another template language."
            )
        found = {"user_start": user_start, "user_end": last, "start": first, "assistant_end": between}
        found["assistant_start"] = end.removeprefix(last)
        if system_start:
            found |= {"system_start": system_start, "system_end": middle}
        ends = {
            name: found[name].removesuffix(user_start)
            for name in ("start", "assistant_end", "system_end")
            if name in found
        }
        return found | ends

    def _common_end(self, texts: Sequence[str]) -> str:
        """Return the longest common ending of the texts that doesn't begin inside a special token."""
        shortest = min(texts, key=len)
        begin = next(at for at in range(len(shortest) + 1) if all(text.endswith(shortest[at:]) for text in texts))
        ends = shortest[begin:]
        special = re.compile("|".join(map(re.escape, self.special)))
        for text in texts:
            border = len(text) - len(ends)
            inside = [match.end() for match in special.finditer(text) if match.start() < border]
            ends = text[max(border, *inside) :] if inside else ends
        return ends

    def _split(self, messages: Messages) -> tuple[str, str]:
        """Return the text before the last message (the assistant's), and that message with its end-of-turn token."""
        before, whole = self._render(messages[:-1], header=True), self._render(messages, header=False)
        if not whole.startswith(before):
            raise TemplateError(
                "The model's chat template is not prefix-stable: the text before an assistant turn changes when the "
                "turn is added, so it's unclear which tokens are the assistant's. Use a template with generation "
                "markers ({% generation %} ... {% endgeneration %}), or set prompt.format to plain. If assistant turns "
                "contain thoughts (thoughts: keep), set prompt.thinking to true."
            )
        turn = whole[len(before) :]
        content = without_special_tokens(messages[-1]["content"], self._marks).strip()
        place = turn.find(content)
        end = self._ends.search(turn, place + len(content) if place >= 0 else 0) if self._ends else None
        if end is None:
            raise TemplateError(
                "The model's chat template ends an assistant turn with no special token of the tokenizer, so the model "
                "could not learn to stop. Use another template, or set prompt.format to plain."
            )
        return before, turn[: end.end()]

    def _render(self, messages: Messages, header: bool) -> str:
        return str(self._apply(messages, tokenize=False, add_generation_prompt=header))

    def _apply(self, messages: Messages, **options: Any) -> Any:
        from jinja2.exceptions import TemplateError as JinjaError

        harmless = [each | {"content": without_special_tokens(each["content"], self._marks)} for each in messages]
        try:
            return self.tokenizer.apply_chat_template(harmless, **options, **self._options)
        except (JinjaError, ValueError, TypeError) as error:
            raise TemplateError(f"The model's chat template rejects these messages: {error}") from error

    def _turn_marks(self) -> set[str]:
        """Return the marks around turns, such as [INST], which can be ordinary text for the tokenizer."""
        messages = [{"role": role, "content": text} for role, text in zip(_ROLES, _TEXTS, strict=True)]
        found: set[str] = set()
        for some in (messages, messages[1:]):
            try:
                found.update(_MARK.findall(self._render(some, header=True)))
            except TemplateError:
                continue  # the template accepts no system message
        return found - _THOUGHT_MARKS

    def _ids(self, text: str) -> list[int]:
        # The template writes all special tokens, including those at the beginning.
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def within(tokenizer: Any, text: str, spans: Sequence[tuple[int, int]], **options: Any) -> list[int] | None:
    """Return the indices of tokens that begin inside one of the character spans; None if there are no offsets."""
    if not spans:
        return []
    if not getattr(tokenizer, "is_fast", False):
        return None
    places = tokenizer(text, return_offsets_mapping=True, **options)["offset_mapping"]
    return [
        index
        for index, (start, end) in enumerate(places)
        if end > start and any(first <= start < last for first, last in spans)
    ]
