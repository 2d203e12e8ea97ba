from pathlib import Path

import pytest

from meditune.data import mimic
from meditune.data.example import Example
from meditune.data.rejects import Rejects
from meditune.data.restrictions import is_restricted, refuse_restricted_for_api
from meditune.errors import DataError
from tests.data import layouts


def test_restricted_rows_never_go_to_an_api(tmp_path: Path) -> None:
    free = Example(id="own:1", source="own", question="Why?", answer="So.", group="1")
    restricted = list(mimic.read(layouts.noteevents(tmp_path / "NOTEEVENTS.csv", [layouts.note(1)]), Rejects()))
    assert not is_restricted(free)
    refuse_restricted_for_api([free], "gpt-3.5-turbo")
    with pytest.raises(DataError, match=r"^5 examples from mimic \(PhysioNet .*\) may not be sent to gpt-3\.5-turbo"):
        refuse_restricted_for_api([free, *restricted], "gpt-3.5-turbo")
