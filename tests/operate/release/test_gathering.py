"""Of several corrections of one answer an expert's counts, and the decision that was named with it."""

from __future__ import annotations

import stat
from pathlib import Path

from meditune.files import read_jsonl
from meditune.operate.retraining.new_training_data import Wanted, gather
from meditune.store.answers import Answer, Answers, Feedback
from meditune.store.database import Base


def test_an_expert_overrides_what_others_say_later(tmp_path: Path) -> None:
    answers = Answers(Base(tmp_path / "store"))
    for id in ("a", "b", "c"):
        answers.keep(Answer(id, "k", "ask", "tiny", question=f"Does herb {id} help?", answer="It helps."))
    right, wrong = "The herb was never tried.", "Yes, my aunt takes it."
    answers.say(Feedback("a", "expert", "down", correction=right, decision="maybe", expert=True, time=1.0))
    answers.say(Feedback("a", "nurse", "down", correction=wrong, time=2.0))
    answers.say(Feedback("b", "nurse", "down", correction=wrong, time=1.0))
    answers.say(Feedback("b", "other", "down", correction="No, it fails.", time=2.0))
    answers.say(Feedback("c", "expert", "down", decision="no", expert=True))
    found = gather(Wanted(str(tmp_path / "store"), ("all",)), tmp_path / "rows")
    said = {row["id"]: (row["answer"], row["decision"]) for row in read_jsonl(found.files["feedback"])}
    assert said == {
        "feedback-a": (right, "maybe"),
        "feedback-b": ("No, it fails.", "no"),
        "feedback-c": ("", "no"),
    }


def test_nobody_without_a_key_is_trusted_by_an_empty_name(tmp_path: Path) -> None:
    answers = Answers(Base(tmp_path / "store"))
    for id, who in (("a", ""), ("b", "nurse")):
        answers.keep(Answer(id, who, "ask", "tiny", question=f"Does herb {id} help?", answer="It helps."))
        answers.say(Feedback(id, who, "down", correction="It fails.", decision="no"))
    found = gather(Wanted(str(tmp_path / "store"), ("", "nurse")), tmp_path / "rows")
    assert [row["id"] for row in read_jsonl(found.files["feedback"])] == ["feedback-b"]
    assert stat.S_IMODE(found.files["feedback"].stat().st_mode) == 0o600
