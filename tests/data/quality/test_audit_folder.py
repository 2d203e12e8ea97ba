"""Rows read as a stream are judged as rows in memory are, here, in workers and on Ray."""

import importlib.util
import random

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from meditune.data.quality import audit_folder as folders
from meditune.data.quality import minhash
from meditune.data.quality.audit import Audit
from meditune.data.quality.audit_folder import audit_folder, recipe_for
from meditune.data.quality.ledger import entries
from meditune.data.readers.tables import Rejects
from meditune.data.readers.user_files import read
from meditune.errors import DataError
from tests.commands import jsonl, meditune, read_rows
from tests.data.quality.test_audit import BAD
from tests.data.quality_examples import ANSWER

DRUGS = ("aspirin", "ibuprofen", "insulin", "metformin", "warfarin", "codeine", "heparin", "naproxen", "digoxin")
PARTS = ("heart", "liver", "kidney", "skin", "lung", "stomach", "bladder", "thyroid", "knee", "spine", "retina")


def planted(count=150, seed=5):
    """Good rows, and among them every defect, copies, rewrites, rewrites of rewrites, and questions asked again."""
    chance = random.Random(seed)
    rows = []
    for n in range(count):
        drug, part = chance.choice(DRUGS), chance.choice(PARTS)
        told = " ".join(chance.choices(DRUGS + PARTS, k=30))
        rows.append(
            {
                "question": f"How does {drug} of kind {n} harm the {part}?",
                "answer": f"In the {part}, {drug} acts on {told}. Doctors watch for pain and fever number {n}.",
            }
        )
    for number, changes in enumerate(BAD.values()):
        rows.append({"question": f"How is asthma number {number} treated?", "answer": ANSWER} | changes)
    for row in chance.sample(rows[:count], 12):
        rows.append(row | {"answer": row["answer"].replace(", ", " ")})
        nearly = row | {"answer": row["answer"].replace("Doctors watch", "Physicians watch")}
        rows += [nearly, nearly | {"answer": nearly["answer"].replace("acts on", "works on")}]
        rows.append(row | {"answer": "Nothing is known of it, but doctors look for pain in the body."})
    rows += [{"question": "", "answer": "x"}, {"question": "How is gout treated?"}]
    chance.shuffle(rows)
    return [row | {"id": str(n), "group": f"group {n}", "topic": "x"} for n, row in enumerate(rows)]


def parquet(path, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=50)
    return path


def ledger(folder):
    return [row for row in entries(folder) if row["rule"] != "cross_split"]


def audited(path, folder, *settings, **how):
    quality = audit_folder(recipe_for(str(path), list(settings)), folder, **how)
    return quality, ledger(folder)


SETTINGS = {
    "by default": (),
    "merged": ("data.quality.rules.repeated_question=merge", 'data.quality.keep=["own:100","own:120"]'),
    "grouped": ("data.quality.rules.repeated_question=group", "data.quality.rules.near_duplicate=flag"),
    "masked": ("data.phi.action=mask", "data.quality.near_duplicate_similarity=0.9"),
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_stream_finds_what_is_found_in_memory(tmp_path, settings, monkeypatch):
    monkeypatch.setattr("meditune.data.quality.audit_folder.BATCH", 40)
    monkeypatch.setattr("meditune.data.quality.minhash.TEXTS", 16)
    path = jsonl(tmp_path / "mine.jsonl", planted())
    whole, expected = audited(path, tmp_path / "whole", *settings, stream=False)
    streamed, found = audited(path, tmp_path / "streamed", *settings, stream=True)
    assert found == expected
    rules = {row["rule"] for row in expected}
    assert rules >= {"exact_duplicate", "near_duplicate", "repeated_question", "truncated", "layout"}
    for quality in (whole, streamed):
        quality["audit"]["rules"].pop("cross_split")
    assert streamed["audit"] == whole["audit"]
    assert streamed["lengths"] == whole["lengths"]
    assert streamed["phi"] == whole["phi"]
    assert streamed["sources"] == whole["sources"]
    assert read_rows(tmp_path / "streamed" / "rejected.jsonl") == read_rows(tmp_path / "whole" / "rejected.jsonl")


def test_the_rows_that_are_left_are_written_in_order(tmp_path):
    path = parquet(tmp_path / "mine.parquet", planted())
    recipe = recipe_for(str(path), [])
    audit = Audit(recipe.data.quality, ())
    audit.rows({"own": list(read(path, Rejects()))})
    quality, _ = audited(path, tmp_path / "out", stream=True, workers=2)
    left = pyarrow.parquet.read_table(tmp_path / "out" / "rows.parquet").to_pylist()
    assert [row["id"] for row in left] == [example.id for example in audit.left["own"]]
    assert [row["answer"] for row in left] == [example.answer for example in audit.left["own"]]
    assert left[0]["meta"] == '{"topic": "x"}'
    assert quality["stream"] == {"engine": "local", "workers": 2, "rows": len(left)}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray isn't installed")
def test_ray_finds_the_same(tmp_path):
    path = jsonl(tmp_path / "mine.jsonl", planted(60))
    _, expected = audited(path, tmp_path / "whole", stream=False)
    quality, found = audited(path, tmp_path / "ray", engine="ray", workers=2)
    assert found == expected
    assert quality["stream"]["engine"] == "ray"


def test_nothing_is_left_where_it_fails(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(jsonl(tmp_path / "good.jsonl", planted()).read_text(encoding="utf-8") + '{"question": ', "utf-8")
    with pytest.raises(DataError, match="line 21"):
        audit_folder(recipe_for(str(path), []), tmp_path / "out", stream=True)
    assert {each.name for each in tmp_path.iterdir()} == {"mine.jsonl", "good.jsonl"}


def test_the_command_streams_a_large_file_by_itself(tmp_path, monkeypatch):
    path = jsonl(tmp_path / "mine.jsonl", planted(30))
    assert meditune("data", "audit", path, "--output", tmp_path / "small").code == 0
    monkeypatch.setattr(folders, "STREAM_BYTES", 1000)
    result = meditune("data", "audit", path, "--output", tmp_path / "out")
    assert result.code == 0, result.err
    assert "the file is read as a stream" in result.err
    assert "no splits" in result.out
    names = {each.name for each in (tmp_path / "out").iterdir()}
    assert names == {"audit.html", "quality.json", "ledger.parquet", "rejected.jsonl", "rows.jsonl"}
    assert "truncated" in (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")
    meditune("data", "audit", path, "-o", tmp_path / "out", "--no-stream", "--engine", "ray").refused(1, "--no-stream")
    meditune("data", "audit", "quickstart", "-o", tmp_path / "new", "--stream").refused(1, "one file of your own")


def test_rows_that_all_say_nearly_the_same_cost_no_square():
    """1,500 rewrites of one text have over a million pairs; each row still meets one that came before it."""
    chance = np.random.default_rng(3)
    form = minhash.shingles(ANSWER * 2)
    rows = [np.unique(np.append(form, chance.integers(0, 2**63, 3, np.uint64))) for _ in range(1500)]
    pairs = minhash.near_duplicate_pairs(map(minhash.sign, minhash.texts_to_sign(rows)), len(rows), 0.5)
    assert len(pairs) < len(rows) * minhash.WINDOW * 6
    assert set(pairs[:, 1]) == set(range(1, len(rows)))
    assert (pairs[:, 0] < pairs[:, 1]).all()
