"""Ollama's prompts from a Modelfile: the part of Go's text/template that our templates use."""

import re
from collections.abc import Callable
from pathlib import Path

from meditune.chat_template import Messages
from meditune.export.prompt_templates import MODELFILE

ACTION = re.compile(r"\{\{ (.*?) \}\}")
TEMPLATE = re.compile('^TEMPLATE """(.*?)"""$', re.DOTALL | re.MULTILINE)


def modelfile_prompt(folder: Path) -> Callable[[Messages], str]:
    """Return a function that writes the prompts of the Modelfile in a folder as Ollama does."""
    found = TEMPLATE.search((folder / MODELFILE).read_text())
    assert found is not None, "modelfile() writes a template"
    pieces = ACTION.split(found[1])
    return lambda messages: _executed(
        pieces,
        0,
        {"System": "\n\n".join(message["content"] for message in messages if message["role"] == "system")},
        messages,
    )[0]


def _executed(pieces: list[str], at: int, fields: dict[str, str], messages: Messages) -> tuple[str, int]:
    """Execute a template of Go's text/template up to the end of a block, and return its text and where it ended.

    `pieces` are texts and, at odd places, actions: fields, conditions on fields and roles, and a loop over messages.
    """
    text = ""
    while at < len(pieces):
        action = pieces[at] if at % 2 else ""
        if action == "end" or action.startswith("else"):
            break
        if not at % 2:
            text += pieces[at]
        elif action.startswith("."):
            text += fields[action[1:]]
        elif action == "range .Messages":
            begin = at + 1
            _, at = _executed(pieces, begin, {"Role": "", "Content": ""}, messages)
            for message in messages:
                inside = {"Role": message["role"], "Content": message["content"]}
                text += _executed(pieces, begin, inside, messages)[0]
        else:
            is_done = False
            while pieces[at] != "end":
                condition = pieces[at].removeprefix("else").strip()
                branch, at = _executed(pieces, at + 1, fields, messages)
                if not is_done and _holds(condition, fields):
                    text, is_done = text + branch, True
        at += 1
    return text, at


def _holds(condition: str, fields: dict[str, str]) -> bool:
    """Return whether a condition holds: "" (else), "if .System" or 'if eq .Role "user"'."""
    if not condition.startswith("if eq "):
        return not condition or bool(fields[condition.removeprefix("if .")])
    name, value = condition.removeprefix("if eq .").split(" ", 1)
    return f'"{fields[name]}"' == value
