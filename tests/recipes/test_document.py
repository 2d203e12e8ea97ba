import pytest

from meditune.config.recipe_keys import Document, UnreadableError, flow


def test_lines_are_those_of_the_keys_and_items() -> None:
    document = Document("a:\n  b: 1\n  c:\n    - x\n    - y: [1, 2]\n")
    assert document.lines == {
        ("a",): 1,
        ("a", "b"): 2,
        ("a", "c"): 3,
        ("a", "c", 0): 4,
        ("a", "c", 1): 5,
        ("a", "c", 1, "y"): 5,
        ("a", "c", 1, "y", 0): 5,
        ("a", "c", 1, "y", 1): 5,
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-5", 5e-5),
        ("-1.5", -1.5),
        ("010", 10),
        ("1:30", "1:30"),
        ("2024-01-02", "2024-01-02"),
        ("yes", "yes"),
        ("on", "on"),
        ("True", True),
        ("~", None),
        ("0x10", "0x10"),
        ("1e", "1e"),
        ("-", [None]),
        ("'8'", "8"),
    ],
)
def test_plain_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    found = Document(text).value
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("value", ["yes", "1e5", "01", "1_000", "12:30", "a: b", "[", "x\ny", "\u2028", "-", "?", " "])
def test_flow_is_one_line_that_reads_back(value: str) -> None:
    text = flow({"k": [value]})
    assert len(text.splitlines()) == 1
    assert Document(text).value == {"k": [value]}
    assert Document(flow(value)).value == value


def test_a_broken_text_names_its_line() -> None:
    with pytest.raises(UnreadableError) as caught:
        Document("a: 1\nb: [1\nc: 2\n")
    assert caught.value.line == 3
