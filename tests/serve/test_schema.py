"""schemathesis sends what the OpenAPI document allows, and what it doesn't: nothing is answered with a 5xx."""

import subprocess
import sys
from pathlib import Path

import pytest

from meditune.serve.settings import Settings
from tests.assistant.asking import Plain
from tests.serve.server import served

pytest.importorskip("schemathesis")
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.mark.slow
def test_the_server_does_what_its_description_says_and_never_fails(tmp_path):
    with served(tmp_path / "store", Settings(bare_chat=True)) as server:
        server.service.assistant = Plain(server.service.engine)
        command = [Path(sys.executable).parent / "st", "run", f"{server.address}/openapi.json", "--no-color"]
        options = ["--checks", CHECKS, "--max-examples", "8", "--seed", "17", "--request-timeout", "20"]
        done = subprocess.run(
            [*command, *options], capture_output=True, text=True, cwd=tmp_path, timeout=280, check=False
        )
        failed = server.figure('meditune_requests_total{method="POST",route="/v1/chat/completions",status="500"}')
        written = server.figure('meditune_requests_total{method="POST",route="/v1/chat/completions",status="200"}')
        embeds = server.ask("/v1/embeddings", {"model": "none", "input": "x"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert failed == 0
    assert written > 0
    assert embeds.status == 404
