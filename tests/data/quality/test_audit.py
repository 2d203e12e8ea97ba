"""Every rule with its switch, official test items untouched, and each row to be had back.

Counts, lengths, and the proof that splits are disjoint. Rows read as a stream are judged as rows in memory are, here,
in workers and on Ray.
"""

import html
import importlib.util
import json
import random
from itertools import pairwise

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from meditune.config.data_options import QUALITY_RULES, DataSpec, QualitySpec, SourceSpec
from meditune.config.load_recipe import load_recipe, save
from meditune.config.recipe import Recipe
from meditune.data.prepare import prepare
from meditune.data.quality import audit_folder as folders
from meditune.data.quality import deduplication
from meditune.data.quality.audit import BINS, Audit, facts, shared
from meditune.data.quality.audit_folder import audit_folder, recipe_for
from meditune.data.quality.ledger import entries, restore
from meditune.data.quality.quality_filters import RULES, apply_rules
from meditune.data.read_sources import is_restricted
from meditune.data.readers.tables import Rejects
from meditune.data.readers.user_files import read
from meditune.data.splits import Splits
from meditune.errors import DataError, RecipeError
from tests import layouts
from tests.commands import jsonl, meditune, read_rows, rows
from tests.data.quality.test_quality_filters import ANSWER, example_row
from tests.data.test_splits import example

BAD = {
    "encoding": {"answer": ANSWER.replace("medicine", "médicine").encode().decode("latin-1")},
    "layout": {"answer": ANSWER.replace("within minutes", "within\nminutes")},
    "boilerplate": {"answer": f"{ANSWER}\nBack to top"},
    "language": {"answer": "Asthma wird mit Medikamenten behandelt. Fragen Sie Ihren Arzt danach."},
    "not_a_question": {"question": "Asthma in children"},
    "not_medical": {"question": "Who won?", "answer": "The rider who waits behind the others until the end."},
    "too_short": {"answer": "Asthma medicine."},
    "too_long": {"answer": ANSWER * 40},
    "truncated": {"answer": ANSWER[:-12]},
    "off_topic": {"answer": "Gout is caused by crystals of uric acid that build up in a joint, such as the big toe."},
}


def audited(examples, protected=(), **spec):
    audit = Audit(QualitySpec(**spec), protected)
    by_source = {}
    for each in examples:
        by_source.setdefault(each.source, []).append(each)
    audit.rows(by_source)
    return audit


def left(audit):
    return [example.id for examples in audit.remaining.values() for example in examples]


def done(audit):
    return {name: rule["done"] for name, rule in audit.facts()["rules"].items() if rule["done"]}


def test_every_rule_has_a_meaning_and_a_switch():
    assert set(BAD) == set(RULES) == set(QUALITY_RULES) & set(RULES)
    assert all(QUALITY_RULES[name].description.endswith(".") for name in QUALITY_RULES)
    assert set(audited([example_row(1)]).facts()["rules"]) == set(QUALITY_RULES)


def test_a_good_row_passes_every_rule():
    assert apply_rules(example_row(1), QualitySpec()) == (example_row(1), [])


@pytest.mark.parametrize("rule", BAD)
def test_each_rule_can_drop_flag_and_be_off(rule):
    bad = example_row(1, **BAD[rule])
    off = dict.fromkeys(RULES, "off")
    dropped = audited([bad, example_row(2, question="How is asthma cared for?")], rules=off | {rule: "drop"})
    assert left(dropped) == ["own:2"]
    assert done(dropped) == {rule: {"drop": 1}}
    flagged = audited([bad], rules=off | {rule: "flag"})
    assert flagged.remaining == {"own": [bad]}
    assert done(flagged) == {rule: {"flag": 1}}
    assert done(audited([bad], rules=off)) == {}


@pytest.mark.parametrize("rule", ["encoding", "layout", "boilerplate"])
def test_what_can_be_mended_is(rule):
    audit = audited([example_row(1, **BAD[rule])])
    [after] = audit.remaining["own"]
    assert after.answer == (ANSWER.replace("medicine", "médicine") if rule == "encoding" else ANSWER)
    assert audit.facts()["changed"] == 1


def test_characters_that_are_lost_can_only_be_flagged():
    assert done(audited([example_row(1, answer=ANSWER.replace("every", "ever\ufffd"))])) == {"encoding": {"flag": 1}}


