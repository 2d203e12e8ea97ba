"""Conversations in a user's own file, in the three layouts that people have, and what is wrong with bad ones."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from meditune.config.data_options import DataSpec, PhiSpec, SourceSpec
from meditune.data.deidentify import Findings, deidentified
from meditune.data.example import Example, Turn, read_examples, write_records
from meditune.data.leakage import find, known_test_items, record
from meditune.data.quality.deduplication import pairs
from meditune.data.read_sources import read_sources
from meditune.data.readers import conversations, user_files
from meditune.data.readers.tables import Rejects
from meditune.data.splits import by_group
from meditune.errors import DataError

ASKED = [("system", "Be brief."), ("user", "Is it flu?"), ("assistant", "Perhaps."), ("user", "Why?")]


def openai(*messages: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in messages]}


def lines(path: Path, *found: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return path


def read(path: Path, **options: Any) -> tuple[list[Example], list[tuple[str, str]]]:
    """The conversations of a file, and where and why rows were rejected."""
    rejects = Rejects()
    found = list(user_files.read(path, rejects, **options))
    return found, [(row["where"], row["reason"]) for row in rejects.rows()]


def said(example: Example) -> list[tuple[str, str]]:
    assert example.turns is not None
    earlier = [(turn.role, turn.text) for turn in example.turns]
    return [*earlier, ("user", example.question), ("assistant", example.answer)]


def test_the_three_layouts_hold_the_same_conversation(tmp_path: Path) -> None:
    whole = [*ASKED, ("assistant", "You cough.")]
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    sharegpt = {"conversations": [{"from": names[role], "value": text} for role, text in whole], "id": "s"}
    column = sharegpt | {"conversations": sharegpt["conversations"][1:], "system": "Be brief.", "ward": 7}
    alpaca = {
        "instruction": "Why?",
        "input": "",
        "output": "You cough.",
        "system": "Be brief.",
        "history": [["Is it flu?", "Perhaps."]],
    }
    files = [openai(*whole), sharegpt, column, alpaca]
    read_all = [read(lines(tmp_path / f"{number}.jsonl", row)) for number, row in enumerate(files)]
    assert [rejected for _, rejected in read_all] == [[]] * 4
    examples = [example for (example,), _ in read_all]
    assert [said(example) for example in examples] == [whole] * 4
    assert len({example.group for example in examples}) == 1, "the same beginning is in the same split"
    assert (examples[1].id, examples[2].meta) == ("own:s", {"ward": 7})


def test_an_instruction_and_its_input_are_one_message(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "alpaca.jsonl",
        {"instruction": "Answer in one word.", "input": "Is it flu?", "output": "Perhaps."},
        {"instruction": "Name a drug.", "input": "", "output": "Aspirin."},
    )
    found, _ = read(path)
    assert [example.question for example in found] == ["Answer in one word.\n\nIs it flu?", "Name a drug."]
    assert all(example.turns == () for example in found)


@pytest.mark.parametrize(
    "more",
    [
        {"question": "Flu?", "answer": "No.", "conversation": "c17"},
        {"question": "Flu?", "answer": "No.", "messages": openai(*ASKED, ("assistant", "You cough."))["messages"]},
        {"prompt": "Flu?", "response": "No.", "conversations": 3},
        {"instruction": "Flu?", "output": "No."},
        {"instruction": "Flu?", "output": "No.", "history": "Asthma since 2011."},
        {"question": "Flu?", "answer": "No.", "turns": []},
    ],
)
def test_questions_and_answers_with_such_columns_stay_what_they_are(tmp_path: Path, more: dict[str, Any]) -> None:
    ((example,), rejected) = read(lines(tmp_path / "rows.jsonl", more))
    assert (example.question, example.answer, example.turns, rejected) == ("Flu?", "No.", None, [])


def test_a_mapped_group_and_a_history_without_input_still_mean_conversations(tmp_path: Path) -> None:
    chat = openai(*ASKED, ("assistant", "You cough.")) | {"ward": 7}
    (example,), _ = read(lines(tmp_path / "a.jsonl", chat), fields={"group": "ward"})
    assert (said(example), example.group) == ([*ASKED, ("assistant", "You cough.")], "7")
    alpaca = {"instruction": "Why?", "output": "You cough.", "history": [["Is it flu?", "Perhaps."]]}
    (example,), _ = read(lines(tmp_path / "b.jsonl", alpaca))
    assert said(example) == [*ASKED[1:], ("assistant", "You cough.")]


def test_messages_in_a_csv_and_in_another_column(tmp_path: Path) -> None:
    path = tmp_path / "chats.csv"
    for written in (json.dumps, repr):  # pandas writes lists like repr
        text = written(openai(("user", "Is it flu?"), ("assistant", "Perhaps."))["messages"]).replace('"', '""')
        path.write_text(f'chat,ward\n"{text}",7\n', encoding="utf-8")
        (example,), rejected = read(path, fields={"messages": "chat"})
        assert (said(example), rejected) == ([("user", "Is it flu?"), ("assistant", "Perhaps.")], [])
    with pytest.raises(DataError, match=r"no column 'chats'.*Did you mean 'chat'\?"):
        read(path, fields={"messages": "chats"})


def test_parts_of_text_are_joined_and_developers_count_as_the_system(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Is it "}, {"type": "text", "text": "flu?"}]
    row = openai(("developer", "Be brief."), ("user", parts), ("assistant", " Perhaps.\n"))
    (example,), _ = read(lines(tmp_path / "a.jsonl", row))
    assert said(example) == [("system", "Be brief."), ("user", "Is it flu?"), ("assistant", "Perhaps.")]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (openai(("assistant", "Hello!"), ("user", "Flu?"), ("assistant", "No.")), "starts with the assistant"),
        (openai(("system", "Hi"), ("assistant", "Hello!")), "starts with the assistant"),
        (openai(("user", "Flu?"), ("doctor", "No.")), "unknown role 'doctor'"),
        (openai(("user", "Flu?"), ("tool", "No.")), "unknown role 'tool'"),
        (openai(("user", "  "), ("assistant", "No.")), "an empty user turn"),
        (openai(("user", "Flu?"), ("assistant", None)), "an empty assistant turn"),
        (openai(("user", "Flu?")), "no assistant turn"),
        (openai(("user", "Flu?"), ("user", "Hello?"), ("assistant", "No.")), "two user turns in a row"),
        (openai(("user", "Flu?"), ("system", "Hi"), ("assistant", "No.")), "a system message that is not the first"),
        (openai(("user", [{"type": "image_url"}]), ("assistant", "No.")), "part of the user's message is not text"),
        (
            {"messages": [{"role": "user", "content": "Flu?"}, {"role": "assistant", "content": "No.", "weight": 0}]},
            "an assistant turn with weight 0",
        ),
        ({"messages": "user: Flu?"}, "messages is not a list"),
        ({"messages": ["Flu?", "No."]}, "a message is not {role, content}"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [1]}]}, "tool calls are not supported"),
    ],
)
def test_a_bad_conversation_is_named_with_its_line(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    good = openai(*ASKED, ("assistant", "You cough."))
    path = lines(tmp_path / "chats.jsonl", good, row)
    found, rejected = read(path)
    assert len(found) == 1
    ((where, why),) = rejected
    assert where == f"{path}:2"
    assert reason in why
    with pytest.raises(DataError, match=rf"no usable rows in .*alone\.jsonl\. .*alone\.jsonl:1: .*{reason[:12]}"):
        only = lines(tmp_path / "alone.jsonl", row)
        read_sources(DataSpec(sources=[SourceSpec(name="own", path=str(only))]), 1, Rejects(), Findings(PhiSpec()))


THOUGHT = "<think>\nIt is winter.\n</think>\n\nPerhaps."


def test_thoughts_are_stripped_and_counted_or_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begun_by_the_template = THOUGHT.removeprefix("<think>\n")
    rows = [
        openai(("user", "Flu?"), ("assistant", THOUGHT), ("user", "So?"), ("assistant", begun_by_the_template)),
        openai(("user", "What does <think> do?"), ("assistant", "Nothing.")),
    ]
    path = lines(tmp_path / "chats.jsonl", *rows)
    for thoughts, replies, count in (("strip", ["Perhaps."] * 2, 2), ("keep", [THOUGHT, begun_by_the_template], 0)):
        source = SourceSpec.model_validate({"name": "own", "path": str(path), "thoughts": thoughts})
        by_source, facts = read_sources(DataSpec(sources=[source]), 1, Rejects(), Findings(PhiSpec()))
        first, second = by_source["own"]
        assert [text for role, text in said(first) if role == "assistant"] == replies
        assert second.question == "What does <think> do?", "the user's words stay"
        assert facts["own"].get("thoughts_stripped", 0) == count
        assert ("thoughts (<think> ... </think>) in 2 assistant turns were removed" in capsys.readouterr().err) == (
            count > 0
        )
    only_thoughts = lines(tmp_path / "b.jsonl", openai(("user", "Flu?"), ("assistant", "<think>Hm.</think>")))
    assert "after stripping its thoughts" in read(only_thoughts)[1][0][1]
    unfinished = lines(tmp_path / "c.jsonl", openai(("user", "Flu?"), ("assistant", "<think>Hm.")))
    assert "thoughts that don't end" in read(unfinished)[1][0][1]


def test_a_last_message_without_a_reply_is_left_out_and_counted(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", openai(("user", "Flu?"), ("assistant", "No."), ("user", "Thanks!")))
    changes: Counter[str] = Counter()
    (example,), rejected = read(path, changes=changes)
    assert (said(example), rejected) == ([("user", "Flu?"), ("assistant", "No.")], [])
    assert changes == Counter({conversations.UNANSWERED: 1})


def test_a_prepared_conversation_is_read_again_as_it_was(tmp_path: Path) -> None:
    (example,), _ = read(lines(tmp_path / "a.jsonl", openai(*ASKED, ("assistant", "You cough."))))
    write_records(tmp_path / "train.jsonl", [example])
    assert read_examples(tmp_path / "train.jsonl") == [example]
    (again,), _ = read(tmp_path / "train.jsonl")
    assert again.turns == example.turns
    plain = Example(id="own:1", source="own", question="Flu?", group="1")
    assert "turns" not in plain.model_dump()
    assert "turns" not in plain.model_dump_json()


def test_earlier_turns_count_where_conversations_are_compared() -> None:
    def talk(number: int, first: str, reply: str = "It depends on the dose.") -> Example:
        turns = (Turn(role="user", text=first), Turn(role="assistant", text=reply))
        return Example(
            id=f"own:{number}",
            source="own",
            question="And for children?",
            answer="Half of the dose.",
            group=str(number),
            turns=turns,
        )

    aspirin, statins = talk(1, "How much aspirin may I take?"), talk(2, "When are statins given at night?")
    assert pairs([aspirin, statins]) == []
    assert pairs([aspirin, talk(3, "How much aspirin may I take?", "Up to 4 g.")]) == [], "another earlier reply"
    assert len(pairs([aspirin, talk(3, "How much aspirin may I take?")])) == 1
    assert find([aspirin], [statins]) == []
    assert [leak.kind for leak in find([aspirin], [talk(3, "How much aspirin may I take?")])] == ["question"]


def test_a_greeting_makes_no_group_and_a_turn_is_found_outside_of_its_conversation(tmp_path: Path) -> None:
    def talk(question: str) -> list[tuple[str, str]]:
        return [("user", "Hi doctor!"), ("assistant", "How can I help?"), ("user", question), ("assistant", "Rest.")]

    asked = ("How much aspirin may I take?", "When are statins given?")
    follow_up = [("user", "And for children of two years?"), ("assistant", "Half of the dose.")]
    rows = [*(openai(*talk(text)) for text in asked), openai(*talk(asked[0])[2:], *follow_up)]
    (aspirin, statins, no_greeting), _ = read(lines(tmp_path / "a.jsonl", *rows))
    assert aspirin.group == no_greeting.group != statins.group
    alone = no_greeting.model_copy(update={"id": "own/b:1", "source": "own/b", "group": "b", "turns": None})
    first = alone.model_copy(update={"question": asked[0], "answer": "Four grams."})
    other = alone.model_copy(update={"answer": "That depends on the weight."})
    for test, leaks in ((alone, ["question"]), (first, ["question"]), (other, [])):
        assert [leak.kind for leak in find([no_greeting, statins], [test])] == leaks
        assert bool(known_test_items([record([no_greeting, statins])], [], [test])) == bool(leaks)
    others = [
        alone.model_copy(update={"id": f"o:{n}", "question": f"Is drug {n} safe?", "answer": "", "group": str(n)})
        for n in range(20)
    ]
    for seed in range(4):
        rest, held = by_group([no_greeting, alone, first, *others], 0.3, seed)
        assert len({each in rest for each in (no_greeting, alone, first)}) == 1
        assert held


def test_identifiers_are_masked_in_every_turn() -> None:
    turns = (Turn(role="user", text="I am at ann.lee@example.org."), Turn(role="assistant", text="Thank you."))
    example = Example(id="own:1", source="own", question="Flu?", answer="No.", group="1", turns=turns)
    spec = PhiSpec(action="mask")
    (masked,) = deidentified([example], spec, Findings(spec))
    assert masked.turns is not None
    assert "example.org" not in masked.turns[0].text
    assert masked.turns[1] == turns[1]
