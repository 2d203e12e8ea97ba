"""Every strategy makes the journey through the command line, learns, resumes, and gives a model anyone can load."""

import json
import re
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file

from meditune.config.training_options import ModelSpec
from meditune.errors import Stopped
from meditune.evaluate.weights_backend import generate_answers
from meditune.models.load import load
from meditune.models.torch_compile import compiler
from meditune.prompts import Encoded
from meditune.train import finetune
from meditune.train.model_card import TITLES
from tests.commands import meditune, read_rows, stopped_after

QUICK = {
    "data__sources__0__limit": 16,
    "evaluate__answers": 4,
    "evaluate__max_new_tokens": 4,
    "evaluate__resamples": 100,
    "model__virtual_tokens": 5,
    "model__top_layers": "null",
    "model__lora__r": 4,
}
"""Runs of a second or two."""
LENGTH = 5
"""Tokens that the model card's lines write here."""
RATES = {"full": 1e-2, "ia3": 5e-2, "prefix": 1e-1, "prompt": 1e-1}
JOURNEYS = [
    *(pytest.param({"model__strategy": strategy}, id=strategy) for strategy in TITLES),
    pytest.param({"model__strategy": "full", "model__top_layers": 1}, id="top layer"),
    pytest.param({"model__strategy": "ia3", "model__top_layers": 1}, id="ia3 in the top layer"),
    pytest.param({"model__strategy": "lora", "model__quantize": "nf4"}, id="nf4"),
    pytest.param({"model__strategy": "ia3", "model__quantize": "int8"}, id="int8"),
]


def settings(place, changes):
    rate = RATES.get(changes["model__strategy"], 1e-2)
    return place.settings(**QUICK | {"train__learning_rate": rate} | changes)


def quantized(changes):
    if "model__quantize" in changes:
        pytest.importorskip("bitsandbytes")


@pytest.mark.parametrize("changes", JOURNEYS)
def test_the_journey(place, changes, request, capsys):
    quantized(changes)
    name, strategy = request.node.callspec.id, changes["model__strategy"]
    folder, words = place.folder / name, settings(place, changes)
    result = meditune("run", "quickstart", "--output", folder, *words).ok()
    losses = [step["loss"] for step in read_rows(folder / "training.jsonl")]
    half = len(losses) // 2
    assert sum(losses[-half:]) < sum(losses[:half])

    report = place.report(name)
    assert report["strategy"] == strategy
    assert report["quantize"] == changes.get("model__quantize", "none")
    training, page = report["training"], (folder / "report.html").read_text(encoding="utf-8")
    assert 0 < training["trainable_parameters"] <= training["parameters"]
    assert (training["trainable_parameters"] == training["parameters"]) == (name == "full")
    assert f"tuned with {strategy}" in page
    assert f"{training['trainable_parameters']:,} of {training['parameters']:,} parameters are trained" in result.err
    card = (folder / "model" / "README.md").read_text(encoding="utf-8")
    assert f"{TITLES[strategy]}" in card
    assert f"{training['trainable_parameters']:,} of {training['parameters']:,} parameters" in card

    # What was measured at the end of training is what the saved model says.
    meditune("evaluate", folder, "--recipe", folder / "recipe.yaml", "--output", place.folder / f"{name}-again").ok()
    for kind in ("decision", "likelihood", "answer"):
        measured = read_rows(folder / "predictions" / f"tuned-{kind}.jsonl")
        assert read_rows(place.folder / f"{name}-again" / "predictions" / f"model-{kind}.jsonl") == measured
        assert kind == "answer" or measured != read_rows(folder / "predictions" / f"base-{kind}.jsonl")
    meditune("ask", folder, "Does it help?", "--max-new-tokens", 2).ok()

    anyone = loaded_in_five_lines(card, folder)
    ours = load(str(folder), ModelSpec(dtype="float32"))
    with torch.no_grad():
        theirs = anyone["model"].float()(**anyone["prompt"]).logits[0, -1].log_softmax(-1)
        said = ours.model(**anyone["prompt"]).logits[0, -1].log_softmax(-1)
    torch.testing.assert_close(theirs, said, atol=5e-2, rtol=0)
    ids = anyone["prompt"].input_ids[0].tolist()
    written = generate_answers(ours, [Encoded("asked", "answer", ids)], LENGTH, "")["asked"]
    printed = capsys.readouterr().out
    assert "Conclusion:" in printed
    if strategy != "full":  # in the BF16 it is stored in, another word may come first
        assert printed.partition("Conclusion:")[2].strip() == written


def loaded_in_five_lines(card, folder):
    lines = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].replace("96", str(LENGTH))
    names = {}
    exec(lines.replace("FOLDER", str(folder / "model")), names)
    return names