def test_official_test_items_and_rows_to_keep_are_only_looked_at():
    for spec in ({"protected": ["own:1"]}, {"keep": ["own:1"]}):
        for changes in BAD.values():
            bad = example_row(1, **changes)
            audit = audited([bad], rules=dict.fromkeys(RULES, "drop"), **spec)
            assert audit.remaining == {"own": [bad]}
            assert all(set(actions) == {"flag"} for actions in done(audit).values())


def test_the_first_of_two_alike_stays_but_an_official_item_always():
    near = ANSWER.replace("Most people", "Many people")
    twins = [
        example_row(1),
        example_row(2),
        example_row(3, answer=near),
        example_row(4, answer=near, source="other", id="other:4"),
    ]
    assert left(audited(twins)) == ["own:1"]
    assert done(audited(twins)) == {
        "exact_duplicate": {"drop": 1},
        "near_duplicate": {"drop": 1},
        "cross_source": {"drop": 1},
    }


def test_a_training_row_goes_that_says_what_a_test_item_says():
    near = example_row(3, answer=ANSWER.replace("Most people", "Many people"))
    audit = audited([example_row(1), example_row(2, question="What is gout?"), near], protected=["own:3"])
    assert left(audit) == ["own:1", "own:2", "own:3"]
    one, two, three = audit.remaining["own"]
    splits = audit.between(Splits([one], [two], [three], "official"))
    assert (splits.train, splits.dev, splits.test) == ([], [two], [three])
    assert done(audit)["cross_split"] == {"drop": 1}


@pytest.mark.parametrize(
    ("action", "ids", "groups"),
    [
        ("keep", ["own:1", "own:2"], ["group-1", "group-2"]),
        ("group", ["own:1", "own:2"], ["group-1", "group-1"]),
        ("merge", ["own:1"], ["group-1"]),
        ("off", ["own:1", "own:2"], ["group-1", "group-2"]),
    ],
)
def test_a_question_asked_again(action, ids, groups):
    other = "Inhaled steroids come first, and asthma tablets where these don't do."
    audit = audited([example_row(1), example_row(2, answer=other)], rules={"repeated_question": action})
    assert [(e.id, e.group) for e in audit.remaining["own"]] == list(zip(ids, groups, strict=True))
    if action == "merge":
        assert audit.remaining["own"][0].references() == [ANSWER, other]


def test_a_question_asked_again_takes_no_row_from_its_own_group():
    """Else the patient's other rows could come into another split."""
    others = [
        example_row(2, answer="Asthma tablets help where sprays don't."),
        example_row(3, question="Is asthma for life?"),
    ]
    others = [each.model_copy(update={"group": "patient-2"}) for each in others]
    audit = audited([example_row(1), *others], rules={"repeated_question": "group"})
    assert [e.group for e in audit.remaining["own"]] == ["group-1", "patient-2", "patient-2"]


def test_restricted_rows_are_shown_by_their_id_only():
    audit = audited([example_row(1, **BAD["truncated"], meta={"restricted": True})])
    (shown,) = audit.facts()["rules"]["truncated"]["examples"]
    assert {name: text for name, text in shown.items() if text} == {"id": "own:1", "action": "flag"}


def made_of(tmp_path, rows, **data):
    source = SourceSpec(name="own", path=str(jsonl(tmp_path / "own.jsonl", rows)))
    recipe = Recipe(name="test", data=DataSpec(sources=[source], **{"split": "group"} | data))
    return prepare(recipe, tmp_path / "out")


def questions(count):
    names = ["asthma", "gout", "lupus", "eczema", "angina", "rickets", "scurvy", "sciatica", "shingles", "tetanus"]
    return [
        {"id": n, "question": f"What should people with {name} eat?", "answer": f"With {name} eat what you like {n}."}
        for n, name in enumerate(names[:count])
    ]


def test_every_row_can_be_had_back(tmp_path):
    rows = [*questions(8), {"id": "x", "question": "What is gout?", "answer": "Gout hurts .\nBack to top"}]
    rows.append(rows[0] | {"id": "y", "question": "what should people with ASTHMA eat"})
    made = made_of(tmp_path, rows)
    kept = {example.id: example for part in made.splits.named().values() for example in part}
    assert "own:y" not in kept
    assert kept["own:x"].answer == "Gout hurts."
    assert restore(tmp_path / "out", "own:x")[0].answer == "Gout hurts .\nBack to top"
    assert restore(tmp_path / "out", "own:y")[0].question == "what should people with ASTHMA eat"
    again = made_of(tmp_path, rows, quality=QualitySpec(keep=["own:x", "own:y"]))
    kept = {example.id: example for part in again.splits.named().values() for example in part}
    assert kept["own:x"].answer == "Gout hurts .\nBack to top"
    assert "own:y" in kept
    with pytest.raises(DataError, match=r"own:z: according to ledger\.parquet"):
        restore(tmp_path / "out", "own:z")
    looked_at = [row for row in entries(tmp_path / "out") if row["id"] in ("own:x", "own:y")]
    assert {row["action"] for row in looked_at} == {"flag"}


