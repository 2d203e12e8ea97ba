"""Sending a prepared set to a hub: the real client, a real server on this machine.

The server speaks the parts of the Hugging Face hub's HTTP API that an upload of a data set or a model needs.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from meditune.config.data_options import DataSpec, SourceSpec
from meditune.config.recipe import Recipe
from meditune.data.prepare import prepare
from tests import layouts
from tests.commands import Result, jsonl, meditune, rows
from tests.http_servers import Answering, listening

TOKEN = "hf_invented"


@dataclass
class Hub:
    """What arrived."""

    url: str = ""
    requests: list[str] = field(default_factory=list)
    created: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    """Large files by their SHA-256, before a commit names them."""
    large: tuple[str, ...] = ()
    """Endings of what goes the way of large files."""
    private: bool | None = None
    """Whether the repository was there before, and private."""
    refuses: int = 0
    """The status that every commit is answered with, if any."""


@contextlib.contextmanager
def hub(**settings: Any) -> Iterator[Hub]:
    """A running hub."""
    state = Hub(**settings)

    class Handler(Answering):
        def do_POST(self) -> None:
            body = self.body()
            state.requests.append(f"POST {self.path}")
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self._answer(401, {"error": "Invalid credentials"})
            if self.path == "/api/validate-yaml":
                text = json.loads(body)["content"]
                fine = isinstance(yaml.safe_load(text.split("---")[1]), dict)
                return self._answer(200 if fine else 400, {"errors": [], "warnings": []})
            if self.path == "/api/repos/create":
                state.created.append(json.loads(body))
                name = "/".join(filter(None, (state.created[-1].get("organization"), state.created[-1]["name"])))
                return self._answer(200, {"url": f"{state.url}/datasets/{name}"})
            if "/preupload/" in self.path:
                modes = [
                    {
                        "path": each["path"],
                        "uploadMode": "lfs" if each["path"].endswith(state.large) else "regular",
                        "shouldIgnore": False,
                    }
                    for each in json.loads(body)["files"]
                ]
                return self._answer(200, {"files": modes})
            if self.path.endswith("/info/lfs/objects/batch"):
                objects = [
                    each | {"actions": {"upload": {"href": f"{state.url}/store/{each['oid']}", "header": {}}}}
                    for each in json.loads(body)["objects"]
                ]
                return self._answer(200, {"transfer": "basic", "objects": objects})
            if "/commit/" in self.path:
                if state.refuses:
                    return self._answer(state.refuses, {"error": "You don't have the rights to write here"})
                for line in body.decode().splitlines():
                    entry = json.loads(line)
                    value = entry["value"]
                    if entry["key"] == "file":
                        state.files[value["path"]] = base64.b64decode(value["content"])
                    elif entry["key"] == "lfsFile":
                        state.files[value["path"]] = state.stored[value["oid"]]
                made = {"success": True, "commitOid": "a" * 40, "commitUrl": f"{state.url}/datasets/x/y/commit/a"}
                return self._answer(200, made)
            return self._answer(404, {"error": f"no {self.path}"})

        def do_PUT(self) -> None:
            body = self.body()
            state.requests.append("PUT /store")
            oid = self.path.rsplit("/", 1)[1]
            assert hashlib.sha256(body).hexdigest() == oid
            state.stored[oid] = body
            self._answer(200, {})

        def do_GET(self) -> None:
            state.requests.append(f"GET {self.path}")
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self._answer(401, {"error": "Invalid credentials"})
            if self.path.startswith(("/api/datasets/clinic/questions", "/api/models/clinic/answers")):
                private = state.private if state.private is not None else state.created[-1]["visibility"] == "private"
                return self._answer(200, {"id": self.path.split("/", 3)[3], "private": private, "sha": "a" * 40})
            return self._answer(404, {"error": f"no {self.path}"})

        def _answer(self, status: int, value: dict[str, Any]) -> None:
            self.answer(json.dumps(value), status, {"Content-Type": "application/json"})

    with listening(Handler) as state.url:
        yield state


pytestmark = pytest.mark.usefixtures("own_folders")


@pytest.fixture
def there() -> Iterator[Hub]:
    with hub() as running:
        yield running


def made(folder: Path, *sources: SourceSpec) -> Path:
    prepare(Recipe(name="test", data=DataSpec(sources=list(sources), split="group")), folder / "run" / "data")
    return folder / "run"


def own(folder: Path, name: str = "own", **terms: Any) -> SourceSpec:
    path = jsonl(
        folder / f"{name}.jsonl",
        rows(40, id=lambda number: f"{name}-{number}", question=lambda number: f"Does {name} {number} help?"),
    )
    return SourceSpec(name="own", path=str(path), **terms)


def push(there: Hub, folder: Path, *words: str, token: str = TOKEN) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", there.url)
        patch.setenv("HF_TOKEN", token)
        patch.delenv("MEDITUNE_OFFLINE")
        return meditune("data", "push", folder, "clinic/questions", *words)


def test_the_set_and_its_card_arrive_after_a_yes(tmp_path, there):
    run = made(tmp_path, own(tmp_path, licence="CC BY 4.0"))
    asked = push(there, run)
    assert asked.code == 1
    assert f"Upload to {there.url}/datasets/clinic/questions, where only you and your organization" in asked.err
    assert "40 rows (" in asked.err
    assert "own (CC BY 4.0)" in asked.err
    assert "To agree, add --yes." in asked.err
    assert there.requests == []

    sent = push(there, run, "--yes").ok()
    assert sent.out.startswith(f"Uploaded: {there.url}/datasets/")
    assert there.created[0]["visibility"] == "private"
    assert set(there.files) == {"README.md", "train.jsonl", "dev.jsonl", "test.jsonl"}
    for name, data in there.files.items():
        assert data == (run / "data" / name).read_bytes()


def test_large_files_and_a_public_set(tmp_path, monkeypatch):
    with hub(large=(".jsonl",)) as there:
        run = made(tmp_path, own(tmp_path))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        sent = push(there, run / "data", "--public", "--yes").ok()
        assert "where EVERYONE can see it" in sent.err
        assert there.created[0].get("visibility") == "public" or there.created[0].get("private") is False
        assert there.files["train.jsonl"] == (run / "data" / "train.jsonl").read_bytes()


@pytest.mark.parametrize("how", ["recipe", "column", "mimic", "again"])
def test_a_restricted_set_is_refused_and_nothing_is_asked_of_the_hub(tmp_path, there, how):
    if how == "recipe":
        sources = [own(tmp_path, "free"), own(tmp_path, "secret", restricted=True)]
    elif how == "column":
        path = jsonl(tmp_path / "a.jsonl", rows(40, restricted=lambda number: number == 7))
        sources = [SourceSpec(name="own", path=str(path))]
    else:
        path = layouts.noteevents(tmp_path / "NOTEEVENTS.csv", [layouts.note(1, SUBJECT_ID=1)])
        sources = [SourceSpec(name="mimic", path=str(path)), own(tmp_path)]
        if how == "again":
            kept = made(tmp_path / "first", *sources) / "data"
            rows_of_all = "".join((kept / f"{name}.jsonl").read_text(encoding="utf-8") for name in ("train", "test"))
            (tmp_path / "again.jsonl").write_text(rows_of_all, encoding="utf-8")
            sources = [SourceSpec(name="own", path=str(tmp_path / "again.jsonl"))]
    run = made(tmp_path, *sources)
    refused = push(there, run, "--yes")
    assert refused.code == 3, refused
    assert "is restricted (" in refused.err
    assert "nor anything derived from it may be shared" in refused.err
    assert "Traceback" not in refused.err
    assert there.requests == []


def test_invented_rows_are_not_passed_off_as_real(tmp_path, there):
    run = made(tmp_path, SourceSpec(name="sample"))
    card = run / "data" / "README.md"
    said = push(there, run)
    assert "150 rows are synthetic, and the card says so." in said.err
    card.write_text("---\nlicense: mit\n---\n# Real studies\n", encoding="utf-8")
    refused = push(there, run, "--yes")
    assert refused.code == 3
    assert f"{card} doesn't say that 150 of the rows are synthetic" in refused.err
    assert there.requests == []


def test_what_the_hub_says_is_told(tmp_path):
    run = made(tmp_path, own(tmp_path))
    with hub(refuses=403) as there:
        refused = push(there, run, "--yes")
        assert refused.code == 1
        assert "rejected the upload to clinic/questions" in refused.err
        assert "You don't have the rights" in refused.err
    gone = push(there, run, "--yes")
    assert gone.code == 1
    assert "Run the same command again" in gone.err
    for each in (refused, gone):
        assert "Traceback" not in each.err
        assert TOKEN not in each.err


def test_what_is_meant_to_be_private_does_not_go_into_a_public_place(tmp_path):
    run = made(tmp_path, own(tmp_path))
    with hub(private=False) as there:
        refused = push(there, run, "--yes")
        assert refused.code == 1
        assert "clinic/questions already exists and is public. Nothing was sent." in refused.err
        assert there.files == {}
        push(there, run, "--yes", "--public").ok()


def test_with_a_wrong_token_it_says_where_to_put_another(tmp_path, there):
    run = made(tmp_path, own(tmp_path))
    refused = push(there, run, "--yes", token="hf_other")
    assert refused.code == 1
    assert "Set HF_TOKEN" in refused.err


def test_a_folder_without_prepared_data_and_one_that_was_changed(tmp_path, there):
    assert "contains no prepared data" in push(there, tmp_path, "--yes").err
    run = made(tmp_path, own(tmp_path))
    with (run / "data" / "train.jsonl").open("a", encoding="utf-8") as stream:
        stream.write("\n")
    assert "changed after they were written" in push(there, run, "--yes").err
    assert there.requests == []


def test_identifiers_that_were_left_are_not_sent(tmp_path, there):
    path = jsonl(
        tmp_path / "notes.jsonl", rows(40, answer=lambda number: f"Mr. Kowalczyk (MRN: 44711{number}) is better.")
    )
    folder = made(tmp_path, SourceSpec(name="own", path=str(path)))
    push(there, folder, "--yes").refused(3, "40 examples of own contain identifiers", "data.phi.action=mask")
    assert there.requests == []
    card = (folder / "data" / "README.md").read_text(encoding="utf-8")
    assert "found them in 40 of 40 examples of own. THEY WERE LEFT IN THE TEXT." in card
