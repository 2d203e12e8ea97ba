"""A tokenizer with the interface of transformers' tokenizers, and streaming detokenization.

Many engines don't need transformers, which takes seconds to import.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from meditune.errors import ModelError
from meditune.files import read_json, read_text

FILE_NAME = "tokenizer.json"
NAMED = ("bos_token", "eos_token", "pad_token", "unk_token")


class PlainTokenizer:
    """The tokenizer in a model's folder: tokenizer.json, its settings and its chat template."""

    def __init__(self, folder: Path) -> None:
        """Load the tokenizer. Raises ModelError if the folder contains no readable tokenizer.json."""
        from tokenizers import Tokenizer

        path = folder / FILE_NAME
        if not path.is_file():
            raise ModelError(f"{folder} contains no {FILE_NAME}. Export the model again.")
        try:
            # `_special` encodes text that looks like a special token as that token; `_plain` as ordinary text.
            self._special, self._plain = (Tokenizer.from_file(str(path)) for _ in range(2))
        except Exception as error:
            raise ModelError(f"{path} can't be read: {error}. Export the model again.") from error
        for tokenizer in (self._special, self._plain):
            tokenizer.no_truncation()
            tokenizer.no_padding()
        self._plain.encode_special_tokens = True
        settings = folder / "tokenizer_config.json"
        self._settings: dict[str, Any] = read_json(settings) if settings.is_file() else {}
        template = folder / "chat_template.jinja"
        stored = read_text(template) if template.is_file() else self._settings.get("chat_template")
        if isinstance(stored, list):  # several templates with names
            stored = {each["name"]: each["template"] for each in stored}.get("default")
        self.chat_template: str | None = stored
        for name in NAMED:
            token = self._settings.get(name)
            content = token["content"] if isinstance(token, dict) else token
            setattr(self, name, content)
            setattr(self, f"{name}_id", None if content is None else self._special.token_to_id(content))

    bos_token: str | None
    bos_token_id: int | None
    eos_token: str | None
    eos_token_id: int | None
    pad_token: str | None
    pad_token_id: int | None

    def __len__(self) -> int:
        return int(self._special.get_vocab_size(with_added_tokens=True))

    def __call__(
        self, text: str, add_special_tokens: bool = True, split_special_tokens: bool = False
    ) -> dict[str, list[int]]:
        """Return the text's token ids under `input_ids`."""
        taken = self._plain if split_special_tokens else self._special
        return {"input_ids": taken.encode(text, add_special_tokens=add_special_tokens).ids}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the text's token ids."""
        return self(text, add_special_tokens)["input_ids"]

    def decode(self, token_ids: int | Sequence[int], skip_special_tokens: bool = False, **_: Any) -> str:
        """Return the text of token ids, without cleaning up spaces."""
        ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        text: str = self._special.decode(ids, skip_special_tokens=skip_special_tokens)
        return text

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        """Return tokens as written in the vocabulary: one token for an id, a list for several ids."""
        if isinstance(ids, int):
            return self._special.id_to_token(ids)
        return [self._special.id_to_token(int(one)) for one in ids]

    def get_vocab(self) -> dict[str, int]:
        """Return all tokens with their ids."""
        vocabulary: dict[str, int] = self._special.get_vocab(with_added_tokens=True)
        return vocabulary

    @cached_property
    def all_special_ids(self) -> list[int]:
        """The ids of the special tokens."""
        return [number for number, token in self._special.get_added_tokens_decoder().items() if token.special]

    @property
    def all_special_tokens(self) -> list[str]:
        """The special tokens."""
        return [str(self._special.id_to_token(number)) for number in self.all_special_ids]

    def apply_chat_template(
        self,
        messages: Sequence[dict[str, Any]],
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        **more: Any,
    ) -> Any:
        """Return a conversation in the model's chat format: as token ids, or as text if `tokenize` is False.

        Raises ValueError if there is no chat template.
        """
        if not self.chat_template:
            raise ValueError("This tokenizer has no chat template.")
        named: dict[str, Any] = {name: getattr(self, name) for name in NAMED if getattr(self, name) is not None}
        named |= {"tools": None, "documents": None, "add_generation_prompt": add_generation_prompt}
        text: str = self._template.render(messages=list(messages), **(named | more))
        return self(text, add_special_tokens=False)["input_ids"] if tokenize else text

    @cached_property
    def _template(self) -> Any:
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(message: str) -> None:
            raise ValueError(message)

        def as_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
            return json.dumps(value, ensure_ascii=ensure_ascii, **options)

        # As in transformers, templates run in a sandbox, because they come with a model and aren't trusted.
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.globals |= {
            "raise_exception": refuse,
            "strftime_now": lambda form: datetime.now().strftime(form),
        }
        environment.filters["tojson"] = as_json
        # The `generation` tag marks the assistant's parts, which matters only in training.
        text = re.sub(r"(\{%[-+]?\s*)generation\b", r"\1if true", self.chat_template or "")
        return environment.from_string(re.sub(r"(\{%[-+]?\s*)endgeneration\b", r"\1endif", text))


