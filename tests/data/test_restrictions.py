from pathlib import Path

import pytest

from meditune.config.data_options import SourceSpec
from meditune.data.example import Example
from meditune.data.read_sources import is_restricted, refuse_restricted_for_api, refuse_restricted_sources_for_api
from meditune.data.readers import mimic
from meditune.data.readers.tables import Rejects
from meditune.data.sources import SOURCES
from meditune.errors import DataError
from tests.data import layouts


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


@pytest.mark.parametrize("mark", [False, None, "", "no", "False", "0", 0])
def test_a_column_that_says_no_marks_nothing(mark: object) -> None:
    example = Example(id="own:1", source="own", question="Why?", answer="So.", group="1", meta={"restricted": mark})
    assert not is_restricted(example)


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
