import pytest

from meditune.text import counted, sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Pain fell. Nobody died.", ["Pain fell.", "Nobody died."]),
        ("We used 2.5 mg vs. 5 mg (p < 0.05). It helped!", ["We used 2.5 mg vs. 5 mg (p < 0.05).", "It helped!"]),
        ("Dr. Who asked, e.g. Why? Because.", ["Dr. Who asked, e.g. Why?", "Because."]),
        ("no full stop", ["no full stop"]),
        ("", []),
    ],
)
def test_sentences(text, expected):
    assert sentences(text) == expected


def test_no_word_is_lost():
    text = "A 'quoted end.' Then (bracketed.) More? Yes! 3 of 4 did. E. coli grew."
    assert " ".join(sentences(text)).split() == text.split()


def test_numbers_of_things():
    assert [counted(count, "document") for count in (0, 1, 2, 5122)] == [
        "0 documents",
        "1 document",
        "2 documents",
        "5,122 documents",
    ]
