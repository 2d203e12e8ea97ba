"""Retrieved passages through a whole run: found once, shown to both models, trained with, measured and reported.

Passages out of an index: whole documents around what was found, checked for the answers of the items.
"""

from __future__ import annotations

import json

import pytest

from meditune import retrieval_augmentation
from meditune.config.data_options import PromptFormat, RetrieveSpec, TrainRetrieveSpec
from meditune.config.recipe import EvaluateSpec, Recipe
from meditune.config.training_options import TrainSpec
from meditune.data import retrieved_passages
from meditune.data.example import Example, Passage
from meditune.data.leakage import facts, in_documents, sentence
from meditune.data.splits import Splits
from meditune.errors import DataError
from meditune.files import read_json
from meditune.prompts import Encoder, prompt_text
from meditune.retrieval_augmentation import open_search
from meditune.retrieve import collections
from meditune.retrieve.build_index import build
from meditune.retrieve.context_packing import in_sections, with_neighbors
from meditune.retrieve.storage import index_storage
from tests import corpus, tiny
from tests.commands import bench, meditune, read_rows
from tests.evaluate.test_report import shown

ASKED = {
    "data__sources__0__limit": "60",
    "evaluate__closed_book": "true",
    "evaluate__retrieve__index": "contexts",
    "evaluate__retrieve__k": "3",
    "train__retrieve__share": "0.75",
}


@pytest.fixture(scope="module")
def done(place):
    result = place.run("run", **ASKED).ok()
    return place.folder / "run", result


@pytest.fixture(scope="module")
def folder(done):
    return done[0]


def rows(folder, kind, name="tuned"):
    return {row["id"]: row for row in read_rows(folder / "predictions" / f"{name}-{kind}.jsonl")}


def test_every_measured_item_has_its_passages(folder):
    found = {row["id"]: row for row in read_rows(folder / "retrieved.jsonl")}
    test = {row["id"]: row for row in read_rows(folder / "data" / "test.jsonl")}
    assert found.keys() == test.keys()
    for row in found.values():
        assert [passage["rank"] for passage in row["passages"]] == [0, 1, 2]
        assert row["passages"][0]["score"] >= row["passages"][2]["score"]
        assert "may help some patients" not in str(row["passages"]), "conclusions aren't among what is searched"
    own = sum(row["passages"][0]["document"] == row["id"] for row in found.values())
    assert own == len(found), "the number in the question tells the abstracts apart"
    facts = read_json(folder / "retrieved.json")
    assert (facts["index"], facts["documents"], facts["leaks"]) == ("contexts", 60, {})
    assert facts["own"] == {"items": len(test), "ranks": {"1": len(test)}}


@pytest.mark.parametrize("name", ["base", "tuned"])
def test_both_models_are_measured_under_every_condition_on_the_same_items(folder, name):
    given = rows(folder, "decision", name)
    for condition in ("closed", "retrieved"):
        decided = rows(folder, condition, name)
        assert decided.keys() == given.keys()
        assert any(decided[id]["logits"] != given[id]["logits"] for id in given)
        for kind in ("likelihood", "answer"):
            assert rows(folder, f"{condition}_{kind}", name).keys() == rows(folder, kind, name).keys()
    assert {row["passages"] for row in rows(folder, "retrieved_answer", name).values()} <= {1, 2, 3}
    for kind in ("retrieved_faithfulness", "retrieved_reference_faithfulness"):
        assert rows(folder, kind, name).keys() == rows(folder, "answer", name).keys()


def test_figures_and_differences_follow_from_what_is_stored(folder):
    report = read_json(folder / "report.json")
    for name in ("base", "tuned"):
        found = report["conditions"][name]
        assert found.keys() == {"closed", "given", "retrieved"}
        for condition, kind in (("closed", "closed"), ("given", "decision"), ("retrieved", "retrieved")):
            said = rows(folder, kind, name).values()
            right = 100 * sum(row["reference"] == row["prediction"] for row in said) / len(said)
            assert found[condition]["figures"]["accuracy"] == pytest.approx(right)
            delta = right - found["given"]["figures"]["accuracy"]
            if condition != "given":
                assert found[condition]["comparison"]["accuracy"]["delta"] == pytest.approx(delta)
                assert report[name][f"{condition}_accuracy"] == pytest.approx(right)
        assert "faithfulness" not in found["closed"]["figures"], "closed book there is nothing to be faithful to"
        assert found["retrieved"]["figures"]["faithfulness"] == report[name]["retrieved_faithfulness"]
    assert report["retrieval"]["share"] == 100
    assert report["comparison"].keys() == report["base"].keys()


