"""The rules that the API has for training files."""

import json

import pytest

from meditune.errors import DataError
from meditune.train import hosted_job
from meditune.train.hosted_job import check

USER = {"role": "user", "content": "Does it help?"}
ANSWER = {"role": "assistant", "content": "yes"}


def write(path, *odd, count=10):
    """A training file whose last rows are the odd ones."""
    lines = [{"messages": [USER, ANSWER]}] * (count - len(odd)) + list(odd)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_a_file_that_keeps_the_rules(tmp_path):
    check(write(tmp_path / "rows.jsonl"))


@pytest.mark.parametrize(
    ("odd", "problem"),
    [
        ({}, "no messages"),
        ({"messages": []}, "no messages"),
        ({"messages": [ANSWER]}, "there is no user message"),
        ({"messages": [USER]}, "the last message isn't the assistant's"),
        ({"messages": [USER, ANSWER, USER]}, "the last message isn't the assistant's"),
        ({"messages": [USER, ANSWER | {"role": "doctor"}]}, "role is not one of"),
        ({"messages": [USER, ANSWER | {"content": " "}]}, "the assistant message is empty"),
        ({"messages": [USER | {"content": None}, ANSWER]}, "the user message is empty"),
        ({"messages": [USER, "yes"]}, "role is not one of"),
    ],
)
def test_a_row_that_breaks_one_is_named(tmp_path, odd, problem):
    with pytest.raises(DataError, match=f"rows.jsonl, line 10: .*{problem}"):
        check(write(tmp_path / "rows.jsonl", odd))


def test_too_few_rows_and_too_large_a_file(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="9 rows; the fine-tuning API needs at least 10"):
        check(write(tmp_path / "rows.jsonl", count=9))
    monkeypatch.setattr(hosted_job, "LARGEST_BYTES", 100)
    with pytest.raises(DataError, match="the API accepts files of up to"):
        check(write(tmp_path / "rows.jsonl"))
