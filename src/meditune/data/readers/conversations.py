"""Conversations in a user's own file: OpenAI's `messages`, ShareGPT's `conversations`, Alpaca's `instruction`.

    {"messages": [{"role": "user", "content": "Is it flu?"}, {"role": "assistant", "content": "Perhaps."}]}
    {"conversations": [{"from": "human", "value": "Is it flu?"}, {"from": "gpt", "value": "Perhaps."}]}
    {"instruction": "Answer briefly.", "input": "Is it flu?", "output": "Perhaps."}

A conversation may begin with one system message; after it, the user and the assistant take turns, and the user begins.
The layouts are those of OpenAI's fine-tuning files (platform.openai.com/docs/guides/supervised-fine-tuning) and of
LLaMA-Factory's data/README.md (github.com/hiyouga/LLaMA-Factory), including the columns `system` and `history`.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from meditune.config.data_options import Thoughts
from meditune.data.example import Role, Turn, problem_in_text
from meditune.data.readers.tables import LAYOUTS, NAMES

COLUMNS, ALPACA_COLUMNS = (LAYOUTS[name].guesses for name in ("conversations", "alpaca"))
ROLES: dict[str, Role] = {name: role for role, names in NAMES["roles"].items() for name in names}
THOUGHTS = re.compile(r"<think>.*?</think>\s*", re.DOTALL)
MIN_OPENING_CHARACTERS = 8
STRIPPED, UNANSWERED = "thoughts_stripped", "unanswered_messages"
"""Keys for counts of changes: assistant turns whose thoughts were removed, and last messages that have no reply"""
_GREETINGS = frozenset(NAMES["greetings"].split())


def is_greeting(text: str) -> bool:
    """Return True if a message only greets or announces a question, such as "Hello doctor, can I ask something?"."""
    return all(match[0] in _GREETINGS for match in re.finditer(r"\w+", text.casefold()))


def opening(asked: Sequence[str]) -> str:
    """Return the user's first message that isn't a greeting; it identifies related conversations.

    A very short message ("Fever") is joined with the user's next messages.
    """
    text = ""
    for message in asked:
        if not is_greeting(message):
            text = f"{text} {message}".strip()
        if len(text) >= MIN_OPENING_CHARACTERS:
            return text
    return text or " ".join(asked)


def holds_conversations(
    columns: Collection[str], fields: Mapping[str, str], rows: Iterable[Mapping[str, Any]], is_plain: bool
) -> bool:
    """Return True if the columns and first rows of a file show that it contains conversations.

    If the columns also fit questions and answers (`is_plain`), a column such as `conversation` may contain only numbers
    or ids, so its first rows must contain lists of messages. A file with the columns `question` and `answer` contains
    no conversations.
    """
    found = {column.lower() for column in columns}
    if "messages" in fields or fields.keys() - COLUMNS.keys() or not found & set(COLUMNS["messages"]):
        return "messages" in fields
    if not is_plain:
        return True
    return not {"question", "answer"} <= found and any(
        isinstance(cell, list | tuple) and cell and isinstance(cell[0], Mapping)
        for cell in _cells(rows, COLUMNS["messages"])
    )


def is_alpaca(columns: Collection[str], fields: Mapping[str, str], rows: Iterable[Mapping[str, Any]]) -> bool:
    """Return True if a file is in Alpaca's layout: it has an instruction, an output, and an input or a history."""
    if "instruction" in fields or fields.keys() - ALPACA_COLUMNS.keys():
        return "instruction" in fields
    found = {column.lower() for column in columns} | fields.keys()
    if not {"instruction", "output"} <= found or "question" in found:
        return False
    return "input" in found or any(
        isinstance(cell, list | tuple) and cell and all(map(_is_pair, cell))
        for cell in _cells(rows, ALPACA_COLUMNS["history"])
    )


def _cells(rows: Iterable[Mapping[str, Any]], names: Collection[str]) -> Iterator[object]:
    return (parsed(value) for row in rows for name, value in row.items() if str(name).lower() in names)


def _is_pair(pair: object) -> bool:
    return isinstance(pair, list | tuple) and len(pair) == 2


