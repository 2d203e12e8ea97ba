"""Building and updating an index: nothing half is ever in use, and only what changed is embedded.

`meditune index`: a user's journey from files to hits.

The same index in object storage, on a local server of S3's interface: moto's.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from unittest.mock import Mock

import pytest
from filelock import Timeout

from meditune.errors import DataError, ModelError
from meditune.models import sentence_encoder
from meditune.models.sentence_encoder import EncoderIdentity, SentenceEncoder
from meditune.retrieve import build_index, collections, storage
from meditune.retrieve.build_index import build, update
from meditune.retrieve.index import Index, Manifest
from meditune.retrieve.storage import index_storage
from tests import corpus, layouts, tiny
from tests.commands import meditune
from tests.http_servers import free_port

pytest.importorskip("lancedb")


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    return corpus.folder(tmp_path / "docs")


def made(where: Path, docs: Path, encoder: SentenceEncoder = corpus.TINY, **options: bool):
    return build(index_storage(where), [collections.documents(str(docs))], encoder, **options)


@pytest.fixture
def where(tmp_path: Path, docs: Path) -> Path:
    """An index of `docs`."""
    made(tmp_path / "index", docs)
    return tmp_path / "index"


def found(where: Path, question: str) -> list[str]:
    return [hit.passage.document for hit in Index.open(where, corpus.TINY).search(question).hits]


def documents_in(where: Path) -> set[str]:
    return {document for document, _ in Index.open(where, corpus.TINY).texts()}


def test_the_manifest_says_what_is_in_it(tmp_path: Path, docs: Path) -> None:
    made(tmp_path / "index", docs)
    said = json.loads((tmp_path / "index" / "index.json").read_text())
    assert said["passages"] == 6
    assert said["sources"]["documents"] == {
        "passages": 6,
        "documents": 4,
        "licences": ["your own document"],
        "restricted": False,
    }
    assert said["embedding"] == {"name": "tiny", "dimension": 64, "space": "tiny-1"}
    again, _ = made(tmp_path / "other", docs)
    assert again.content == said["content"]


def test_an_update_embeds_only_what_changed_and_removes_what_vanished(docs: Path, where: Path) -> None:
    (docs / "lice.txt").unlink()
    (docs / "gout.md").write_text("# Gout\n\nUric acid crystals inflame a joint.\n", encoding="utf-8")
    os.utime(docs / "gout.md", (docs / "asthma.md").stat()[7:9])
    (docs / "flu.txt").write_text("Influenza comes in winter.", encoding="utf-8")
    counting = corpus.Counting()
    said, changes = update(index_storage(where), [], counting.encoder)
    assert counting.texts == ["flu\nInfluenza comes in winter.", "flu"]
    assert (changes.added, changes.changed, changes.removed, changes.unchanged) == (1, 0, 2, 4)
    assert said.passages == 5
    assert "documents:lice.txt" not in found(where, "head lice insects comb")
    assert found(where, "influenza in winter")[0] == "documents:flu.txt"


def test_an_index_that_was_updated_equals_one_that_is_built_anew(tmp_path: Path, docs: Path) -> None:
    made(tmp_path / "index", docs)
    (docs / "asthma.md").write_text("# Asthma\n\nWheezing and coughing.\n", encoding="utf-8")
    updated, _ = update(index_storage(tmp_path / "index"), [], corpus.TINY)
    anew, _ = made(tmp_path / "anew", docs)
    assert updated.content == anew.content
    assert found(tmp_path / "index", "wheezing") == found(tmp_path / "anew", "wheezing")


def test_a_second_folder_without_a_name_does_not_replace_the_first(tmp_path: Path, docs: Path, where: Path) -> None:
    other = corpus.folder(tmp_path / "other", {"flu.txt": "Influenza comes in winter."})
    unnamed = [collections.documents(str(other))]
    with pytest.raises(
        DataError, match=rf"documents without a name: {docs}\. .* --documents NAME={other}\. .* --remove"
    ):
        update(index_storage(where), unnamed, corpus.TINY)
    assert len(documents_in(where)) == 4
    update(index_storage(where), [collections.documents(f"other={other}")], corpus.TINY)
    assert len(documents_in(where)) == 5
    update(index_storage(where), unnamed, corpus.TINY, remove=["documents"])
    assert documents_in(where) == {"documents:flu.txt", "other:flu.txt"}


def test_pubmed_files_add_replace_and_withdraw(tmp_path: Path, where: Path) -> None:
    first = corpus.articles(
        tmp_path / "1.xml", corpus.article(1, "Aspirin", "Aspirin helped."), corpus.article(2, "Salt", "Salt harmed.")
    )
    update(index_storage(where), [collections.pubmed_files(str(first))], corpus.TINY)
    second = corpus.articles(
        tmp_path / "2.xml",
        corpus.article(1, "Aspirin", "Aspirin was no help."),
        "<DeleteCitation><PMID>2</PMID></DeleteCitation>",
    )
    said, changes = update(index_storage(where), [collections.pubmed_files(str(second))], corpus.TINY)
    assert (changes.changed, changes.removed) == (1, 1)
    assert {name: source["documents"] for name, source in said.sources.items()} == {"documents": 4, "pubmed": 1}
    hit = Index.open(where, corpus.TINY).search("aspirin", sources=["pubmed"]).hits[0].passage
    assert (hit.text, hit.date, hit.section) == ("Aspirin was no help.", "2020-02", "Results")
    said, _ = update(index_storage(where), [], corpus.TINY, remove=["documents"])
    assert list(said.sources) == ["pubmed"]


def test_files_of_what_the_reranker_knew_before_go(tmp_path: Path, docs: Path) -> None:
    where = tmp_path / "index"
    first, _ = made(where, docs)
    (docs / "flu.txt").write_text("Influenza comes in winter.", encoding="utf-8")
    second, _ = update(index_storage(where), [], corpus.TINY)
    assert first.knowledge != second.knowledge
    third, _ = made(where, docs, replace=True)
    (docs / "flu.txt").unlink()
    fourth, _ = update(index_storage(where), [], corpus.TINY)
    assert {path.name for path in where.glob("knowledge-*")} == {third.knowledge, fourth.knowledge}


def test_a_second_build_is_refused_unless_it_may_replace(tmp_path: Path, docs: Path) -> None:
    made(tmp_path / "index", docs)
    with pytest.raises(DataError, match="already contains an index"):
        made(tmp_path / "index", docs)
    (docs / "gout.md").unlink()
    said, _ = made(tmp_path / "index", docs, replace=True)
    assert (said.table, said.documents) == ("passages-2", 3)


def test_another_embedding_model_is_refused_with_the_reason(tmp_path: Path, docs: Path) -> None:
    made(tmp_path / "index", docs)
    other = SentenceEncoder(EncoderIdentity("other", 64, "other-1"), corpus.words_as_vectors)
    with pytest.raises(
        ModelError, match=r"built with the embedding model tiny .* Vectors of other .* cannot be compared"
    ):
        Index.open(tmp_path / "index", other)
    with pytest.raises(ModelError, match="cannot be compared with those in it"):
        update(index_storage(tmp_path / "index"), [], other)


def test_the_second_writer_is_told(docs: Path, where: Path) -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow(texts):
        entered.set()
        leave.wait(20)
        return corpus.words_as_vectors(texts)

    (docs / "flu.txt").write_text("Influenza comes in winter.", encoding="utf-8")
    slow_encoder = SentenceEncoder(corpus.TINY.identity, slow)
    writer = threading.Thread(target=update, args=(index_storage(where), [], slow_encoder))
    writer.start()
    try:
        assert entered.wait(20)
        with pytest.raises(DataError, match="another process is changing this index"):
            update(index_storage(where), [], corpus.TINY)
        assert found(where, "gout colchicine")[0] == "documents:gout.md"
    finally:
        leave.set()
        writer.join()
    assert found(where, "influenza")[0] == "documents:flu.txt"


def test_an_error_while_an_index_is_written_is_not_taken_for_another_process(tmp_path: Path) -> None:
    with pytest.raises(Timeout), index_storage(tmp_path / "index").writing():
        raise Timeout("other.lock")


def test_an_index_of_an_earlier_version_is_named(docs: Path, where: Path) -> None:
    manifest = json.loads((where / "index.json").read_text(encoding="utf-8"))
    del manifest["knowledge"], manifest["words"]
    (where / "index.json").write_text(json.dumps(manifest), encoding="utf-8")
    (docs / "flu.txt").write_text("Influenza comes in winter.", encoding="utf-8")
    for use in (Index.open, lambda where, encoder: update(index_storage(where), [], encoder)):
        with pytest.raises(DataError, match=r"index.json is damaged .*'knowledge'.* --replace"):
            use(where, corpus.TINY)
    made(where, docs, replace=True)
    assert found(where, "influenza")


def test_a_reader_keeps_its_version_until_it_refreshes(docs: Path, where: Path) -> None:
    reader = Index.open(where, corpus.TINY)
    (docs / "lice.txt").unlink()
    update(index_storage(where), [], corpus.TINY)
    assert reader.search("head lice").hits[0].passage.document == "documents:lice.txt"
    made(where, docs, replace=True)
    assert reader.search("head lice").hits[0].passage.document == "documents:lice.txt"
    assert reader.refresh()
    assert not reader.refresh()
    assert "documents:lice.txt" not in [hit.passage.document for hit in reader.search("head lice").hits]


def test_a_reader_keeps_its_version_after_the_clock_was_set_back(docs: Path, where: Path, monkeypatch) -> None:
    reader = Index.open(where, corpus.TINY)
    (docs / "lice.txt").unlink()
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now - 7_200)
    update(index_storage(where), [], corpus.TINY)
    assert reader.passages("documents:lice.txt")


@pytest.mark.parametrize("stage", ["embedding", "indexing", "switching"])
def test_a_killed_build_leaves_no_index_and_goes_on(
    tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_index, "BATCH", 10)
    docs = corpus.folder(tmp_path / "docs", {f"{n}.txt": f"Text {n} of illness {n % 7}." for n in range(45)})
    where = tmp_path / "index"
    assert _killed(where, docs, stage) == -signal.SIGKILL
    with pytest.raises(DataError, match="contains no index"):
        Index.open(where, corpus.TINY)
    counting = corpus.Counting()
    said, _ = made(where, docs, counting.encoder)
    assert len(counting.passages) == (25 if stage == "embedding" else 0)
    assert said.content == made(tmp_path / "whole", docs)[0].content


def test_an_update_removes_no_version_in_use(tmp_path: Path, docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_index, "KEEP_VERSIONS", timedelta(0))  # as if the index had been built days ago
    where = tmp_path / "index"
    before, _ = made(where, docs)
    reader = Index.open(where, corpus.TINY)
    (docs / "lice.txt").unlink()
    with monkeypatch.context() as stopped, pytest.raises(KeyboardInterrupt):
        stopped.setattr(build_index.index, "learn", Mock(side_effect=KeyboardInterrupt))
        update(index_storage(where), [], corpus.TINY)
    assert Index.open(where, corpus.TINY).manifest == before
    update(index_storage(where), [], corpus.TINY)
    assert reader.passages("documents:lice.txt")


def test_versions_are_removed_when_readers_had_time_to_switch(
    tmp_path: Path, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_index.storage, "MARGIN", timedelta(seconds=0.5))
    where = tmp_path / "index"

    def updated(text: str) -> Manifest:
        time.sleep(0.6)
        (docs / "flu.txt").write_text(text, encoding="utf-8")
        return update(index_storage(where), [], corpus.TINY)[0]

    def kept() -> list[int]:
        table = storage.connect(index_storage(where)).open_table("passages-1")
        there = {each["version"] for each in table.list_versions()}
        return [number for number, each in enumerate(manifests) if each.version in there]

    manifests = [made(where, docs)[0], updated("Influenza comes in winter."), updated("Influenza is viral.")]
    assert kept() == [0, 1, 2]
    monkeypatch.setattr(build_index, "KEEP_VERSIONS", timedelta(0))  # as if the first updates were days ago
    manifests.append(updated("Influenza spreads."))
    assert kept() == [2, 3]
    assert {path.name for path in where.glob("knowledge-*")} == {each.knowledge for each in manifests[2:]}


@pytest.mark.parametrize("same", [True, False])
def test_a_killed_update_is_continued_or_undone(tmp_path: Path, same: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_index, "BATCH", 10)
    docs = corpus.folder(tmp_path / "docs")
    where = tmp_path / "index"
    before, _ = made(where, docs)
    more = corpus.folder(tmp_path / "more", {f"{n}.txt": f"Text {n} of illness {n % 7}." for n in range(45)})
    assert _killed(where, more, "embedding", name="more=") == -signal.SIGKILL
    assert Index.open(where, corpus.TINY).manifest == before
    assert found(where, "text of illness 3")[:1] != ["more:3.txt"]
    counting = corpus.Counting()
    named = [collections.documents(f"more={more}")] if same else []
    said, _ = update(index_storage(where), named, counting.encoder)
    assert len(counting.passages) == (25 if same else 0)
    assert list(said.sources) == (["documents", "more"] if same else ["documents"])


def test_damage_is_said_and_can_be_built_over(docs: Path, where: Path) -> None:
    for file in (where / "tables" / "passages-1.lance" / "data").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match=r"missing or damaged.*index build --replace"):
        Index.open(where, corpus.TINY).search("gout")
    made(where, docs, replace=True)
    assert found(where, "gout")[0] == "documents:gout.md"
    (where / "index.json").write_text('{"format": 1, "tab', encoding="utf-8")
    with pytest.raises(DataError, match="not valid JSON"):
        Index.open(where, corpus.TINY)
    made(where, docs, replace=True)
    assert found(where, "gout")[0] == "documents:gout.md"


def test_what_cant_be_indexed_is_said(tmp_path: Path, docs: Path) -> None:
    with pytest.raises(DataError, match="Nothing to index"):
        build(index_storage(tmp_path / "index"), [], corpus.TINY)
    with pytest.raises(DataError, match="Two collections have the name 'documents'"):
        build(index_storage(tmp_path / "index"), [collections.documents(str(docs))] * 2, corpus.TINY)
    empty = corpus.folder(tmp_path / "empty", {"a.txt": " \n"})
    with pytest.raises(DataError, match=r"no passages found.*1 contains no text"):
        build(index_storage(tmp_path / "index"), [collections.documents(str(empty))], corpus.TINY)


def _killed(where: Path, docs: Path, stage: str, name: str = "") -> int:
    """Build (or update, with a name) in a process that kills itself; its exit code."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # or each process imports everything again
    process = context.Process(target=_dying, args=(where, docs, stage, name))
    process.start()
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