_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(0x100 + number): byte for number, byte in enumerate(sorted(set(range(0x100)) - set(_PRINTABLE)))
}
"""Character in the vocabulary of a byte-level tokenizer -> the byte that it stands for (GPT-2, Radford et al. 2019)"""


def token_bytes(tokenizer: Any, token: int) -> bytes:
    """Return a token's text as UTF-8. If the token is a part of a character, the bytes aren't valid UTF-8."""
    text: str = tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    name = str(tokenizer.convert_ids_to_tokens(token))
    # Some SentencePiece decoders strip the space before a text, so also that of a single token.
    if name.replace("▁", " ") == f" {text}":
        text = f" {text}"
    if text and HALF not in text:
        return text.encode()
    if byte := re.fullmatch(r"<0x([0-9A-F]{2})>", name):
        return bytes.fromhex(byte[1])
    return bytes(_BYTE_OF[each] for each in name) if set(name) <= _BYTE_OF.keys() else name.encode()


TAIL = 6
"""Number of prompt tokens that are decoded with the answer, because the answer's leading space depends on them"""
MAX_CHARACTER_TOKENS = 4
"""Maximum number of tokens in one character, if each token is a byte"""
HALF = "\ufffd"
"""The character with which a tokenizer replaces an incomplete character"""


class Detokenizer:
    """A streaming decoder for one answer. It omits special tokens, and holds back possible beginnings of stop texts."""

    def __init__(self, tokenizer: Any, prompt: Sequence[int], stop: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.stop = [text for text in stop if text]
        self.stopped = False
        """True if one of the stop texts has been found"""
        self._ids = list(prompt[-TAIL:])
        self._before, self._read = 0, len(self._ids)
        self._held = ""

    def add(self, token: int) -> str:
        """Add a token, and return the new text, which has only complete characters and may be empty."""
        self._ids.append(token)
        new, read = self._new(), len(self._ids)
        if new.endswith(HALF):
            if read - self._read < MAX_CHARACTER_TOKENS:
                return ""
            # The first of these tokens can no longer be completed, but the others may begin a character.
            read = self._read + 1
            new = self._new(read)
        self._before, self._read = self._read, read
        return self._release(self._held + new)

    def rest(self) -> str:
        """Return the remaining text after the last token, without an incomplete character at its end."""
        if self.stopped:
            return ""
        text = self._release(self._held + self._new().rstrip(HALF))
        return text if self.stopped else text + self._held

    def _new(self, end: int | None = None) -> str:
        known = self._decoded(self._ids[self._before : self._read])
        return self._decoded(self._ids[self._before : end])[len(known) :]

    def _release(self, text: str) -> str:
        found = [place for place in (text.find(stop) for stop in self.stop) if place >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = max((_overlap(text, stop) for stop in self.stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def _decoded(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that is an incomplete beginning of `stop`."""
    most = min(len(text), len(stop) - 1)
    return next((length for length in range(most, 0, -1) if text.endswith(stop[:length])), 0)
