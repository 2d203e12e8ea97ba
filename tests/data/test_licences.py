import pytest

from meditune.data.sources import demands, hub_names, known


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
    licence = known(text)
    assert licence is not None
    assert licence.hub == name
    assert licence.link.startswith("https://")


@pytest.mark.parametrize("text", ["yours", "not stated; cite Ben Abacha et al. 2017", "CC", "MIT-ish"])
def test_what_is_no_known_licence(text):
    assert known(text) is None
    assert hub_names([text, "MIT"]) == ["unknown", "mit"]


def test_what_a_mixed_set_must_keep_to():
    lines = demands({"a": ["MIT"], "b": ["CC BY 4.0"], "c": ["CC BY-SA 4.0"], "d": ["CC BY-NC 4.0"], "e": ["yours"]})
    assert [line for line in lines if "notice" in line and "a (MIT)" in line]
    assert [line for line in lines if "named" in line and "b (CC BY 4.0), c (CC BY-SA 4.0), d (CC BY-NC 4.0)" in line]
    assert [line for line in lines if "commercially" in line and line.endswith("d (CC BY-NC 4.0).")]
    assert [line for line in lines if "share-alike" in line and "c (CC BY-SA 4.0)" in line]
    assert [line for line in lines if "No one licence serves the mixed set: cc-by-sa-4.0 and cc-by-nc-4.0" in line]
    assert [line for line in lines if "must be looked up: e (yours)" in line]


def test_share_alike_with_freer_licences_is_no_conflict():
    assert not [line for line in demands({"a": ["MIT"], "b": ["CC BY-SA 4.0"]}) if "No one licence" in line]
    assert [line for line in demands({"a": ["CC BY-SA 3.0"], "b": ["ODbL"]}) if "No one licence" in line]


def test_public_domain_asks_for_nothing():
    assert demands({"sample": ["CC0-1.0"]}) == []