def _dying(where: Path, docs: Path, stage: str, name: str) -> None:
    build_index.BATCH = 10
    batches = 0

    def die(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(10)

    def embed(texts):
        nonlocal batches
        batches += 1
        if stage == "embedding" and batches == 3:
            die()
        return corpus.words_as_vectors(texts)

    if stage == "indexing":
        build_index.storage.make_searchable = die
    if stage == "switching":
        build_index.changed = die
    chosen = [collections.documents(f"{name}{docs}")]
    encoder = SentenceEncoder(corpus.TINY.identity, embed)
    if name:
        update(index_storage(where), chosen, encoder)
    else:
        build(index_storage(where), chosen, encoder)


def test_many_passages_get_an_approximate_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_index, "APPROXIMATE_FROM", 250)
    words = ["heart", "kidney", "skin", "lung", "liver"]
    texts = {f"{n}.txt": f"Case {n} of the {words[n % 5]}, number {n * 7}." for n in range(300)}
    made(tmp_path / "index", corpus.folder(tmp_path / "docs", texts))
    index = Index.open(tmp_path / "index", corpus.TINY)
    hits = index.search("Case 42 of the skin, number 294.", 5, mode="vectors").hits
    assert "documents:42.txt" in [hit.passage.document for hit in hits]
    assert hits[0].meaning == pytest.approx(1.0, abs=0.1)


