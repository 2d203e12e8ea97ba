"""Text that comes token by token is the text of all tokens, and nothing that ends it is shown."""

import pytest

from meditune.engines.tokenizer import Wording
from tests import tiny

SAID = "Ärzte sagen: β-Blocker helfen 😀, 高血压 too. It’s naïve."


def pieces(ids, prompt, stop=()):
    wording = Wording(tiny.tokenizer(), prompt, stop)
    found = []
    for token in ids:
        found.append(wording.add(token))
        if wording.stopped:
            return found
    return [*found, wording.rest()]


def test_characters_of_several_tokens_come_whole():
    tokenizer = tiny.tokenizer()
    ids = tokenizer(SAID)["input_ids"]
    found = pieces(ids, tokenizer("Question: why?")["input_ids"])
    assert "".join(found) == SAID
    assert not any("\ufffd" in piece for piece in found)
    assert sum(map(bool, found)) > 20, "it doesn't come piece by piece"


def test_half_a_character_at_the_end_is_left_out():
    tokenizer = tiny.tokenizer()
    ids = tokenizer("yes 😀")["input_ids"]
    assert "".join(pieces(ids[:-1], [5])) == "yes "


@pytest.mark.parametrize("broken", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("said", ["é", "血", "😀", "é yes 血"])
def test_a_character_after_bytes_that_are_none_isnt_lost(broken, said):
    tokenizer = tiny.tokenizer()
    half = tokenizer("😀")["input_ids"][0]
    ids = [
        *tokenizer("no ")["input_ids"],
        *[half] * broken,
        *tokenizer(said)["input_ids"],
        *tokenizer("!")["input_ids"],
    ]
    assert "".join(pieces(ids, [5])) == tokenizer.decode(ids) == "no " + "\ufffd" * broken + said + "!"


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (("😀",), "Ärzte sagen: β-Blocker helfen "),
        (("too. Not", "naïve"), "Ärzte sagen: β-Blocker helfen 😀, 高血压 too. It’s "),
        (("e sa", "Ärzte sagen!"), "Ärzt"),
        (("", "not there"), SAID),
        ((SAID[-3:] + "!",), SAID),
    ],
)
def test_a_text_that_ends_the_answer_is_not_part_of_it(stop, expected):
    ids = tiny.tokenizer()(SAID)["input_ids"]
    assert "".join(pieces(ids, [5], stop)) == expected


def test_special_tokens_are_no_text():
    tokenizer = tiny.tokenizer()
    ids = tokenizer("yes")["input_ids"]
    assert "".join(pieces([0, *ids, 0], [0])) == "yes"