def test_the_command_gives_a_row_back(tmp_path):
    rows = questions(8)
    made_of(tmp_path, [*rows, rows[0] | {"id": "again"}])
    found = meditune("data", "restore", tmp_path / "out", "own:again", "--to", tmp_path / "back.jsonl")
    assert json.loads(found.out)["question"] == rows[0]["question"]
    assert "exact_duplicate: drop (same text as own:0)" in found.err
    assert [row["id"] for row in read_rows(tmp_path / "back.jsonl")] == ["own:again"]
    meditune("data", "restore", tmp_path / "out", "own:agin").refused(3, "Did you mean own:again?")


def test_a_file_is_audited_into_a_folder_with_a_page(tmp_path):
    rows = [*questions(8), {"id": "x", "question": "Gout", "answer": "Gout hurts <b>."}]
    result = meditune("data", "audit", jsonl(tmp_path / "mine.jsonl", rows), "--output", tmp_path / "audit").ok()
    assert "not_a_question" in result.out
    names = {path.name for path in (tmp_path / "audit").iterdir()}
    assert names == {"audit.html", "quality.json", "ledger.parquet", "rejected.jsonl"}
    page = (tmp_path / "audit" / "audit.html").read_text(encoding="utf-8")
    assert "Gout hurts &lt;b&gt;" in page
    assert "http" not in page.split("</head>")[1].replace("http-equiv", "")
    meditune("data", "audit", tmp_path / "mine.jsonl", "--output", tmp_path / "audit").ok()
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "thesis.txt").write_text("x", encoding="utf-8")
    refused = meditune("data", "audit", tmp_path / "mine.jsonl", "--output", tmp_path / "else")
    assert refused.code != 0
    assert (tmp_path / "else" / "thesis.txt").is_file()


@pytest.mark.parametrize("stream", ["--no-stream", "--stream"])
def test_unusable_rows_and_identifiers_are_counted_in_the_output_and_on_the_page(tmp_path, stream):
    table, folder = tmp_path / "own.csv", tmp_path / "audit"
    rows = [f"What helps against gout {n}?,Colchicine helps in dose {n}." for n in range(20)]
    rows[3] = "Who was seen?,Ms. Iwona Zelazny (MRN: 4471123) was seen on 3/14/2012."
    table.write_text("\n".join(["question,answer", *rows, "one field", "only one field", "Why?,"]), encoding="utf-8")
    result = meditune("data", "audit", table, "--output", folder, stream)
    broken = f"own: 2 rows couldn't be used, first at {table}:22: 1 field, but the header has 2"
    empty = f"own: 1 row couldn't be used, at {table}:24: "
    assert f"\n{broken}\n{empty}" in result.out, result
    page = html.unescape((folder / "audit.html").read_text(encoding="utf-8"))
    assert broken in page
    assert empty in page
    assert (
        "own: 1 of 20 rows contains identifiers of people (1 name, 1 mrn, 1 date), which are left in the text" in page
    )


def test_too_few_rows_to_split_are_audited_all_the_same(tmp_path):
    result = meditune("data", "audit", jsonl(tmp_path / "one.jsonl", questions(1)), "--output", tmp_path / "audit").ok()
    assert "Not split: " in result.out


def test_an_unknown_rule_is_refused_by_name():
    with pytest.raises(RecipeError, match=r"did you mean near_duplicate"):
        load_recipe("quickstart", ["data.quality.rules.near_duplicates=drop"])
    with pytest.raises(RecipeError, match="drop, flag"):
        load_recipe("quickstart", ["data.quality.rules.near_duplicate=merge"])


def test_a_rule_that_is_off_is_off_when_the_saved_recipe_is_read_again(tmp_path):
    resolved = load_recipe("quickstart", ["data.quality.rules.off_topic=off"])
    save(resolved, tmp_path / "saved.yaml")
    assert load_recipe(str(tmp_path / "saved.yaml")).recipe == resolved.recipe