def test_people_are_shown_the_conditions(done):
    folder, result = done
    assert "tuned, by context" in result.out
    assert "the top 3 documents contain the item's own document for 100.0%" in result.out
    words = shown(folder)
    assert "With and without sources" in words
    assert "Closed book Given context Retrieved passages" in words
    assert "Retrieved passages (3)" in words


def test_training_showed_the_own_passage_among_others_and_nothing_of_the_test(folder):
    found = read_rows(folder / "retrieved_train.jsonl")
    train = {row["id"]: row for row in read_rows(folder / "data" / "train.jsonl")}
    assert len(found) == round(0.75 * len(train))
    assert sum(not row["right"] for row in found) == round(0.2 * len(found))
    places = set()
    for row in found:
        documents = [passage["document"] for passage in row["passages"]]
        assert len(set(documents)) == 3
        assert set(documents) <= train.keys(), "a passage of a dev or test item"
        assert (row["id"] in documents) == row["right"]
        places |= {documents.index(row["id"])} if row["right"] else set()
    assert places == {0, 1, 2}, "the own passage comes anywhere"
    said = read_json(folder / "model" / "training.json")["retrieved"]
    assert said == {"examples": len(found), "right": sum(row["right"] for row in found), "left_out": 0}
    card = (folder / "model" / "README.md").read_text(encoding="utf-8")
    assert f"{len(found)} of the {len(train)} examples showed retrieved passages" in card
    record = read_json(folder / "model" / "trained_on.json")
    assert len(record["contexts"]) == len(train), "the record names the examples' own contexts"


def test_the_same_seed_gives_the_same_passages_and_another_others(place, folder):
    for name, seed in (("again", "17"), ("other", "18")):
        meditune("data", "prepare", "quickstart", "-o", place.folder / name, *place.settings(**ASKED, seed=seed)).ok()
    for file in ("retrieved.jsonl", "retrieved_train.jsonl"):
        assert (place.folder / "again" / file).read_bytes() == (folder / file).read_bytes()
    assert (place.folder / "other" / "retrieved_train.jsonl").read_bytes() != (folder / file).read_bytes()


def test_the_system_with_retrieval_stands_beside_the_models(folder, tmp_path):
    names = [f"{folder}:{each}" for each in ("base", "tuned", "tuned+retrieved", "tuned+closed", "retrieved")]
    meditune("compare", *names[:4], "--json-file", tmp_path / "out.json").ok()
    found = read_json(tmp_path / "out.json")
    assert found["models"] == names[:4]
    report = read_json(folder / "report.json")
    assert found["figures"][names[2]]["accuracy"] == report["tuned"]["retrieved_accuracy"]
    row = found["comparisons"][names[2]]["comparison"]["accuracy"]
    assert row["delta"] == pytest.approx(report["tuned"]["retrieved_accuracy"] - report["base"]["accuracy"])
    assert row["test"] == "McNemar, exact"
    assert meditune("compare", names[2], names[4]).code == 0, "of a run's folder the tuned model is taken"


def test_a_condition_that_was_not_measured_is_named(place):
    place.run("plain", data__sources__0__limit="60").ok()
    plain = place.folder / "plain"
    meditune("compare", plain, f"{plain}:tuned+retrieved").refused(
        3, "tuned wasn't measured with retrieved passages", "evaluate.retrieve.index="
    )
    assert not (plain / "retrieved.jsonl").exists()
    assert "conditions" not in read_json(plain / "report.json")


