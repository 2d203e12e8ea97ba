"""The prose of Python's language reference."""

import hashlib
import sys

import pytest

from meditune.evaluate import general_knowledge
from meditune.evaluate.general_knowledge import is_prose, language_reference


def test_it_is_a_long_english_text_without_code_and_repetitions():
    text = language_reference()
    paragraphs = text.split("\n\n")
    assert len(text) > 100_000
    assert len(set(paragraphs)) == len(paragraphs)
    assert "Assignment statements are used to (re)bind names to values" in text
    for code in (">>>", "::=", "inst.x = inst.x + 1", "====", "----"):
        assert code not in text
    assert text == language_reference()


@pytest.mark.parametrize(
    ("paragraph", "prose"),
    [
        ('Return a copy of the string with its first character "capitalized" and the rest lowercased.', True),
        ("class Cls: x = 3 # class variable inst = Cls() inst.x = inst.x + 1 # writes inst.x as 4.", False),
        ("Assignment statements ******", False),
        ("str.count(sub[, start[, end]])", False),
    ],
)
def test_prose_is_told_from_code_and_headings(paragraph, prose):
    assert is_prose(paragraph) is prose


def test_its_edition_is_known():
    found = general_knowledge.technical()
    assert found.edition["sha256"] == hashlib.sha256(found.text.encode()).hexdigest()
    assert found.edition["python"] == ".".join(map(str, sys.version_info[:3]))


def test_a_python_without_it_is_told_and_nothing_fails(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    assert general_knowledge.technical() is None
    assert "evaluate.technical_tokens=0" in capsys.readouterr().err