@pytest.mark.parametrize("name", ["gemma3-270m", "distilgpt2", "laptop", "gpu-8gb", "gpu-24gb", "preference"])
def test_the_recipes_for_pubmedqa_train_on_the_publishers_words(name):
    rules = load_recipe(name).recipe.data.quality.rules
    assert rules == load_recipe("quickstart").recipe.data.quality.rules


@pytest.mark.real
def test_pubmedqa_is_prepared_as_it_always_was(real_data, tmp_path):
    made = prepare(load_recipe("quickstart").recipe, tmp_path / "data")
    assert made.sha256.startswith("9cacd58a11e09d4f")
    assert made.quality["audit"]["dropped"] == made.quality["audit"]["changed"] == 0
    assert not any(count for pair in made.quality["shared"].values() for count in pair.values())


def test_the_newest_are_the_test(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDITUNE_DATA", str(tmp_path / "data"))
    items = {str(n): layouts.pubmedqa_item(n, YEAR=str(1990 + n % 20)) for n in range(200)}
    items["999"] = layouts.pubmedqa_item(999, YEAR=None)
    layouts.pubmedqa(tmp_path / "data" / "pubmedqa", items)
    recipe = Recipe(name="test", data=DataSpec(split="newest", test_share=0.2))
    made = prepare(recipe, tmp_path / "out")
    held = [example.meta["year"] for example in made.splits.test]
    rest = [example.meta["year"] for example in (*made.splits.train, *made.splits.dev) if example.meta["year"]]
    assert len(held) == 40
    assert min(held) >= max(rest)
    assert made.splits.test_set == "pubmedqa-newest-40"
    with pytest.raises(DataError, match="needs the year"):
        made_of(tmp_path, questions(8), split="newest")


def test_the_page_of_restricted_rows_is_drawn_and_an_audit_can_be_repeated(tmp_path):
    source = {
        "name": "own",
        "path": str(jsonl(tmp_path / "own.jsonl", rows(30, answer="It is better, and then"))),
        "restricted": True,
    }
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"name: r\ndata: {{split: group, sources: [{json.dumps(source)}]}}\n", encoding="utf-8")
    meditune("data", "audit", recipe, "-o", tmp_path / "audit").ok()
    assert "It is better" not in (tmp_path / "audit" / "audit.html").read_text(encoding="utf-8")
    (tmp_path / "audit" / "audit.html").unlink()
    meditune("data", "audit", recipe, "-o", tmp_path / "audit").ok()


def test_facts_add_up():
    train = [example(n, meta={"year": 2000 + n}) for n in range(6)]
    dev = [example(6, decision=None), example(7, question=train[0].question)]
    test = [example(8, answer="", decision="no")]
    found = facts(Splits(train, dev, test, "own-group-1"), {"own": {"read": 9}}, {"exact_duplicate": 2})
    assert {name: row["examples"] for name, row in found["splits"].items()} == {"train": 6, "dev": 2, "test": 1}
    assert found["splits"]["train"]["years"] == [2000, 2005]
    assert found["splits"]["dev"]["decisions"] == {"no": 1}
    assert found["splits"]["test"]["with_answer"] == 0
    assert found["repeated_questions"] == 1
    assert found["dropped"] == {"exact_duplicate": 2}
    lengths = found["lengths"]
    assert sum(each["count"] for each in lengths["question"]["words"]) == 9
    assert sum(each["count"] for each in lengths["answer"]["words"]) == 8, "an empty answer has no length"


def test_histograms_cover_every_value_once():
    examples = [example(n, answer="word " * (n * n + 1)) for n in range(40)]
    bins = facts(Splits(examples, [], [], "t"), {}, {})["lengths"]["answer"]["words"]
    assert len(bins) <= BINS
    assert sum(each["count"] for each in bins) == 40
    assert all(left["to"] == right["from"] for left, right in pairwise(bins))
    assert bins[0]["from"] == 1
    assert bins[-1]["from"] <= 39 * 39 + 1 < bins[-1]["to"]


def test_what_two_splits_share_is_counted():
    one, two, three = example(1), example(2), example(3)
    clean = shared(Splits([one], [two], [three], "t"))
    assert all(not any(row.values()) for row in clean.values())
    leaky = Splits([one], [two.model_copy(update={"question": "does TREATMENT 1 of own help"})], [three, one], "t")
    assert shared(leaky) == {
        "train and dev": {"ids": 0, "groups": 0, "questions": 1, "contexts": 0},
        "train and test": {"ids": 1, "groups": 1, "questions": 1, "contexts": 0},
        "dev and test": {"ids": 0, "groups": 0, "questions": 1, "contexts": 0},
    }