def test_an_evaluation_finds_its_own_passages(place, folder, tmp_path):
    settings = place.settings(**ASKED)
    result = meditune("evaluate", folder, "--recipe", "quickstart", "-o", tmp_path / "one", *settings).ok()
    assert (tmp_path / "one" / "retrieved.jsonl").read_bytes() == (folder / "retrieved.jsonl").read_bytes()
    assert not (tmp_path / "one" / "retrieved_train.jsonl").exists()
    one, run = read_json(tmp_path / "one" / "evaluation.json"), read_json(folder / "report.json")
    assert one["conditions"]["model"] == run["conditions"]["tuned"]
    assert one["figures"] == pytest.approx(run["tuned"])
    assert "model, by context" in result.out


def test_a_comparison_says_that_the_passages_were_others(place, folder, tmp_path):
    other = place.settings(**ASKED | {"evaluate__retrieve__k": "1"})
    meditune("evaluate", folder, "--recipe", "quickstart", "-o", tmp_path / "one", *other).ok()
    first = f"{folder}:tuned+retrieved"
    result = meditune("compare", first, f"{tmp_path / 'one'}:retrieved").ok()
    assert f"had different passages from {first}" in result.out
    assert "different passages" not in meditune("compare", first, f"{folder}:base+retrieved").out


def test_settings_may_change_until_something_is_measured(place):
    settings = place.settings(**ASKED)
    name = place.folder / "changed"
    meditune("data", "prepare", "quickstart", "-o", name, *settings).ok()
    fewer = place.settings(**ASKED | {"evaluate__retrieve__k": "2"})
    meditune("data", "prepare", "quickstart", "-o", name, *fewer).ok()
    assert {len(row["passages"]) for row in read_rows(name / "retrieved.jsonl")} == {2}


LEAFLET = (
    "# Gout\n\nUric acid crystals inflame a joint, and the pain comes at night.\n\n## Treatment\n\nColchicine calms an "
    "attack within a day, and allopurinol lowers the uric acid that causes the next one.\n"
)
ANSWER = "Colchicine calms an attack within a day, and allopurinol lowers the uric acid that causes the next one."


@pytest.fixture
def tiny_embedder(monkeypatch):
    """Tiny vectors, by words, wherever an index is opened."""
    pytest.importorskip("lancedb")
    monkeypatch.setattr("meditune.retrieve.index.load_encoder", lambda _: corpus.TINY)


@pytest.fixture
def index(tmp_path, tiny_embedder):
    docs = corpus.folder(tmp_path / "docs", corpus.TEXTS | {"gout.md": LEAFLET})
    build(index_storage(tmp_path / "index"), [collections.documents(f"clinic={docs}")], corpus.TINY)
    return str(tmp_path / "index")


def asked(number, question, **fields):
    given = {"group": str(number), "answer": "It helps."} | fields
    return Example(id=f"own:{number}", source="own", question=question, **given)


def recipe(index, **changes):
    return Recipe(name="x", evaluate=EvaluateSpec(retrieve=RetrieveSpec(index=index, k=2)), **changes)


def splits(test, train=()):
    return Splits(list(train), [], list(test), "invented")


def test_a_document_is_shown_whole_and_with_its_headings_where_it_is_short(index, tmp_path):
    item = asked(1, "What calms an attack of gout?")
    said = retrieval_augmentation.retrieve_for_evaluation(recipe(index), splits([item]), tmp_path)
    (row,) = read_rows(tmp_path / "retrieved.jsonl")
    best = row["passages"][0]
    assert best["source"] == "clinic"
    assert best["title"] == "Gout"
    assert best["sections"] == [
        ["", "Uric acid crystals inflame a joint, and the pain comes at night."],
        ["Treatment", ANSWER],
    ]
    assert (said["embedding"], said["own"]["items"]) == ("tiny", 0)
    (shown,) = retrieval_augmentation.with_retrieved(recipe(index), [item], tmp_path)
    assert [(part.label, part.text[:4]) for part in shown.context[:3]] == [
        ("", "Gout"),
        ("", "Uric"),
        ("Treatment", "Colc"),
    ]
    assert retrieval_augmentation.retrieve_for_evaluation(recipe("nowhere"), splits([item]), tmp_path) == said, (
        "what is there isn't looked for again"
    )


