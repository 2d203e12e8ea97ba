"""The examples of docs/serving.md run as they stand, against a server with a tiny model."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from meditune.assistant.assistant import Assistant
from tests.serve import server as tests_server
from tests.serve.server import served

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
RUNNABLE = re.compile(r"^<!-- run -->\n```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLES = RUNNABLE.findall(PAGE.read_text(encoding="utf-8"))
RUN = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tests_server, "MODEL", "quickstart")
        with served(tmp_path_factory.mktemp("store")) as running:
            running.service.assistant = Assistant(running.service.engine)
            yield running.address


@pytest.mark.parametrize(("kind", "text"), EXAMPLES, ids=[f"{n}-{kind}" for n, (kind, _) in enumerate(EXAMPLES)])
def test_an_example(address, kind, text):
    assert "http://127.0.0.1:8000" in text
    words = [*RUN[kind], text.replace("http://127.0.0.1:8000", address)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    if "chest pain" in text:
        assert "event: notice" in done.stdout
        assert '"outcome": "escalated"' in done.stdout
