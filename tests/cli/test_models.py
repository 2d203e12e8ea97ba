from pathlib import Path

import pytest

from meditune.cli import models
from meditune.models.catalogue import CATALOGUE


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDITUNE_CACHE", str(tmp_path))
    monkeypatch.setenv("MEDITUNE_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(models, "gpu", lambda: None)
    monkeypatch.setattr(models, "memory_gb", lambda: (16.0, 8.0))


def by_name() -> dict[str, models.Row]:
    return {row.name: row for row in models.rows()}


def test_every_catalogue_model_is_listed_with_where_it_comes_from(tmp_path: Path) -> None:
    rows = by_name()
    assert list(rows) == list(CATALOGUE)
    assert rows["smollm2-135m"].where == "from a Python package (93 MB)"
    assert rows["distilgpt2"].where == "from the hub"
    assert rows["gpt-3.5-turbo"].where == "API only"
    folder = tmp_path / "models" / "smollm2-135m"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    assert by_name()["smollm2-135m"].where == "here"


def test_a_model_in_the_hubs_cache_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache",
        lambda hub_id, file: "/weights" if (hub_id, file) == ("openai-community/gpt2", "model.safetensors") else None,
    )
    rows = by_name()
    assert rows["gpt2"].where == "here"
    assert rows["distilgpt2"].where == "from the hub"


def test_what_fits_depends_on_size_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meditune.models.load.bf16_is_fast", lambda: True)
    rows = by_name()
    assert rows["smollm2-135m"].fits == "yes, about 5 GB"
    assert rows["mistral-7b"].fits == "no, about 19 GB; this machine has 8 GB"
    assert rows["gpt-3.5-turbo"].fits == ""
    monkeypatch.setattr("meditune.models.load.bf16_is_fast", lambda: False)
    assert by_name()["mistral-7b"].fits == "no, about 33 GB; this machine has 8 GB"
    monkeypatch.setattr(models, "gpu", lambda: ("A card", 24.0))
    assert by_name()["mistral-7b"].fits == "yes, about 19 GB"


def test_the_table_is_aligned_and_keeps_every_cell(capsys: pytest.CaptureFixture[str]) -> None:
    rows = models.rows()
    models.models()
    heading, *lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        assert line.startswith(row.name)
        assert line[heading.index("Licence") :].startswith(row.licence)
        assert line[heading.index("Where") :].startswith(row.where)