def parts(*texts, section=""):
    return [{"id": f"d#{n}", "text": text, "section": section} for n, text in enumerate(texts)]


def test_neighbours_are_taken_while_there_is_room():
    whole = parts("one two", "three four", "five six", "seven eight nine")
    assert [each["id"] for each in with_neighbors(whole, "d#1", 0)] == ["d#1"]
    assert [each["id"] for each in with_neighbors(whole, "d#1", 4)] == ["d#1", "d#2"]
    assert [each["id"] for each in with_neighbors(whole, "d#1", 6)] == ["d#0", "d#1", "d#2"]
    assert [each["id"] for each in with_neighbors(whole, "d#2", 100)] == ["d#0", "d#1", "d#2", "d#3"]


def test_a_heading_can_not_play_the_prompts_cue():
    found = [*parts("Rest helps.", section="Question"), *parts("Ice helps.", section="Results")]
    assert in_sections(found, PromptFormat()) == [("", "Rest helps."), ("Results", "Ice helps.")]


def test_a_title_that_is_the_question_is_not_repeated():
    item = asked(1, "Does ice help?")
    found = [
        {"title": "Does ice help", "sections": [["", "Yes."]], "rank": 0},
        {"title": "Ice", "sections": [["", "Cold."]], "rank": 1},
    ]
    shown = retrieved_passages.shown_passages(item, found)
    assert [each.text for each in shown.context] == ["Yes.", "Ice", "Cold."]
    assert shown.meta[retrieved_passages.RANKS] == [0, 1, 1]


def test_passages_without_room_are_left_out_whole_the_worst_first():
    tokenizer = tiny.tokenizer()
    item = asked(1, "Does the drug help?", context=(Passage(text="Mine."),))
    texts = ["Pain fell in the group with the drug.", "Hearts were not measured in this study.", "Diet and sleep."]
    ranked = zip(texts, (2, 0, 1), strict=True)
    found = [{"title": "", "sections": [["Results", text]], "rank": rank} for text, rank in ranked]
    shown = retrieved_passages.shown_passages(item, found)
    form = PromptFormat(max_tokens=512, answer_tokens=16)
    whole = Encoder(tokenizer, form).prompt(shown, "answer")
    assert tokenizer.decode(whole.prompt) == prompt_text(form, item.question, shown.context, "answer")
    assert whole.left_out == 0
    short = form.model_copy(update={"max_tokens": len(whole.prompt) + 16 - 1})
    fitted = Encoder(tokenizer, short).prompt(shown, "answer")
    assert fitted.left_out == 1
    assert tokenizer.decode(fitted.prompt) == prompt_text(form, item.question, shown.context[1:], "answer")
    assert retrieved_passages.with_best(shown, 2).context == shown.context[1:]
    assert fitted.dropped_sentences == 0
    own = item.model_copy(update={"meta": {"ranks": 3}})  # a column of a user's file
    assert Encoder(tokenizer, form).prompt(own, "answer").left_out == 0


def test_an_answer_in_the_index_is_found_and_counted(index, tmp_path):
    items = [asked(1, "What calms gout?", answer=ANSWER), asked(2, "What is asthma?", answer="A disease. " * 8)]
    said = retrieval_augmentation.retrieve_for_evaluation(recipe(index), splits(items), tmp_path)
    assert said["leaks"]["answer_in_index"]["leaks"] == [
        {"test": "own:1", "train": "clinic:gout.md", "alike": pytest.approx(1, abs=0.2)}
    ]
    assert "its" not in sentence("answer_in_index", said["leaks"]["answer_in_index"], 2, "m").split("(")[0]


