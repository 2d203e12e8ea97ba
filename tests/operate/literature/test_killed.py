"""An update that was killed ends, when it is run again, like one that nothing disturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.operate.literature import pubmed_server
from tests.operate.literature.medline import Paper

pytest.importorskip("lancedb")
ROOT = Path(__file__).parents[3]


TRIALS = 8


@pytest.mark.slow
def test_killed_anywhere(tmp_path: Path) -> None:
    """Before files and transactions spread over the whole update."""
    found = subprocess.run(
        [sys.executable, "-m", "tests.operate.literature.killing", str(tmp_path), str(TRIALS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    said = [json.loads(line) for line in found.stdout.splitlines() if line.startswith("{")]
    assert len(said) == TRIALS
    for trial in said:
        assert trial["killed"], trial
        assert trial["resumed"] == 0, (trial, found.stderr)
        assert trial["differs"] == [], trial
        assert trial["left"] == [], trial


def test_ctrl_c_ends_with_a_sentence_and_the_same_command_goes_on(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    with pubmed_server.serving(tmp_path / "files") as served:
        served.add(*(Paper(pmid) for pmid in range(101, 501)))
        served.fail("efetch", "", "429:60")
        words = ["update", "library", "--query", "all", "--email", "me@clinic.org"]
        command = [sys.executable, "-m", "meditune", *words, "--eutils", f"{served.url}/entrez/eutils"]
        environment = os.environ | {
            "MEDITUNE_DATA": str(tmp_path),
            "MEDITUNE_OFFLINE": "1",
            "MEDITUNE_CACHE": str(tmp_path),
        }
        options = {"cwd": tmp_path, "env": environment, "text": True}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
        try:
            while len(served.asked_of("efetch")) < 2:
                assert process.poll() is None, process.communicate()
                time.sleep(0.05)
            time.sleep(0.2)
            second = subprocess.run(command, capture_output=True, check=False, **options)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
        finally:
            process.kill()
        assert second.returncode == 3
        assert "another process is updating this library" in second.stderr
        assert process.returncode == 130, err
        assert "run the same command again to resume" in err
        served.asked.clear()
        again = subprocess.run(command, capture_output=True, check=False, **options)
        assert "200 new" in again.stdout, again
        assert [each["retstart"] for each in served.asked_of("efetch")] == ["200"]
