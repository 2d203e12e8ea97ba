import re
from pathlib import Path

import pytest

from meditune.config.data_options import SourceSpec
from meditune.data.example import Example
from meditune.data.read_sources import (
    is_restricted,
    refuse_restricted_for_api,
    refuse_restricted_sources_for_api,
    terms_of,
)
from meditune.data.readers import mimic, user_files
from meditune.data.readers.medquad import contents_sha256
from meditune.data.readers.tables import Rejects
from meditune.data.sources import SOURCES, has_files, hub_names, licence_named, licence_requirements
from meditune.errors import DataError
from meditune.files import sha256
from tests import layouts


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


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("MIT", "mit"),
        ("CC BY 4.0", "cc-by-4.0"),
        ("cc-by-sa-3.0", "cc-by-sa-3.0"),
        ("CC BY-NC-SA", "cc-by-nc-sa-4.0"),
        ("CC0-1.0", "cc0-1.0"),
        ("Apache-2.0", "apache-2.0"),
        ("PhysioNet Credentialed Health Data Use Agreement 1.5.0", "other"),
    ],
)
def test_licences_by_the_names_people_write(text, name):
    licence = licence_named(text)
    assert licence is not None
    assert licence.hub == name
    assert licence.link.startswith("https://")


@pytest.mark.parametrize("text", ["yours", "not stated; cite Ben Abacha et al. 2017", "CC", "MIT-ish"])
def test_what_is_no_known_licence(text):
    assert licence_named(text) is None
    assert hub_names([text, "MIT"]) == ["unknown", "mit"]


def requirements(**licences):
    return licence_requirements({source: {"licences": [licence]} for source, licence in licences.items()})


def test_what_a_mixed_set_must_keep_to():
    lines = requirements(a="MIT", b="CC BY 4.0", c="CC BY-SA 4.0", d="CC BY-NC 4.0", e="yours")
    assert [line for line in lines if "notice" in line and "a (MIT)" in line]
    assert [line for line in lines if "named" in line and "b (CC BY 4.0), c (CC BY-SA 4.0), d (CC BY-NC 4.0)" in line]
    assert [line for line in lines if "commercially" in line and line.endswith("d (CC BY-NC 4.0).")]
    assert [line for line in lines if "share-alike" in line and "c (CC BY-SA 4.0)" in line]
    assert [line for line in lines if "No single licence covers the mixed set: cc-by-sa-4.0 and cc-by-nc-4.0" in line]
    assert [line for line in lines if "may be shared: e (yours)" in line]


def test_share_alike_with_freer_licences_is_no_conflict():
    assert not [line for line in requirements(a="MIT", b="CC BY-SA 4.0") if "No single licence" in line]
    assert [line for line in requirements(a="CC BY-SA 3.0", b="ODbL") if "No single licence" in line]


def test_public_domain_asks_for_nothing():
    assert requirements(sample="CC0-1.0") == []


def test_restricted_rows_never_go_to_an_api(tmp_path: Path) -> None:
    free = Example(id="own:1", source="own", question="Why?", answer="So.", group="1")
    restricted = list(mimic.read(layouts.noteevents(tmp_path / "NOTEEVENTS.csv", [layouts.note(1)]), Rejects()))
    assert not is_restricted(free)
    refuse_restricted_for_api([free], "gpt-3.5-turbo")
    with pytest.raises(DataError, match=r"^5 examples from mimic \(PhysioNet .*\) may not be sent to gpt-3\.5-turbo"):
        refuse_restricted_for_api([free, *restricted], "gpt-3.5-turbo")


@pytest.mark.parametrize("mark", [True, "yes", "true", 1, "x"])
def test_a_row_of_ones_own_can_be_marked(mark: object) -> None:
    example = Example(id="own:1", source="own", question="Why?", answer="So.", group="1", meta={"restricted": mark})
    assert is_restricted(example)


@pytest.mark.parametrize("column", ["Restricted", "RESTRICTED", " restricted ", "restricted"])
def test_the_case_of_a_columns_name_and_spaces_around_it_do_not_matter(column: str) -> None:
    row = {"Question": "Is it flu?", "Answer": "Rest.", column: "TRUE", "License": "DUA", "Year": "2019", "URL ": "u"}
    rows = [("a:1", row), ("a:2", row | {column: "no"})]
    first, second = user_files.from_rows(rows, Rejects())
    assert first.meta == {"restricted": "TRUE", "licence": "DUA", "year": 2019, "url": "u"}
    assert is_restricted(first)
    assert not is_restricted(second)


@pytest.mark.parametrize("mark", [False, None, "", "no", "False", "0", 0, "0.0", " "])
def test_a_column_that_says_no_marks_nothing(mark: object) -> None:
    meta = {"restricted": mark, "synthetic": mark}
    example = Example(id="own:1", source="own", question="Why?", answer="So.", group="1", meta=meta)
    assert not is_restricted(example)
    assert terms_of([example])["own"]["synthetic"] == 0


def test_a_restricted_source_is_refused_unread() -> None:
    free = [SourceSpec(name=name) for name in [*(name for name in SOURCES if name != "mimic"), "own", "nobody"]]
    refuse_restricted_sources_for_api(free, "some-model")
    with pytest.raises(DataError, match=r"^Rows from mimic \(PhysioNet .*\) may not be sent to some-model"):
        refuse_restricted_sources_for_api([SourceSpec(name="pubmedqa"), SourceSpec(name="mimic")], "some-model")
    with pytest.raises(DataError, match=r"^Rows from own \(Hospital agreement\) may not be sent to some-model"):
        own = SourceSpec(name="own", path="a.csv", restricted=True, licence="Hospital agreement")
        refuse_restricted_sources_for_api([own], "some-model")


def test_rows_of_a_restricted_source_stay_so_in_a_file_made_of_them() -> None:
    meta = {"source": "mimic"}
    assert is_restricted(Example(id="own:1", source="own", question="Why?", answer="So.", group="1", meta=meta))