DRUGS = ("aspirin", "ibuprofen", "insulin", "metformin", "warfarin", "codeine", "heparin", "naproxen", "digoxin")
PARTS = ("heart", "liver", "kidney", "skin", "lung", "stomach", "bladder", "thyroid", "knee", "spine", "retina")


def planted(count=150, seed=5):
    """Good rows, and among them every defect, copies, rewrites, rewrites of rewrites, and questions asked again."""
    chance = random.Random(seed)
    rows = []
    for n in range(count):
        drug, part = chance.choice(DRUGS), chance.choice(PARTS)
        told = " ".join(chance.choices(DRUGS + PARTS, k=30))
        rows.append(
            {
                "question": f"How does {drug} of kind {n} harm the {part}?",
                "answer": f"In the {part}, {drug} acts on {told}. Doctors watch for pain and fever number {n}.",
            }
        )
    for number, changes in enumerate(BAD.values()):
        rows.append({"question": f"How is asthma number {number} treated?", "answer": ANSWER} | changes)
    for row in chance.sample(rows[:count], 12):
        rows.append(row | {"answer": row["answer"].replace(", ", " ")})
        nearly = row | {"answer": row["answer"].replace("Doctors watch", "Physicians watch")}
        rows += [nearly, nearly | {"answer": nearly["answer"].replace("acts on", "works on")}]
        rows.append(row | {"answer": "Nothing is known of it, but doctors look for pain in the body."})
    rows += [{"question": "", "answer": "x"}, {"question": "How is gout treated?"}]
    chance.shuffle(rows)
    return [row | {"id": str(n), "group": f"group {n}", "topic": "x"} for n, row in enumerate(rows)]


def parquet(path, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=50)
    return path


def ledger(folder):
    return [row for row in entries(folder) if row["rule"] != "cross_split"]


def audited_folder(path, folder, *settings, **how):
    quality = audit_folder(recipe_for(str(path), list(settings)), folder, **how)
    return quality, ledger(folder)


