"""The same index in object storage, on a local server of S3's interface: moto's."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from meditune.errors import DataError
from meditune.retrieve import collections
from meditune.retrieve.build_index import build, update
from meditune.retrieve.index import Index
from meditune.retrieve.storage import index_storage
from tests import corpus

pytest.importorskip("lancedb")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("moto.server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
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
    with pytest.raises(DataError, match=r"s3://none/index: there is no bucket 'none'"):
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