def test_a_reference_counts_as_there_from_most_of_its_words_on():
    answer = " ".join(f"word{n}" for n in range(80))
    item = asked(1, "Q?", answer="Something else entirely.", meta={"references": [answer]})
    half, most = " ".join(answer.split()[:40]), " ".join(answer.split()[:68])
    assert in_documents([item], [("d", half)]) == []
    assert in_documents([item], [("d", half), ("e", half)]) == [], "of one document"
    (leak,) = in_documents([item], [("d", most)])
    assert (leak.kind, leak.test, leak.train) == ("answer_in_index", "own:1", "d")
    pieces = [("d", most[: len(most) // 2]), ("x", half), ("d", most[len(most) // 2 :])]
    assert facts(in_documents([item], pieces)), "passages of a document come apart"
    short = asked(1, "Q?", answer="Too short to be told from chance.")
    assert in_documents([short], [("d", "Too short to be told from chance.")]) == []


def test_training_shows_nothing_of_dev_and_test_and_of_an_answers_own_group(index, tmp_path):
    train = [
        asked(1, "What calms an attack of gout?", answer=ANSWER, group="gout"),
        asked(2, "What removes lice?", context=(Passage(text="Combing does.", label="RESULTS"),)),
    ]
    hidden = asked(3, "What cools a burn?", group="clinic:burn.html")
    spec = TrainRetrieveSpec(share=1.0, index=index)
    made = recipe(index, train=TrainSpec(retrieve=spec))
    retrieval_augmentation.retrieve_for_training(made, Splits(train, [], [hidden], "invented"), tmp_path)
    rows = {row["id"]: row for row in read_rows(tmp_path / "retrieved_train.jsonl")}
    for row in rows.values():
        documents = {passage["document"] for passage in row["passages"]}
        assert row["id"] in documents
        assert "clinic:burn.html" not in documents
    mine = next(each for each in rows["own:1"]["passages"] if each["document"] == "own:1")
    assert (mine["sections"], mine["rank"]) == ([["", ANSWER]], 0), "an example without a context rests on its answer"
    shown = {example.id: example for example in retrieved_passages.in_training(train, tmp_path)}
    assert retrieved_passages.count(shown["own:2"]) == 3
    assert "Combing does." in {passage.text for passage in shown["own:2"].context}


def test_restricted_passages_are_not_shown_to_an_api(tmp_path, index):
    opened = read_json(tmp_path / "index" / "index.json")
    opened["sources"]["clinic"]["restricted"] = True
    (tmp_path / "index" / "index.json").write_text(json.dumps(opened), encoding="utf-8")
    with pytest.raises(DataError, match="Passages from clinic may not be sent to GPT"):
        open_search(RetrieveSpec(index=index), [], PromptFormat(), "GPT")


@pytest.mark.usefixtures("tiny_embedder")
def test_without_contexts_there_is_nothing_to_search():
    with pytest.raises(DataError, match="None of the run's examples has a context"):
        open_search(RetrieveSpec(index="contexts"), [asked(1, "Q?")], PromptFormat())


@pytest.mark.usefixtures("tiny_embedder")
def test_a_run_on_an_index_that_holds_answers_is_refused_or_marked(tmp_path):
    with bench(tmp_path / "bench") as made:
        rows = [
            {"id": str(n), "question": f"What is treatment {n} for gout?", "answer": f"{ANSWER} Ask for number {n}."}
            for n in range(30)
        ]
        own = tmp_path / "own.jsonl"
        own.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        docs = corpus.folder(tmp_path / "docs", {"gout.md": LEAFLET})
        build(index_storage(tmp_path / "index"), [collections.documents(f"clinic={docs}")], corpus.TINY)
        settings = made.own(own, evaluate__retrieve__index=tmp_path / "index", data__quality__enabled=None)
        refused = meditune("run", "quickstart", "-o", made.folder / "run", *settings)
        refused.refused(3, "Leakage:", "a reference answer, word for word", "clinic:gout.md")
        allowed = [*settings, "--set", "evaluate.allow_leakage=[answer_in_index]"]
        result = meditune("run", "quickstart", "-o", made.folder / "run", *allowed).ok()
        assert "LEAKAGE (allowed by the recipe)" in result.out
        report = read_json(made.folder / "run" / "report.json")
        assert "answer_in_index" in report["leakage"]["found"]
        assert report["retrieval"]["own"]["items"] == 0
        assert "share" not in report["retrieval"]
