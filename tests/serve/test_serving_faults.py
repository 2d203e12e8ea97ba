"""Faults of the server's own: told as such, without what is inside, and logged as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from meditune.errors import EngineError
from meditune.serve.settings import Settings
from tests.serve.server import served, slowed
from tests.serve.test_access import LOGGER, Lines

FAILING = """
import logging, threading
from meditune.observability import set_up
set_up()
try:
    raise ValueError("secretword")
except ValueError:
    logging.getLogger("meditune.engines.scheduler").exception("A step failed")
thread = threading.Thread(target=lambda: int("secretword"))
thread.start()
thread.join()
"""


def test_faults_are_503_and_tell_no_paths_and_addresses(tmp_path):
    lines = Lines()
    LOGGER.addHandler(lines)
    with served(tmp_path, Settings(keep_text=True)) as server:
        base = server.service.answers.base
        kept, base.path = base.path, tmp_path / "gone" / "store"
        store = server.chat()
        base.path = kept

        def fails(*_):
            raise EngineError("No server answers at http://10.1.2.3:8000/v1")

        server.service.engine.start = fails
        engine = server.chat()
    LOGGER.removeHandler(lines)
    for reply in (store, engine):
        assert reply.status == 503
        assert reply.error()["type"] == "server_error"
        assert "gone" not in reply.text
        assert "10.1.2.3" not in reply.text
    failed = [json.loads(line) for line in lines.lines]
    assert {"StoreError", "EngineError"} <= {each.get("exception") for each in failed}


def test_an_answer_that_the_engine_breaks_off_is_no_finished_one(tmp_path):
    with served(tmp_path, Settings(bare_chat=True), slowed(0.02)) as server, ThreadPoolExecutor() as pool:
        whole = pool.submit(server.chat, max_tokens=400)
        streamed = pool.submit(server.chat, max_tokens=400, stream=True)
        body = {"model": "tiny", "prompt": "Does", "max_tokens": 400}
        text = pool.submit(server.ask, "/v1/completions", body)
        while server.service.admission.inside < 3:
            time.sleep(0.01)
        time.sleep(0.2)
        server.service.engine.close()
        assert (whole.result().status, text.result().status) == (503, 503)
        told = streamed.result().text
        assert "broken_off" in told
        assert '"finish_reason": "stop"' not in told


def test_engines_and_threads_log_json_without_messages():
    ran = subprocess.run([sys.executable, "-c", FAILING], capture_output=True, text=True, check=True)
    said = [json.loads(line) for line in ran.stderr.splitlines()]
    assert [each["exception"] for each in said] == ["ValueError", "ValueError"]
    assert "secretword" not in ran.stderr
