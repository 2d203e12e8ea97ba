"""`meditune merge` from a run to a plain model."""

import json
import re
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from meditune.evidence.support_model import ClaimCorrection, load_correction
from meditune.export.merged import write_merged
from tests.commands import meditune
from tests.test_strategies import QUICK


@pytest.fixture(scope="module")
def tuned(place):
    """A finished run with LoRA."""
    place.run("lora", **QUICK).ok()
    return place.folder / "lora"


def test_a_run_becomes_a_model_that_anyone_can_load(place, tuned, capsys):
    folder = place.folder / "merged"
    result = meditune("merge", tuned, "--output", folder).ok()
    assert result.last == f"Model: {folder.resolve()}"
    assert "merged into" in result.out
    assert "in FP32; the result is stored in float32" in result.out
    files = {path.name for path in folder.iterdir()}
    assert files >= {"config.json", "model.safetensors", "tokenizer.json", "prompt.json", "README.md", "merged.json"}
    assert "adapter_config.json" not in files
    assert GenerationConfig.from_pretrained(folder).eos_token_id == 1
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "| accuracy |" in card
    lines = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].replace("96", "3")
    exec(lines.replace("FOLDER", str(folder)), {})
    assert "Conclusion:" in capsys.readouterr().out

    ids = AutoTokenizer.from_pretrained(folder)("Question: Does it help?", return_tensors="pt").input_ids
    base = AutoModelForCausalLM.from_pretrained(place.base)
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(base, tuned / "model").eval()(ids).logits
        ours = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    meditune("ask", folder, "Does it help?", "--max-new-tokens", 2).ok()


@pytest.mark.parametrize("base", ["lora", "lora/model", "merged-for-more"])
def test_a_merged_model_cant_be_measured_on_what_its_run_was_trained_on(place, tuned, base):
    meditune("merge", tuned, "--output", place.folder / "merged-for-more").ok()
    words = place.settings(**QUICK | {"data__sources__0__limit": None, "seed": 5, "model__base": place.folder / base})
    made = meditune("data", "prepare", "quickstart", "--output", place.folder / f"on-{base.replace('/', '-')}", *words)
    made.refused(3, "in the training data of")


def test_what_is_merged_already_is_left_as_it_is(place, tuned):
    folder = place.folder / "twice"
    first = meditune("merge", tuned / "model", "--output", folder)
    changed = (folder / "model.safetensors").stat().st_mtime_ns
    again = meditune("merge", tuned, "--output", folder)
    assert again == first
    assert (folder / "model.safetensors").stat().st_mtime_ns == changed
    # A run stores the correction of its judge after training, so it can be newer than the merged model.
    ClaimCorrection(threshold=0.6).save(tuned / "model")
    meditune("merge", tuned, "--output", folder).ok()
    (tuned / "model" / "claims.json").unlink()
    assert load_correction(folder) == ClaimCorrection(threshold=0.6)


def test_a_merged_model_can_be_tuned_again(place, tuned):
    folder = place.folder / "merged-for-tuning"
    meditune("merge", tuned, "--output", folder).ok()
    meditune("train", "quickstart", "-o", place.folder / "on", *place.settings(**QUICK, model__base=folder)).ok()


@pytest.mark.parametrize("kind", ["file", "notes", "run"])
def test_another_folder_is_not_overwritten(place, tuned, tmp_path, kind):
    folder = tmp_path / "there"
    if kind == "file":
        folder.write_text("mine", encoding="utf-8")
    elif kind == "notes":
        folder.mkdir()
        (folder / "notes.txt").write_text("mine", encoding="utf-8")
    else:
        folder = tuned
    before = sorted(folder.rglob("*"))
    result = meditune("merge", tuned, "--output", folder)
    result.refused(1, "already exists and contains something else", "--output")
    assert sorted(folder.rglob("*")) == before


def test_a_merge_that_fails_leaves_nothing(place, tuned, tmp_path, monkeypatch):

    from meditune.export import merged

    def breaks(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(merged, "write_model", breaks)
    meditune("merge", tuned, "--output", tmp_path / "full").refused(1, "disk is full")
    assert list(tmp_path.iterdir()) == []


def test_whole_models_and_apis_have_nothing_to_merge(place, tmp_path):
    words = place.settings(**QUICK | {"model__strategy": "full"})
    meditune("train", "quickstart", "--output", place.folder / "full", *words).ok()
    meditune("merge", place.folder / "full", "-o", tmp_path / "a").refused(4, "complete model", "nothing to merge")
    meditune("merge", "api:some", "-o", tmp_path / "b").refused(4, "behind an API")
    meditune("merge", "owner/name", "-o", tmp_path / "c").refused(4, "not a local folder with an adapter")
    assert list(tmp_path.iterdir()) == []


def test_virtual_tokens_are_refused(place, tmp_path):
    words = place.settings(**QUICK | {"model__strategy": "prompt"})
    meditune("train", "quickstart", "--output", place.folder / "virtual", *words).ok()
    meditune("merge", place.folder / "virtual", "-o", tmp_path / "a").refused(4, "virtual tokens")


def test_a_base_with_unused_sampling_values_is_tuned_merged_and_exported(place, tmp_path):
    base = shutil.copytree(place.base, tmp_path / "base")
    path = base / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"temperature": 0.6, "top_p": 0.9}))
    run, folder = tmp_path / "run", tmp_path / "merged"
    words = place.settings(**QUICK | {"model__base": base})
    meditune("train", "quickstart", "--output", run, *words).ok()
    meditune("merge", run, "--output", folder).ok()
    write_merged(str(base), tmp_path / "whole")
    for written in (run / "model", folder, tmp_path / "whole"):
        settings = GenerationConfig.from_pretrained(written)
        assert (settings.temperature, settings.top_p, settings.do_sample) == (None, None, None)
        settings.validate(strict=True)


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_an_adapter_trained_on_a_quantized_base_goes_into_the_full_one(place, tmp_path, quantize):
    pytest.importorskip("bitsandbytes")
    words = place.settings(**QUICK | {"model__quantize": quantize})
    run, folder = place.folder / quantize, tmp_path / "merged"
    meditune("train", "quickstart", "--output", run, *words).ok()
    result = meditune("merge", run, "--output", folder).ok()
    for text in (result.out, (folder / "README.md").read_text(encoding="utf-8")):
        assert f"trained and evaluated on the base in {quantize.upper()}" in text
        assert "not exactly the evaluated model" in text
    assert "quantization_config" not in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    base, merged = (load_file(each / "model.safetensors") for each in (place.base, folder))
    adapter = load_file(run / "model" / "adapter_model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    up, down = (adapter[f"base_model.model.{name}.lora_{part}.weight"].float() for part in "BA")
    exact = base[f"{name}.weight"] + 32 / 4 * (up @ down)
    torch.testing.assert_close(merged[f"{name}.weight"], exact, atol=1e-6, rtol=1e-5)
    assert torch.equal(base["model.norm.weight"], merged["model.norm.weight"])
