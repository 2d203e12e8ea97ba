import re
from pathlib import Path

import pytest

from meditune.data.readers.medquad import contents_sha256
from meditune.data.readers.tables import Rejects
from meditune.data.sources import SOURCES, has_files
from meditune.files import sha256


def test_every_source_says_where_it_comes_from() -> None:
    for name, source in SOURCES.items():
        assert source.name == name
        assert source.title
        assert source.licence
        assert source.files
        assert source.download or source.how or source.packaged
        for each in source.download:
            assert re.search(r"^https://.*/[0-9a-f]{40}[/.]", each.url), "a branch moves; name a commit"
            assert each.sha256 or each.contents_sha256
    assert not SOURCES["mimic"].download
    assert "physionet.org" in SOURCES["mimic"].how


@pytest.mark.real
@pytest.mark.parametrize("name", ["pubmedqa", "medquad", "liveqa", "wikitext-2"])
def test_the_real_folders_are_recognised_and_read(real_data: Path, name: str) -> None:
    source = SOURCES[name]
    assert has_files(source, real_data / name)
    if source.reader is not None:
        assert next(source.reader(real_data / name, Rejects())).source == name


@pytest.mark.real
def test_the_checksums_are_those_of_the_real_files(real_data: Path) -> None:
    for name in ("pubmedqa", "medquad", "liveqa"):
        for download in SOURCES[name].download:
            if download.contents_sha256:
                assert contents_sha256(real_data / name) == download.contents_sha256
            else:
                (file,) = (real_data / name).rglob(download.filename)
                assert sha256(file) == download.sha256