def alpaca_messages(values: Mapping[str, Any]) -> list[Any] | str:
    """Return the messages of a row in Alpaca's layout, or the reason for rejecting it."""
    history = parsed(values.get("history")) or []
    if not isinstance(history, list | tuple) or any(not _is_pair(pair) for pair in history):
        return "history is not a list of (message, reply) pairs"
    asked = [text for text in (values.get("instruction"), values.get("input")) if text]
    if not all(isinstance(text, str) for text in asked):
        return "instruction or input is not text"
    turns = (turn for pair in history for turn in zip(("user", "assistant"), pair, strict=True))
    messages = [{"role": role, "content": text} for role, text in turns]
    question = "\n\n".join(text.strip() for text in asked if text.strip())
    return [*messages, {"role": "user", "content": question}, {"role": "assistant", "content": values.get("output")}]


def read_turns(messages: object, system: object, thoughts: Thoughts, changes: Counter[str]) -> list[Turn] | str:
    """Return the turns of a conversation up to the assistant's last turn, or the reason for rejecting it."""
    messages = parsed(messages)
    if not isinstance(messages, list | tuple) or not messages:
        return "messages is not a list of {role, content} or {from, value}"
    turns: list[Turn] = []
    found: Counter[str] = Counter()
    if isinstance(system, str) and system.strip():
        turns.append(Turn(role="system", text=system.strip()))
    for message in messages:
        turn = _turn(message)
        if isinstance(turn, str):
            return turn
        text, problem = turn.text, _out_of_order(turn, turns)
        if turn.role == "assistant" and thoughts == "strip":
            text, thoughts_problem = _without_thoughts(turn.text)
            found[STRIPPED] += text != turn.text
            problem = thoughts_problem or problem
        if problem:
            return problem
        turns.append(Turn(role=turn.role, text=text))
    if turns[-1].role == "user":
        # A message without a reply teaches the model nothing.
        turns.pop()
        found[UNANSWERED] += 1
    if not any(turn.role == "assistant" for turn in turns):
        return "no assistant turn"
    changes.update(found)
    return turns


_ARRAY = re.compile(r"""['"]\s+['"]""")
"""Two texts without a comma between them, as NumPy writes an array; Python would join the texts"""


def parsed(value: object) -> object:
    """Return the value of a cell; a list or object that is stored as text, as in CSV files, is parsed if it is usable.

    The text can be JSON, or Python's notation, in which pandas writes lists into CSV files.
    """
    if not isinstance(value, str) or value.strip()[:1] + value.strip()[-1:] not in ("[]", "{}"):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        if _ARRAY.search(value):
            return value
        try:
            found = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return value
    return value if problem_in_text(found) else found  # An escape in the text can stand for an unusable character


def _turn(message: object) -> Turn | str:
    """Return the message as a Turn, or the reason for rejecting it."""
    if not isinstance(message, Mapping):
        return "a message is not {role, content} or {from, value}"
    stated = message.get("role") or message.get("from")
    role = ROLES.get(str(stated).strip().lower())
    if role is None:
        return f"unknown role {str(stated)[:40]!r} (system, user or human, assistant or gpt)"
    if message.get("tool_calls"):
        return "tool calls are not supported"
    if role == "assistant" and message.get("weight") == 0:
        return "an assistant turn with weight 0 (all assistant turns are trained on; remove the weight to allow this)"
    content = message.get("value") if message.get("content") is None else message["content"]
    if isinstance(content, Sequence) and not isinstance(content, str):
        parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        if not all(isinstance(part, str) for part in parts):
            return f"a part of the {role}'s message is not text"
        content = "".join(map(str, parts))
    if content is not None and not isinstance(content, str):
        return f"the content of the {role}'s message is not text"
    text = (content or "").strip()
    return Turn(role=role, text=text) if any(map(str.isprintable, text)) else f"an empty {role} turn"


def _without_thoughts(text: str) -> tuple[str, str]:
    """Return an assistant's text without thoughts, and the reason for rejecting the text, or "" if it is usable."""
    left = THOUGHTS.sub("", text)
    if "</think>" in left and "<think>" not in left:
        # In some templates, the opening tag is part of the prompt.
        left = left.rpartition("</think>")[2]
    if "<think>" in left:
        return left, "thoughts that don't end (<think> without </think>)"
    empty = "an empty assistant turn after stripping its thoughts (to keep them, set thoughts: keep)"
    return left.strip(), "" if left.strip() else empty


def _out_of_order(turn: Turn, before: Sequence[Turn]) -> str:
    """Return the reason why a turn can't follow the turns before it, or "" if it can."""
    last = before[-1].role if before else ""
    if turn.role == "system":
        return "a system message that is not the first message" if before else ""
    if turn.role == "assistant" and last in ("", "system"):
        return "starts with the assistant, not the user"
    return f"two {turn.role} turns in a row" if turn.role == last else ""
