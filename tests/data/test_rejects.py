import json
import tracemalloc
from pathlib import Path

from meditune.data.readers.tables import Rejects


def test_rows_are_counted_and_written(tmp_path: Path) -> None:
    rejects = Rejects()
    rejects.add("own", "a.csv:3", "no question", {"question": "", "answer": "Käse"})
    rejects.add("own", "a.csv:9", "no question", {"answer": "x" * 2000})
    rejects.count_only("medquad", "no answer", 31)
    rejects.count_only("medquad", "never", 0)

    assert rejects.counts() == {"medquad": {"no answer": 31}, "own": {"no question": 2}}
    assert len(rejects) == 33
    assert rejects.write(tmp_path / "rejects.jsonl") == 2
    lines = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[0] == {
        "source": "own",
        "where": "a.csv:3",
        "reason": "no question",
        "row": '{"question": "", "answer": "Käse"}',
    }
    assert len(lines[1]["row"]) == 500


def test_rows_can_be_added_after_writing(tmp_path: Path) -> None:
    rejects = Rejects()
    rejects.add("own", "1", "bad", "a")
    assert rejects.write(tmp_path / "r.jsonl") == 1
    rejects.add("own", "2", "bad", "b")
    assert [row["where"] for row in rejects.rows()] == ["1", "2"]


def test_many_rows_take_little_memory() -> None:
    rejects = Rejects()
    tracemalloc.start()
    for number in range(20_000):
        rejects.add("own", f"file:{number}", "no question", "x" * 500)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4_000_000  # the rows are 12 MB
    assert len(list(rejects.rows())) == 20_000