@pytest.mark.parametrize(
    "changes",
    [
        {"model__strategy": "full"},
        {"model__strategy": "ia3"},
        {"model__strategy": "prefix"},
        {"model__strategy": "lora", "model__quantize": "nf4"},
        # Compiling one layer with one adapted matrix takes half the time of compiling both whole layers.
        {
            **{"model__strategy": "lora", "train__compile": "on", "model__dtype": "float32"},
            **{"model__top_layers": 1, "model__lora__targets": "[q_proj]"},
        },
    ],
    ids=["full", "ia3", "prefix", "nf4", "compiled"],
)
def test_a_run_that_was_stopped_ends_as_one_that_was_not(place, changes, request):
    quantized(changes)
    if "train__compile" in changes and compiler() is None:
        pytest.skip("no C++ compiler")
    words = settings(place, changes | {"train__batch_size": 2, "train__checkpoint_steps": 3})
    whole, stopped = (place.folder / f"{request.node.callspec.id}-{kind}" for kind in ("whole", "stopped"))
    meditune("train", "quickstart", "--output", whole, *words).ok()
    with stopped_after(5):
        assert meditune("train", "quickstart", "--output", stopped, *words).code == 130
    resumed = meditune("train", "quickstart", "--output", stopped, *words).ok()
    assert "after step 3" in resumed.err
    made = [*whole.glob("model/*.safetensors")]
    assert made
    for path in made:
        assert path.read_bytes() == (stopped / path.relative_to(whole)).read_bytes(), path
    logs = [read_rows(folder / "training.jsonl") for folder in (whole, stopped)]
    assert [row["loss"] for row in logs[0]] == [row["loss"] for row in logs[1]]


def test_frozen_weights_stay_bit_for_bit(place):
    changes = {"model__strategy": "full", "model__top_layers": 1, "model__dtype": "float32"}
    folder = place.folder / "frozen"
    meditune("train", "quickstart", "--output", folder, *settings(place, changes)).ok()
    before, after = load_file(place.base / "model.safetensors"), load_file(folder / "model" / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    assert changed == {name for name in before if name.startswith("model.layers.1.")} | {"model.norm.weight"}
    assert not (folder / "model" / "adapter_config.json").exists()


@pytest.mark.parametrize("strategy", ["full", "lora"])
def test_a_tuned_model_can_be_tuned_again(place, strategy):
    """An adapter is merged first, or what comes next would be saved as if it belonged on the adapter's base model."""
    folder, second = place.folder / f"{strategy}-first", place.folder / f"{strategy}-second"
    words = settings(place, {"model__strategy": strategy})
    meditune("train", "quickstart", "--output", folder, *words).ok()
    words = settings(place, {"model__strategy": "lora", "model__base": folder})
    meditune("train", "quickstart", "--output", second, *words).ok()
    config = json.loads((second / "model" / "adapter_config.json").read_text(encoding="utf-8"))
    start = folder / "model" if strategy == "full" else second / "start"
    assert config["base_model_name_or_path"] == str(start.resolve())


def test_another_base_doesnt_start_from_the_adapter_of_an_interrupted_call(place, monkeypatch):
    first, folder = place.folder / "adapter", place.folder / "another-base"
    plain = settings(place, {"model__strategy": "lora", "train__checkpoint_steps": 1})
    meditune("train", "quickstart", "--output", first, *plain).ok()
    with monkeypatch.context() as patch:
        patch.setattr(finetune, "fine_tune", Mock(side_effect=Stopped))
        result = meditune("train", "quickstart", "--output", folder, *plain, "--set", f"model.base={first}")
    assert result.code == 130
    assert (folder / "start").is_dir()
    with stopped_after(2):
        assert meditune("train", "quickstart", "--output", folder, *plain).code == 130
    meditune("train", "quickstart", "--output", folder, *plain).ok()
    assert place.adapter("another-base") == place.adapter("adapter")
    assert "start" not in json.loads((folder / "model" / "training.json").read_text(encoding="utf-8"))


def test_a_quantized_run_is_asked_as_it_was_trained(place):
    pytest.importorskip("bitsandbytes")
    folder = place.folder / "asked"
    words = settings(place, {"model__strategy": "lora", "model__quantize": "nf4"})
    meditune("train", "quickstart", "--output", folder, *words).ok()
    kinds = {type(module).__name__ for module in load(str(folder)).model.modules()}
    assert "Linear4bit" in kinds
    kinds = {type(module).__name__ for module in load(str(folder), ModelSpec()).model.modules()}
    assert "Linear4bit" not in kinds
