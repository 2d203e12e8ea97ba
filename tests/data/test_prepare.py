"""The data stage as a function."""

import json

import pytest

from meditune.config.data_options import DataSpec, SourceSpec
from meditune.config.load_recipe import load_recipe
from meditune.config.recipe import Recipe
from meditune.data.prepare import prepare, stored_data
from meditune.data.quality.ledger import restore
from meditune.errors import DataError
from tests import layouts
from tests.commands import jsonl, read_rows, rows

pytestmark = pytest.mark.usefixtures("own_folders")


def recipe(*sources, seed=17, **data):
    return Recipe(name="test", seed=seed, data=DataSpec(sources=list(sources), **{"split": "group"} | data))


DAYS = ("mondays", "tuesdays", "wednesdays", "thursdays", "fridays", "saturdays", "sundays")


def own(tmp_path, count=40, name="own", **changes):
    return SourceSpec(name="own", path=str(jsonl(tmp_path / f"{name}.jsonl", rows(count, **changes))))


def test_what_is_stored_is_what_was_prepared(tmp_path):
    made = prepare(recipe(own(tmp_path)), tmp_path / "out")
    again = stored_data(tmp_path / "out")
    assert again.splits == made.splits
    assert again.sha256 == made.sha256
    assert again.quality == made.quality
    assert "| own: your own files | yours | 40 | 0 |" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_the_digest_is_of_the_content(tmp_path):
    digests = [
        prepare(recipe(own(tmp_path), seed=seed), tmp_path / f"out{number}").sha256
        for number, seed in enumerate((17, 17, 18))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_letters_of_all_kinds_survive(tmp_path):
    prepare(recipe(own(tmp_path, answer="Très bien 治疗 🩺 α<β")), tmp_path / "out")
    assert stored_data(tmp_path / "out").splits.train[0].answer == "Très bien 治疗 🩺 α<β"


def test_the_limit_is_a_seeded_sample(tmp_path):
    source = own(tmp_path, 200).model_copy(update={"limit": 50})
    ids = [
        {
            row["id"]
            for name in ("train", "dev", "test")
            for row in read_rows(tmp_path / f"out{number}" / f"{name}.jsonl")
        }
        for number, seed in enumerate((17, 17, 18))
        if prepare(recipe(source, seed=seed), tmp_path / f"out{number}")
    ]
    assert ids[0] == ids[1] != ids[2]
    assert len(ids[0]) == 50


def test_exact_duplicates_are_counted_and_kept_in_the_ledger(tmp_path):
    source = own(
        tmp_path,
        question=lambda n: f"Does own treatment {n // 2} help?",
        context="",
        answer=lambda n: f"It helps {n // 2}.",
        decision="yes",
    )
    made = prepare(recipe(source), tmp_path / "out")
    assert made.quality["dropped"] == {"exact_duplicate": 20}
    assert made.quality["sources"]["own"]["rejected"] == {}
    assert restore(tmp_path / "out", "own:1")[0].answer == "It helps 0."
    assert sum(len(part) for part in made.splits.named().values()) == 20


def test_a_failure_leaves_nothing_but_the_refused_rows(tmp_path):
    with pytest.raises(DataError, match="no usable rows"):
        prepare(recipe(own(tmp_path, 3, question="")), tmp_path / "run" / "data")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["rejected.jsonl"]


GERMAN = (
    "Die häufigsten Beschwerden sind Müdigkeit, Durst und Kopfschmerzen, aber nicht bei allen Menschen ab {} Jahren."
)


def test_if_quality_control_drops_everything_the_error_says_why_and_how_to_keep_the_rows(tmp_path):
    source = own(tmp_path, answer=lambda n: GERMAN.format(n), decision="", context="")
    with pytest.raises(DataError) as raised:
        prepare(recipe(source), tmp_path / "run" / "data")
    said = str(raised.value)
    assert "40 of 40 rows were left out: language 40 (100%)" in said
    assert "data.quality.rules.language=flag" in said
    assert "data.quality.languages=[en, de]" in said
    assert "Add more examples" not in said
    beside = tmp_path / "run" / "rejected.jsonl"
    assert str(beside) in said
    listed = read_rows(beside)
    assert [row["where"] for row in listed] == [f"own:{n}" for n in range(40)]
    assert {row["reason"] for row in listed} == {"quality rule language: in de"}
    assert "Kopfschmerzen" in listed[0]["row"]
    kept = prepare(recipe(source, quality={"rules": {"language": "flag"}}), tmp_path / "run" / "data")
    assert kept.quality["dropped"] == {}
    assert not beside.exists()


def test_if_all_rows_are_related_the_error_says_so(tmp_path):
    source = own(tmp_path, 12, question="Does it help?", answer=lambda n: f"It helps {DAYS[n % 7]} {n}.", context="")
    with pytest.raises(DataError, match="12 of 12 rows stay together because they are related or similar"):
        prepare(recipe(source), tmp_path / "out")


def test_two_files_with_the_same_ids_are_refused(tmp_path):
    two = own(tmp_path, name="a"), own(tmp_path, name="b")
    with pytest.raises(DataError, match="own:0 occurs twice"):
        prepare(recipe(*two), tmp_path / "out")


def test_several_sources_are_split_each_for_itself(tmp_path):
    layouts.pubmedqa(tmp_path / "data" / "pubmedqa", {str(n): layouts.pubmedqa_item(n) for n in range(1000)})
    made = prepare(recipe(SourceSpec(name="pubmedqa"), own(tmp_path), split="official"), tmp_path / "out")
    assert made.splits.test_set == f"pubmedqa-official-500+own-group-{len(made.splits.test) - 500}"
    assert {example.source for example in made.splits.train} == {"pubmedqa", "own"}
    assert len(made.splits.test) > 500


def test_the_sample_only_where_the_recipe_says_so(tmp_path, capsys):
    with pytest.raises(DataError, match=r"raw\.githubusercontent\.com/pubmedqa"):
        prepare(recipe(SourceSpec(name="pubmedqa")), tmp_path / "out")
    made = prepare(recipe(SourceSpec(name="pubmedqa"), fallback_to_sample=True), tmp_path / "out")
    assert made.synthetic
    assert "SYNTHETIC" in capsys.readouterr().err
    assert all(example.meta["synthetic"] for example in made.splits.test)
    assert "invented" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_a_damaged_file_is_no_reason_to_fall_back(tmp_path):
    layouts.pubmedqa(tmp_path / "data" / "pubmedqa", {"1": layouts.pubmedqa_item(1)})
    path = tmp_path / "data" / "pubmedqa" / "ori_pqal.json"
    path.write_text(path.read_text(encoding="utf-8")[:100], encoding="utf-8")
    with pytest.raises(DataError, match=f"{path}, line"):
        prepare(recipe(SourceSpec(name="pubmedqa"), fallback_to_sample=True), tmp_path / "out")


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (SourceSpec(name="pubmedqq"), "Did you mean 'pubmedqa'"),
        (SourceSpec(name="own"), "needs a path"),
        (SourceSpec(name="wikitext-2", path="."), "plain text"),
        (SourceSpec(name="pubmedqa", limit=5), "data.split=group"),
    ],
    ids=lambda value: value.name if isinstance(value, SourceSpec) else "",
)
def test_sources_that_can_not_be_used(tmp_path, source, text):
    with pytest.raises(DataError, match=text):
        prepare(recipe(source, split="official", fallback_to_sample=True), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("named", [True, False])
def test_all_missing_files_are_named_with_their_sources_before_anything_is_read(tmp_path, monkeypatch, named):
    monkeypatch.setenv("MEDITUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEDITUNE_DATA", raising=False)
    if named:
        monkeypatch.setenv("MEDITUNE_DATA", str(tmp_path))
    here = tmp_path / "entailment" / "begin_dialog.jsonl"
    here.parent.mkdir()
    here.write_text("", encoding="utf-8")
    judge = load_recipe("evidence", {}).recipe
    with pytest.raises(DataError) as refused:
        prepare(judge, tmp_path / "out")
    said = str(refused.value)
    for source in judge.data.sources:
        if source.is_own and source.path != "entailment/begin_dialog.jsonl":
            assert source.path in said
            assert source.citation in said
    assert "https://evidence-inference.ebm-nlp.com/v2.0.tar.gz" in said, "a published source that isn't downloaded"
    assert "begin_dialog" not in said, "this file is here"
    assert said.count("is also searched for in $MEDITUNE_DATA") == (not named)


def test_changed_data_is_noticed(tmp_path):
    prepare(recipe(own(tmp_path)), tmp_path / "out")
    quality = json.loads((tmp_path / "out" / "quality.json").read_text(encoding="utf-8"))
    (tmp_path / "out" / "quality.json").write_text(json.dumps(quality | {"sha256": "0"}), encoding="utf-8")
    with pytest.raises(DataError, match="changed after they were written"):
        stored_data(tmp_path / "out")
    (tmp_path / "out" / "dev.jsonl").unlink()
    with pytest.raises(DataError, match=r"missing files: dev\.jsonl"):
        stored_data(tmp_path / "out")
