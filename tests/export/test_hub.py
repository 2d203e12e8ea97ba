"""Sending a run's model to a hub: the real client, a real server on this machine."""

import json

import pytest
import yaml

from meditune.config.data_options import DataSpec, SourceSpec
from meditune.config.recipe import Recipe
from meditune.data.leakage import FILE_NAME
from meditune.data.prepare import prepare
from meditune.export import verify
from tests import tiny
from tests.commands import jsonl, meditune, rows
from tests.data.hub import TOKEN, hub


@pytest.fixture
def there(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    with hub(large=(".safetensors",)) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running


@pytest.fixture
def run(tmp_path, monkeypatch):
    """What a finished run leaves: data, recipe and a model."""
    monkeypatch.setenv("MEDITUNE_DATA", "/nowhere")
    for module, name, value in ((verify, "COUNT", 6), (verify, "ANSWERS", 2), (verify, "WRITTEN_ITEMS", 2)):
        monkeypatch.setattr(module, name, value)
    return finished(tmp_path)


def finished(place, **terms):
    place.mkdir(exist_ok=True)
    path = jsonl(place / "own.jsonl", rows(40, id=lambda number: f"own-{number}", question=lambda n: f"Does {n} help?"))
    source = SourceSpec(name="own", path=str(path), **terms)
    prepare(Recipe(name="test", data=DataSpec(sources=[source], split="group")), place / "run" / "data")
    (place / "run" / "recipe.yaml").write_text("model:\n  base: smollm2-135m\n")
    tiny.save(place / "run" / "model")
    (place / "run" / "model" / FILE_NAME).write_text(
        json.dumps({"version": 1, "examples": 5, "unlisted": 0, "questions": [], "contexts": [], "groups": []})
    )
    return place / "run"


def send(run, *words):
    return meditune("export", run, "--to", "hub", "--repo", "clinic/answers", *words)


def test_the_merged_model_arrives_after_a_yes_and_names_no_place_here(run, there):
    asked = send(run)
    assert asked.code == 1
    assert f"To be sent to {there.url}/clinic/answers, where only you and your organization" in asked.err
    assert "smollm2-135m (Apache-2.0)" in asked.err
    assert "To agree, add --yes." in asked.err
    assert not any(request.startswith("POST") for request in there.requests)

    sent = send(run, "--yes")
    assert sent.code == 0, sent.err
    assert there.created[0]["visibility"] == "private"
    merged = run / "export" / "merged"
    assert set(there.files) == {path.name for path in merged.iterdir()}
    assert there.files["model.safetensors"] == (merged / "model.safetensors").read_bytes()
    assert not [name for name, data in there.files.items() if str(run.parent).encode() in data]
    card = there.files["README.md"].decode()
    front = yaml.safe_load(card.split("---")[1])
    assert (front["license"], front["base_model"]) == ("apache-2.0", "HuggingFaceTB/SmolLM2-135M-Instruct")
    assert "**Limits.**" in card
    assert json.loads(there.files["export.json"])["made_from"]["model"] == "smollm2-135m"


def test_a_model_of_restricted_data_stays_here(tmp_path, run, there):
    refused = send(finished(tmp_path / "other", restricted=True), "--yes")
    assert refused.code == 3
    assert "is restricted" in refused.err
    path = run / "model" / FILE_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {"unlisted": 7}))
    refused = send(run, "--yes")
    assert refused.code == 3
    assert "trained on 7 restricted examples" in refused.err
    assert there.requests == []


def test_what_is_missing_is_said_before_anything_is_made(run, there):
    assert "--repo OWNER/NAME" in meditune("export", run, "--to", "hub").err
    refused = send(run / "model", "--yes")
    assert "isn't a run with its data" in refused.err
    assert not (run / "export").exists()
    assert there.requests == []