@pytest.fixture
def embedding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny sentence model where the real one would be fetched."""
    folder = tiny.sentence_model(tmp_path / "sentences")
    monkeypatch.setattr("meditune.models.package_download.fetch_folder", lambda _: folder)
    monkeypatch.setenv("MEDITUNE_DATA", str(tmp_path / "data"))


@pytest.mark.usefixtures("embedding")
def test_a_journey(tmp_path: Path) -> None:
    layouts.pubmedqa(tmp_path / "data" / "pubmedqa", {str(n): layouts.pubmedqa_item(n) for n in range(5)})
    docs = corpus.folder(tmp_path / "docs", corpus.TEXTS | {"empty.txt": ""})
    index = tmp_path / "index"
    done = meditune("index", "build", "-o", index, "--source", "pubmedqa", "--documents", f"clinic={docs}").ok()
    (said,) = [
        line for line in done.out.splitlines() if line.startswith("Left out of clinic: 1 item: contains no text (")
    ]
    assert str(tmp_path) in said
    assert "16 passages of 9 documents: 16 new, 0 changed, 0 removed, 0 unchanged." in done.out

    done = meditune("index", "search", index, "How do I remove head lice?", "--source", "clinic", "-k", 2).ok()
    assert "1. lice\n   clinic · " in done.out
    assert "Combing with a fine comb removes them." in done.out
    rows = [json.loads(line) for line in meditune("index", "search", index, "treatment 3", "--json").out.splitlines()]
    assert {"id", "text", "url", "licence", "score", "words", "meaning"} <= set(rows[0])
    assert rows[0]["document"] == "pubmedqa:3"

    (docs / "lice.txt").unlink()
    done = meditune("index", "update", index)
    assert "0 new, 0 changed, 1 removed, 15 unchanged." in done.out
    done = meditune("index", "stats", index)
    assert "clinic: 5 passages of 3 documents (your own document)" in done.out
    assert "pubmedqa: 10 passages of 5 documents (MIT)" in done.out
    assert "Embedding: all-minilm-l6-v2, 32 dimensions" in done.out

    done = meditune("index", "build", "quickstart", "-o", tmp_path / "by-recipe")
    assert "10 passages of 5 documents" in done.out, done
    meditune("index", "search", index, " ").refused(3, "The question is empty")
    meditune("index", "search", index, "gout\udcff").refused(3, "isn't valid UTF-8 text: character 5")
    meditune("index", "search", tmp_path / "none", "gout").refused(3, "contains no index", "meditune index build -o")
    meditune("index", "build", "-o", index, "--source", "pubmedqa").refused(3, "already contains an index")
    meditune("index", "build", "-o", tmp_path / "x", "--source", "medline").refused(3, "Unknown index source")
    meditune("index", "build", "-o", tmp_path / "x").refused(3, "Nothing to index")
    meditune("index", "update", index, "--remove", "x").refused(3, "has no collection 'x'")


ROWS = (
    "Patient says,Reply,Background,Comment\n"
    "How is gout treated?,Colchicine calms an attack.,Uric acid crystals inflame a joint.,\n"
    "What removes head lice?,Combing with a fine comb removes them.,,\n"
    "What removes head lice?,Combing with a fine comb removes them.,,again\n"
    "Is tea healthy?,,,\n"
    "one field too many,a,b,c,d\n"
    "Who gets asthma?,People of any age.,,\n"
)


@pytest.mark.usefixtures("embedding")
def test_a_recipes_own_questions_and_answers_are_indexed_as_training_reads_them(tmp_path: Path) -> None:
    table, recipe, index = tmp_path / "qa.csv", tmp_path / "mine.yaml", tmp_path / "index"
    table.write_text(ROWS, encoding="utf-8")
    fields = "fields: {question: Patient says, answer: Reply, context: Background}"
    recipe.write_text(
        f"name: mine\ndata:\n  sources: [{{name: own/clinic, path: {table}, {fields}, restricted: true}}]\n"
    )
    done = meditune("index", "build", recipe, "-o", index).ok()
    assert "Left out of own/clinic: 1 item: duplicate row" in done.out
    assert f"Left out of own/clinic: 1 item: neither answer nor decision ({table}:5)" in done.out
    assert f"Left out of own/clinic: 1 item: 5 fields, but the header has 4 ({table}:6)" in done.out
    assert "own/clinic is restricted" in done.out
    assert "4 passages of 3 documents: 4 new" in done.out

    done = meditune("index", "search", index, "How is gout treated?", "--per-document", 2)
    assert f"1. How is gout treated?\n   own/clinic · {table.as_uri()}#row=1 · restricted\n" in done.out
    assert "Colchicine calms an attack." in done.out
    done = meditune("index", "search", index, "uric acid crystals", "--json", "-k", 1)
    assert json.loads(done.out)["text"] == "Uric acid crystals inflame a joint."

    table.write_text(ROWS.replace("People of any age.", "Mostly children."), encoding="utf-8")
    assert "0 new, 1 changed, 0 removed, 3 unchanged." in meditune("index", "update", index).out


def test_sources_of_a_recipe_that_cant_be_indexed_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "qa.csv").write_text("question,answer\nIs gout old?,Yes.\n")
    own = f"{{name: own/clinic, path: {tmp_path / 'qa.csv'}}}"
    (tmp_path / "mine.yaml").write_text(f"name: mine\ndata:\n  sources: [{own}, {{name: liveqa}}, {{name: medquad}}]\n")
    assert [each.source for each in collections.of_recipe(str(tmp_path / "mine.yaml"))] == ["own/clinic", "medquad"]
    said = "Not indexed: liveqa (only own, medquad, medquad-judged, pubmedqa, mimic can be indexed)\n"
    assert capsys.readouterr().err == said


@pytest.mark.usefixtures("embedding")
def test_identifiers_that_a_recipe_masks_are_masked_in_the_index(tmp_path: Path) -> None:
    table, recipe, index = tmp_path / "qa.csv", tmp_path / "mine.yaml", tmp_path / "index"
    table.write_text(
        "question,answer\nHow do I book?,Call John Smith at 212-555-0187 to book a visit.\n", encoding="utf-8"
    )
    recipe.write_text(f"name: m\ndata:\n  sources: [{{name: own, path: {table}}}]\n  phi: {{action: mask}}\n")
    meditune("index", "build", recipe, "-o", index).ok()
    found = meditune("index", "search", index, "book a visit").out
    assert "[PHONE] to book a visit." in found
    assert "212-555" not in found

    replaced = ["-o", index, "--replace", "--set", "data.phi.action=surrogate"]
    meditune("index", "build", recipe, *replaced).ok()
    found = meditune("index", "search", index, "book a visit").out
    assert "[PHONE]" not in found
    assert "212-555" not in found
    meditune("index", "build", "--documents", table, *replaced).refused(3, "name the recipe")


@pytest.mark.usefixtures("embedding")
def test_identifiers_that_stay_in_the_index_are_counted_in_a_warning(tmp_path: Path) -> None:
    table, recipe, index = tmp_path / "qa.csv", tmp_path / "mine.yaml", tmp_path / "index"
    secret = "Ms. Iwona Zelazny (MRN: 4471123) was seen on 3/14/2012."
    table.write_text(f"question,answer,nurse_name\nWho?,{secret},Okonkwo\nWhy?,Because of gout.,Okonkwo\n")
    docs = corpus.folder(tmp_path / "docs", {"note.txt": secret, "gout.txt": "Gout hurts.", "page.html": secret})
    recipe.write_text(f"name: m\ndata:\n  sources: [{{name: own, path: {table}}}]\n", encoding="utf-8")
    counts = "1 of 2 documents contains identifiers of people (1 name, 1 mrn, 1 date). THEY ARE IN THE INDEX"

    done = meditune("index", "build", recipe, "-o", index)
    assert f"WARNING: own: {counts}" in done.err, done
    assert f"To see where they are: meditune data phi {table} --show 20" in done.err
    assert "set data.phi.action: mask in the recipe" in done.err
    done = meditune("index", "update", index, "--documents", f"clinic={table}", "--documents", docs)
    assert f"WARNING: clinic: {counts}" in done.err, done
    assert f"index a masked copy: meditune data phi {table} --output qa-masked.csv" in done.err
    assert "WARNING: documents: 2 of 3 documents" in done.err
    assert f"They are in {docs / 'note.txt'}, {docs / 'page.html'}." in done.err
    assert f"meditune data phi {docs / 'note.txt'} --show 20" in done.err
    assert not any(word in done.err for word in ("Zelazny", "4471123", "Okonkwo"))

    recipe.write_text(f"name: m\ndata:\n  sources: [{{name: own, path: {table}}}]\n  phi: {{action: off}}\n")
    assert "WARNING" not in meditune("index", "build", recipe, "-o", index, "--replace").err


@pytest.mark.usefixtures("embedding")
def test_a_file_of_rows_is_a_collection_of_documents(tmp_path: Path) -> None:
    table, index = tmp_path / "qa.jsonl", tmp_path / "index"
    table.write_text('{"id": "Q7", "question": "What removes head lice?", "answer": "A fine comb.", "year": 2019}\n')
    done = meditune("index", "build", "-o", index, "--documents", f"clinic={table}")
    assert "1 passage of 1 document" in done.out, done
    done = meditune("index", "search", index, "head lice", "--source", "clinic")
    assert f"1. What removes head lice?\n   clinic · 2019 · {table.as_uri()}#id=Q7\n" in done.out


def test_rows_have_a_date_only_if_their_year_is_a_date(tmp_path: Path) -> None:
    years = [2019, 2019.0, "2019-05", "2019-05-17", "unknown", "ca. 1890", "17.5.2019", None]
    rows = (json.dumps({"question": f"Is gout old ({year})?", "answer": "Yes.", "year": year}) for year in years)
    (tmp_path / "qa.jsonl").write_text("\n".join(rows))
    found = collections.Reading([collections.documents(f"clinic={tmp_path / 'qa.jsonl'}")]).documents()
    assert [each.date for each in found] == ["2019", "2019", "2019-05", "2019-05-17", "", "", "", ""]


def test_a_long_question_is_cut_at_the_limit_of_titles(tmp_path: Path) -> None:
    questions = ["我" * 300, "我" * 301, "Why " + "x" * 400, "Is gout old " * 30]
    rows = (json.dumps({"question": question, "answer": f"Yes {question}."}) for question in questions)
    (tmp_path / "qa.jsonl").write_text("\n".join(rows))
    found = collections.Reading([collections.documents(f"clinic={tmp_path / 'qa.jsonl'}")]).documents()
    assert [each.title for each in found] == [
        "我" * 300,
        "我" * 296 + " ...",
        "Why " + "x" * 292 + " ...",
        "Is gout old " * 24 + "Is gout ...",
    ]


def test_files_that_cant_be_indexed_are_refused_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meditune.models.sentence_encoder.load_encoder", lambda *_: pytest.fail("loaded a model"))
    folder = corpus.folder(tmp_path / "tables", {"qa.csv": ROWS})
    build = ("index", "build", "-o", tmp_path / "index", "--documents")
    meditune(*build, f"clinic={folder / 'none.csv'}").refused(3, "none.csv: no such file or folder")
    meditune(*build, folder).refused(3, "no file that ends in .txt", "qa.csv: a file with one question per row")
    meditune(*build, f"clinic={folder / 'qa.csv'}").refused(3, "no column for the question", "'Patient says'")


@pytest.mark.usefixtures("embedding")
def test_restricted_sources_are_marked(tmp_path: Path) -> None:
    layouts.noteevents(tmp_path / "data" / "mimic" / "NOTEEVENTS.csv", [layouts.note(174)])
    done = meditune("index", "build", "-o", tmp_path / "index", "--source", "mimic")
    assert "mimic is restricted: its licence forbids sharing this index" in done.out, done
    assert "RESTRICTED" in meditune("index", "stats", tmp_path / "index").out
    assert "restricted" in meditune("index", "search", tmp_path / "index", "pneumonia").out


@pytest.mark.model
def test_every_form_of_the_model_gives_the_vectors_of_the_whole_one() -> None:
    pytest.importorskip("onnxruntime")
    texts = ["What helps against gout?", "Colchicine calms an attack of gout in most adults. " * 30, "x", ""]
    whole = sentence_encoder.sentence_model().encode(texts)
    quick, small = map(sentence_encoder.load_encoder, (sentence_encoder.DEFAULT, sentence_encoder.INT8))
    assert quick.identity.space == small.identity.space
    assert (whole * quick.encode(texts)).sum(axis=1).min() > 0.98
    assert (whole * small.encode(texts)).sum(axis=1).min() > 0.995


def test_without_onnxruntime_the_way_out_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModelError, match=r"pip install --editable .*\[retrieve\]"):
        sentence_encoder.load_onnx(tmp_path / "model.onnx", tmp_path / "tokenizer.json")


def test_an_unknown_embedding_model_is_an_error_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ModelError, match=r"needs sentence-transformers.*use all-minilm-l6-v2"):
        sentence_encoder.load_encoder("someone/some-model")


@pytest.mark.model
def test_a_server_that_only_searches_needs_no_torch(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    docs = corpus.folder(tmp_path / "docs")
    build(
        index_storage(tmp_path / "index"),
        [collections.documents(str(docs))],
        sentence_encoder.load_encoder(sentence_encoder.INT8),
    )
    program = (
        "import sys\nfrom meditune.retrieve.index import Index\n"
        f"print(Index.open({str(tmp_path / 'index')!r}).search('itchy scalp', 1).hits[0].passage.document)\n"
        "print(*{'torch', 'transformers'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["documents:lice.txt"]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("moto.server")
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {
                "AWS_ENDPOINT_URL": endpoint,
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "AWS_REGION": "us-east-1",
            }.items():
                patch.setenv(name, value)
            _create(f"{endpoint}/texts")
            yield "s3://texts/index"
    finally:
        process.kill()
        process.wait()


def _create(address: str) -> None:
    for _ in range(200):
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="PUT"), timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise AssertionError("the server didn't start")


def test_build_search_update_and_lock(bucket: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{bucket}: contains no index"):
        Index.open(bucket, corpus.TINY)
    docs = corpus.folder(tmp_path / "docs")
    said, _ = build(index_storage(bucket), [collections.documents(str(docs))], corpus.TINY)
    assert "is not locked" in index_storage(bucket).unlock()
    on_disk, _ = build(index_storage(tmp_path / "index"), [collections.documents(str(docs))], corpus.TINY)
    assert said.content == on_disk.content
    reader = Index.open(bucket, corpus.TINY)
    assert reader.search("gout colchicine").hits[0].passage.document == "documents:gout.md"

    (docs / "flu.txt").write_text("Influenza comes in winter.", encoding="utf-8")
    with index_storage(bucket).writing(), pytest.raises(DataError, match=r"process \d+ on .* is changing this index"):
        update(index_storage(bucket), [], corpus.TINY)
    _, changes = update(index_storage(bucket), [], corpus.TINY)
    assert (changes.added, changes.unchanged) == (1, 6)
    assert reader.refresh()
    assert reader.search("influenza").hits[0].passage.document == "documents:flu.txt"

    killed = index_storage(bucket).writing()
    killed.__enter__()
    assert "is unlocked" in index_storage(bucket).unlock()
    assert "is not locked" in index_storage(bucket).unlock()
    update(index_storage(bucket), [], corpus.TINY)


def test_a_store_that_refuses_is_said_in_a_sentence(bucket: str) -> None:
    with pytest.raises(DataError, match=r"s3://none/index: the bucket 'none' doesn't exist"):
        build(index_storage("s3://none/index"), [collections.collection_named("pubmedqa")], corpus.TINY)
    with pytest.raises(DataError, match=r"s3://BUCKET/PREFIX"):
        index_storage("ftp://texts/index")


def test_of_many_writers_at_once_one_is_let_in(bucket: str) -> None:
    together = threading.Barrier(6)
    inside: list[int] = []
    refused: list[str] = []

    def write(number: int) -> None:
        together.wait()
        try:
            with index_storage(f"{bucket}-many").writing():
                inside.append(number)
                done.wait(20)
        except DataError as error:
            refused.append(str(error))
            if len(refused) == 5:
                done.set()

    done = threading.Event()
    writers = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(inside) == 1
    assert all("is changing this index" in each for each in refused)


def test_only_the_thread_that_imports_lancedb_does_without_pandas(tmp_path, monkeypatch):
    (tmp_path / "lancedb.py").write_text(
        "import importlib.util, threading\n"
        "def look(found):\n"
        "    try:\n"
        "        found.append(importlib.util.find_spec('pandas') is not None)\n"
        "    except ModuleNotFoundError:\n"
        "        found.append(False)\n"
        "here, there = [], []\n"
        "look(here)\n"
        "thread = threading.Thread(target=look, args=(there,))\n"
        "thread.start()\n"
        "thread.join()\n"
    )
    (tmp_path / "pandas.py").write_text("")
    for name in ("lancedb", "pandas"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    storage.import_lancedb_without_pandas()
    fake = sys.modules["lancedb"]
    monkeypatch.delitem(sys.modules, "lancedb")
    assert (fake.here, fake.there) == ([False], [True])
