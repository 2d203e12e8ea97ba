"""The card, as people and the hub's tools read it."""

import json
import os
import sys

import pytest
import yaml

from meditune.config.data_options import DataSpec, SourceSpec
from meditune.config.recipe import Recipe
from meditune.data.prepare import prepare
from tests import layouts
from tests.commands import jsonl, meditune, read_rows, rows
from tests.waiting import output_of

pytestmark = pytest.mark.usefixtures("own_folders")


def made(folder, *sources, split="group"):
    prepared = prepare(Recipe(name="test", data=DataSpec(sources=list(sources), split=split)), folder / "out")
    text = (folder / "out" / "README.md").read_text(encoding="utf-8")
    return prepared, yaml.safe_load(text.split("---\n")[1]), text


def own(folder, name="own", count=40, **given):
    changes = {key: given.pop(key) for key in ("answer", "licence_of_row", "ward") if key in given}
    if "licence_of_row" in changes:
        changes["licence"] = changes.pop("licence_of_row")
    changes |= {"id": lambda number: f"{name}-{number}", "question": lambda number: f"Does {name} {number} help?"}
    path = jsonl(folder / f"{name}.jsonl", rows(count, **changes))
    return SourceSpec(name="own", path=str(path), **given)


def test_the_head_is_what_the_hub_expects(tmp_path):
    layouts.pubmedqa(tmp_path / "data" / "pubmedqa", {str(n): layouts.pubmedqa_item(n) for n in range(1000)})
    _, head, text = made(tmp_path, SourceSpec(name="pubmedqa"), split="official")
    assert head["license"] == "mit"
    assert head["language"] == ["en"]
    assert head["size_categories"] == ["1K<n<10K"]
    assert "question-answering" in head["task_categories"]
    assert [each["split"] for each in head["configs"][0]["data_files"]] == ["train", "validation", "test"]
    for heading in (
        "Sources, licences",
        "How it was made",
        "Quality control",
        "Limits",
        "Personal data",
        "Intended use",
    ):
        assert f"## {heading}" in text
    assert "https://doi.org/10.18653/v1/D19-1259" in text


def test_datasets_reads_the_splits_of_a_mixed_set(tmp_path):
    pytest.importorskip("datasets")
    layouts.pubmedqa(tmp_path / "data" / "pubmedqa", {str(n): layouts.pubmedqa_item(n) for n in range(60)})
    layouts.liveqa(tmp_path / "data" / "liveqa")
    prepared, _, _ = made(
        tmp_path,
        SourceSpec(name="pubmedqa"),
        SourceSpec(name="liveqa"),
        own(tmp_path, "a", ward=lambda number: {"beds": number} if number % 2 else "none"),
    )
    code = (
        "import datasets, json, sys\n"
        "found = datasets.load_dataset(sys.argv[1])\n"
        "print(json.dumps({name: [row['id'] for row in rows] for name, rows in found.items()}))\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "hf")}
    found = output_of(sys.executable, "-c", code, tmp_path / "out", env=environment)
    splits = prepared.splits.named()
    assert json.loads(found) == {
        name: [example.id for example in splits[file]]
        for name, file in (("train", "train"), ("validation", "dev"), ("test", "test"))
    }


def test_licence_and_citation_travel_with_each_row(tmp_path):
    layouts.liveqa(tmp_path / "data" / "liveqa")
    prepared, head, text = made(
        tmp_path,
        SourceSpec(name="liveqa"),
        own(tmp_path, "a", licence="CC BY-SA 4.0", citation="Clinic (2026), Questions."),
        own(tmp_path, "b", licence="MIT", licence_of_row="CC BY-NC 4.0"),
        own(tmp_path, "c"),
    )
    kept = [row for name in ("train", "dev", "test") for row in read_rows(tmp_path / "out" / f"{name}.jsonl")]
    found = {row["id"].removeprefix("own:").split("-")[0]: row["meta"] for row in kept}
    assert found["a"]["licence"] == "CC BY-SA 4.0"
    assert found["a"]["citation"] == "Clinic (2026), Questions."
    assert found["b"]["licence"] == "CC BY-NC 4.0", "a row's own licence stands above the recipe"
    assert "licence" not in found["c"]
    liveqa = next(row["meta"] for row in kept if row["source"] == "liveqa")
    assert liveqa["citation"].startswith("https://github.com/")
    assert set(head["license"]) == {"unknown", "cc-by-sa-4.0", "cc-by-nc-4.0"}
    assert "language" not in head, "no one said what language the user's files are in"
    assert "- own: Clinic (2026), Questions." in text
    assert "No single licence covers the mixed set: cc-by-sa-4.0 and cc-by-nc-4.0" in text
    assert prepared.quality["terms"]["own"]["licences"] == {"CC BY-SA 4.0": 40, "CC BY-NC 4.0": 40, "yours": 40}


def test_a_restricted_source_is_said_everywhere(tmp_path):
    secret = own(tmp_path, "b", licence="Hospital agreement", restricted=True)
    prepared, head, text = made(tmp_path, own(tmp_path, "a"), secret)
    assert prepared.quality["terms"]["own"]["restricted"] == 40
    assert "restricted" in head["tags"]
    assert "**RESTRICTED: 40 rows of own (" in text
    for split in prepared.splits.named().values():
        assert all(bool(example.meta.get("restricted")) == example.id.startswith("own:b") for example in split)


def test_a_set_under_an_agreement_names_it(tmp_path):
    texts = (
        f"History of Present Illness:\nFell ill {n} days ago.\nHospital Course:\nRecovered on day {n}."
        for n in range(90)
    )
    notes = [layouts.note(n + 1, SUBJECT_ID=n + 1, TEXT=text) for n, text in enumerate(texts)]
    path = layouts.noteevents(tmp_path / "NOTEEVENTS.csv", notes)
    _, head, text = made(tmp_path, SourceSpec(name="mimic", path=str(path)))
    assert head["license"] == "other"
    assert head["license_name"].startswith("PhysioNet")
    assert "Trying to identify anyone is forbidden" in text


def test_invented_rows_are_said_to_be(tmp_path):
    _, head, text = made(tmp_path, SourceSpec(name="sample"))
    assert "synthetic" in head["tags"]
    assert "every study is invented" in text


def test_the_terminal_says_what_a_mixed_and_restricted_set_must_keep_to(tmp_path):
    free, secret = (str(own(tmp_path, name).path) for name in ("a", "b"))
    sources = [
        {"name": "own", "path": free, "licence": "CC BY-NC 4.0"},
        {"name": "own", "path": secret, "licence": "Ward's agreement", "restricted": True},
        {"name": "sample"},
    ]
    settings = ("--set", f"data.sources={json.dumps(sources)}", "--set", "data.split=group")
    result = meditune("data", "prepare", "quickstart", "-o", tmp_path / "run", *settings).ok()
    assert "The data may not be used commercially: own (CC BY-NC 4.0)." in result.out
    assert "may be shared: own (Ward's agreement)." in result.out
    assert "RESTRICTED: 40 rows of own" in result.out
