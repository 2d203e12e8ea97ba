"""The benchmark for GPUs runs on a CPU with tiny models, so that it works where a GPU is first available."""

import json
import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import gpu


def test_a_rehearsal_measures_every_job_without_an_error(tmp_path, capsys):
    pytest.importorskip("bitsandbytes")
    gpu.main(["--rehearse", "--engines", "meditune", "transformers", "--json", str(tmp_path / "gpu.json")])
    found = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert not [run for run in found["runs"] if "error" in run or "left_out" in run]
    own = [run for run in found["runs"] if run["engine"] == "meditune"]
    assert [(run["job"], run.get("quantize")) for run in own[:2]] == [("training", "none"), ("training", "nf4")]
    assert {run["job"] for run in own} == set(gpu.JOBS)
    assert all(0 < run["mfu"] < 1 for run in own[:2])
    scores, losses = (run["largest_difference"] for run in own[-2:])
    assert scores < 1e-3
    assert losses < 0.01
    assert any("likelihoods, speed beside transformers" in line["what"] for line in found["ratios"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["versions"]["torch"]


def test_an_engine_that_is_missing_or_late_is_left_out():
    bench = gpu.Bench(gpu.TINY, ["vllm"], end=math.inf, matrix_tflops=1.0)
    with bench.run("answers", "vllm") as found:
        assert found is not None
        raise ImportError("No module named 'vllm'", name="vllm")
    with bench.run("answers", "meditune") as found:
        assert found is None
    bench.end = 0.0
    with bench.run("answers", "vllm") as found:
        assert found is None
    assert [run["left_out"] for run in bench.runs] == ["vllm isn't installed", "no time"]
