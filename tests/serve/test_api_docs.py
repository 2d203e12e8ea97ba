"""The API's description: as a document, and as a page that loads nothing from elsewhere.

The examples of docs/how-to/serve.md run as they stand, against a server with a tiny model.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.assistant.saying import assistant_of
from tests.serve import server
from tests.serve.server import served


def test_the_page_shows_every_route_and_object_and_loads_nothing(server):
    page = server.ask("/docs")
    assert page.headers["content-type"].startswith("text/html")
    spec = server.ask("/openapi.json").json
    for path in spec["paths"]:
        assert path in page.text
    for name in spec["components"]["schemas"]:
        assert f'id="{name}"' in page.text
    assert not re.search(r"https?://|<script|\son\w+=|\sstyle=", page.text)
    assert re.findall(r'(?:src|href)="([^#"]+)"', page.text) == ["/docs/docs.css", "/openapi.json"]
    style = server.ask("/docs/docs.css")
    assert style.headers["content-type"].startswith("text/css")
    assert "url(" not in style.text


def test_the_document_has_openais_errors(server):
    spec = server.ask("/openapi.json").json
    for methods in spec["paths"].values():
        for told in methods.values():
            assert "422" not in told["responses"]
            assert told["responses"]["400"]["content"]["application/json"]["schema"]["$ref"].endswith("/Error")
    assert "HTTPValidationError" not in spec["components"]["schemas"]
    assert spec["components"]["schemas"]["ChatBody"]["additionalProperties"] is False


PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "serve.md"
RUNNABLE = re.compile(r"^<!-- run -->\n```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLES = RUNNABLE.findall(PAGE.read_text(encoding="utf-8"))
RUN = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "MODEL", "quickstart")
        with served(tmp_path_factory.mktemp("store")) as running:
            running.service.assistant = assistant_of(running.service.engine)
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