SETTINGS = {
    "by default": (),
    "merged": ("data.quality.rules.repeated_question=merge", 'data.quality.keep=["own:100","own:120"]'),
    "grouped": ("data.quality.rules.repeated_question=group", "data.quality.rules.near_duplicate=flag"),
    "masked": ("data.phi.action=mask",),
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_stream_finds_what_is_found_in_memory(tmp_path, settings, monkeypatch):
    monkeypatch.setattr("meditune.data.quality.audit_folder.BATCH", 40)
    monkeypatch.setattr("meditune.data.quality.deduplication.TEXTS", 16)
    path = jsonl(tmp_path / "mine.jsonl", planted())
    whole, expected = audited_folder(path, tmp_path / "whole", *settings, stream=False)
    streamed, found = audited_folder(path, tmp_path / "streamed", *settings, stream=True)
    assert found == expected
    rules = {row["rule"] for row in expected}
    assert rules >= {"exact_duplicate", "near_duplicate", "repeated_question", "truncated", "layout"}
    for quality in (whole, streamed):
        quality["audit"]["rules"].pop("cross_split")
    assert streamed["audit"] == whole["audit"]
    assert streamed["lengths"] == whole["lengths"]
    assert streamed["phi"] == whole["phi"]
    assert streamed["sources"] == whole["sources"]
    assert read_rows(tmp_path / "streamed" / "rejected.jsonl") == read_rows(tmp_path / "whole" / "rejected.jsonl")


def test_the_rows_that_are_left_are_written_in_order(tmp_path):
    path = parquet(tmp_path / "mine.parquet", planted())
    recipe = recipe_for(str(path), [])
    audit = Audit(recipe.data.quality, ())
    audit.rows({"own": list(read(path, Rejects()))})
    quality, _ = audited_folder(path, tmp_path / "out", stream=True, workers=2)
    left = pyarrow.parquet.read_table(tmp_path / "out" / "rows.parquet").to_pylist()
    assert [row["id"] for row in left] == [example.id for example in audit.remaining["own"]]
    assert [row["answer"] for row in left] == [example.answer for example in audit.remaining["own"]]
    assert left[0]["meta"] == '{"topic": "x"}'
    assert quality["stream"] == {"engine": "local", "workers": 2, "rows": len(left)}


def test_the_terms_of_rows_survive_a_stream(tmp_path):
    marked = [row | {"restricted": True, "licence": "CC BY 4.0", "year": 2019} for row in planted()[:3]]
    audited_folder(parquet(tmp_path / "mine.parquet", marked), tmp_path / "out", "data.quality.rules={}", stream=True)
    left = list(read(tmp_path / "out" / "rows.parquet", Rejects()))
    assert all(map(is_restricted, left))
    assert {(row.meta["licence"], row.meta["year"]) for row in left} == {("CC BY 4.0", 2019)}


def test_conversations_and_the_options_of_their_source_survive_a_stream(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDITUNE_DATA", str(tmp_path))
    said = [("user", "What is asthma?"), ("assistant", ANSWER), ("user", "How is asthma treated?")]
    messages = [{"role": role, "content": text} for role, text in [*said, ("assistant", f"<think>Hm.</think>{ANSWER}")]]
    parquet(tmp_path / "mine.parquet", [{"messages": messages}, {"messages": messages[:2]}])
    quality, _ = audited_folder("mine.parquet", tmp_path / "out", "data.quality.rules={}", stream=True)
    assert quality["sources"]["own"]["thoughts_stripped"] == 1
    first, second = read(tmp_path / "out" / "rows.parquet", Rejects())
    assert [(turn.role, turn.text) for turn in first.turns] == said[:2]
    assert (first.answer, second.turns) == (ANSWER, ())
    kept = ("data.quality.rules={}", "data.sources.0.thoughts=keep")
    audited_folder("mine.parquet", tmp_path / "kept", *kept, stream=True)
    assert next(read(tmp_path / "kept" / "rows.parquet", Rejects())).answer == f"<think>Hm.</think>{ANSWER}"


def test_a_stream_knows_the_labels_of_its_source(tmp_path):
    claims = [{"claim": f"Aspirin number {n} helps.", "evidence": ANSWER, "label": "SUPPORTED!"} for n in range(4)]
    settings = ("data.quality.rules={}", "data.sources.0.labels={'supported!': supported}")
    quality, _ = audited_folder(jsonl(tmp_path / "mine.jsonl", claims), tmp_path / "out", *settings, stream=True)
    assert quality["stream"]["rows"] == 4


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray isn't installed")
def test_ray_finds_the_same(tmp_path):
    path = jsonl(tmp_path / "mine.jsonl", planted(60))
    _, expected = audited_folder(path, tmp_path / "whole", stream=False)
    quality, found = audited_folder(path, tmp_path / "ray", engine="ray", workers=2)
    assert found == expected
    assert quality["stream"]["engine"] == "ray"


def test_nothing_is_left_where_it_fails(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(jsonl(tmp_path / "good.jsonl", planted()).read_text(encoding="utf-8") + '{"question": ', "utf-8")
    with pytest.raises(DataError, match="line 21"):
        audit_folder(recipe_for(str(path), []), tmp_path / "out", stream=True)
    assert {each.name for each in tmp_path.iterdir()} == {"mine.jsonl", "good.jsonl"}


def test_the_command_streams_a_large_file_by_itself(tmp_path, monkeypatch):
    path = jsonl(tmp_path / "mine.jsonl", planted(30))
    meditune("data", "audit", path, "--output", tmp_path / "small").ok()
    monkeypatch.setattr(folders, "STREAM_BYTES", 1000)
    result = meditune("data", "audit", path, "--output", tmp_path / "out").ok()
    assert "the file is read as a stream" in result.err
    assert "no splits" in result.out
    names = {each.name for each in (tmp_path / "out").iterdir()}
    assert names == {"audit.html", "quality.json", "ledger.parquet", "rejected.jsonl", "rows.jsonl"}
    assert "truncated" in (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")
    meditune("data", "audit", path, "-o", tmp_path / "out", "--no-stream", "--engine", "ray").refused(1, "--no-stream")
    meditune("data", "audit", "quickstart", "-o", tmp_path / "new", "--stream").refused(1, "one file of your own")


def test_rows_that_all_say_nearly_the_same_cost_no_square():
    """1,500 rewrites of one text have over a million pairs; each row still meets one that came before it."""
    chance = np.random.default_rng(3)
    form = deduplication.shingles(ANSWER * 2)
    rows = [np.unique(np.append(form, chance.integers(0, 2**63, 3, np.uint64))) for _ in range(1500)]
    pairs = deduplication.near_duplicate_pairs(
        map(deduplication.compute_signatures, deduplication.texts_to_sign(rows)), len(rows), 0.5
    )
    assert len(pairs) < len(rows) * deduplication.WINDOW * 6
    assert set(pairs[:, 1]) == set(range(1, len(rows)))
    assert (pairs[:, 0] < pairs[:, 1]).all()
