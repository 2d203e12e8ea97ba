"""`meditune prune`, and runs that prune before they tune."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from meditune.models.pruning import linears, sparsity
from tests import tiny
from tests.commands import bench, meditune, stopped_after
from tests.models.test_pruning import deep
from tests.test_strategies import QUICK

RUN = QUICK | {"evaluate__general_tokens": 200, "train__micro_batch_tokens": 512, "train__epochs": 1}
TEXTS = {
    "valid": " = Lungs = \n\n They breathe air in and out . \n",
    "test": " = Hearts = \n\n They beat day and night . \n",
}


@pytest.fixture(scope="module", params=("llama", "gpt2", "gemma3", "gpt_neox"))
def each_place(request, tmp_path_factory):
    with bench(tmp_path_factory.mktemp("prune"), request.param) as made:
        yield with_general_text(made)


@pytest.fixture(scope="module")
def place(place):
    """With a base of five layers."""
    deep("llama").save_pretrained(place.base)
    return with_general_text(place)


def with_general_text(made):
    general = made.folder.parent / "data" / "wikitext-2"
    general.mkdir()
    for name, text in TEXTS.items():
        (general / f"{name}.txt").write_text(text * 60, "utf-8")
    return made


def facts_in(folder):
    return json.loads((folder / "pruning.json").read_text(encoding="utf-8"))


def small(*words):
    changes = {"evaluate.general_tokens": 200, "train.micro_batch_tokens": 512}
    return [*words, *(word for key, value in changes.items() for word in ("--set", f"{key}={value}"))]


@pytest.mark.parametrize("method", ["magnitude", "wanda", "layers"])
def test_a_pruned_model_is_a_plain_folder_and_can_be_tuned(each_place, method):
    place, folder = each_place, each_place.folder / method
    how = ["--layers", 1] if method == "layers" else ["--method", method, "--sparsity", 0.4]
    result = meditune("prune", place.base, "--output", folder, *small(*how)).ok()
    assert result.last == f"Model: {folder.resolve()}"
    assert "perplexity, WikiText-2 test.txt" in result.out
    assert "tokens/s, forward" in result.out
    facts = facts_in(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    base = AutoModelForCausalLM.from_pretrained(place.base)
    if method == "layers":
        assert model.config.num_hidden_layers == 1
        assert facts["layers"] == {"before": 2, "after": 1}
        influence = facts["block_influence"]
        assert facts["removed_layers"] == [influence.index(min(influence))]
        assert facts["bytes"]["after"] < facts["bytes"]["before"]
        assert "dense matrix product" not in result.out
    else:
        assert sparsity(model) == pytest.approx(0.4, abs=0.02)
        assert facts["zeros_in_layers"] == {"before": 0.0, "after": sparsity(model)}
        assert facts["bytes"]["after"] == facts["bytes"]["before"]
        assert "a dense matrix product takes as long with zeros" in result.out
        for (name, old), new in zip(base.named_parameters(), model.parameters(), strict=True):
            assert torch.equal(old[new != 0], new[new != 0]), name
    (text,) = facts["perplexity"]["before"]
    assert facts["perplexity"]["before"][text] != facts["perplexity"]["after"][text]
    assert facts["tokens_per_s"]["after"] > 0
    assert (facts["calibration"] is None) == (method == "magnitude")
    ids = AutoTokenizer.from_pretrained(folder)("Does it help?", return_tensors="pt").input_ids
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    assert torch.equal(model.generate(ids, **options), model.generate(ids, use_cache=False, **options))

    if method != "layers":
        return
    words = place.settings(**RUN | {"model__base": folder})
    meditune("train", "quickstart", "--output", place.folder / f"{method}-tuned", *words).ok()
    meditune("ask", place.folder / f"{method}-tuned", "Does it help?", "--max-new-tokens", 2).ok()


def test_magnitude_and_wanda_differ_and_their_perplexity_is_measured(place):
    zeros, perplexity = {}, {}
    for method in ("magnitude", "wanda"):
        folder = place.folder / f"{method}-70"
        meditune("prune", place.base, "-o", folder, *small("--method", method, "--sparsity", 0.7)).ok()
        zeros[method] = load_file(folder / "model.safetensors")["model.layers.2.mlp.up_proj.weight"] == 0
        perplexity[method] = facts_in(folder)["perplexity"]["after"]
    assert float(zeros["magnitude"].float().mean()) == pytest.approx(float(zeros["wanda"].float().mean()), abs=0.02)
    assert 0.01 < (zeros["magnitude"] != zeros["wanda"]).float().mean() < 0.4
    assert perplexity["magnitude"] != perplexity["wanda"]


def test_with_a_recipe_its_own_data_are_taken(place):
    folder = place.folder / "own"
    words = place.settings(**RUN | {"evaluate__general_tokens": 0})
    meditune("prune", place.base, "-o", folder, "--method", "wanda", "--recipe", "quickstart", *words).ok()
    facts = facts_in(folder)
    assert facts["calibration"]["text"] == "training examples"
    assert list(facts["perplexity"]["after"]) == ["development answers"]
    assert not list(place.folder.glob(".*"))


def test_two_of_four_on_the_command_line(place):
    folder = place.folder / "two"
    meditune("prune", place.base, "-o", folder, *small("--method", "magnitude", "--pattern", "2-of-4")).ok()
    for layer in linears(AutoModelForCausalLM.from_pretrained(folder)).values():
        assert ((layer.weight == 0).view(-1, 4).sum(dim=1) == 2).all()


def test_the_stored_number_format_stays(place, tmp_path):
    for name in ("bfloat16", "float16"):
        base = tmp_path / name
        AutoModelForCausalLM.from_pretrained(place.base, dtype=getattr(torch, name)).save_pretrained(base)
        tiny.tokenizer().save_pretrained(base)
        meditune("prune", base, "-o", tmp_path / f"{name}-pruned", *small("--method", "wanda")).ok()
        before, after = (load_file(each / "model.safetensors") for each in (base, tmp_path / f"{name}-pruned"))
        for key, weight in after.items():
            assert weight.dtype == getattr(torch, name)
            assert torch.equal(before[key][weight != 0], weight[weight != 0])


def test_what_cannot_be_pruned_is_said(place, tmp_path):
    out = ["-o", tmp_path / "a"]
    meditune("prune", place.base, *out).refused(2, "--method magnitude")
    meditune("prune", place.base, *out, "--method", "bogus").refused(2, "model.prune.method")
    meditune("prune", place.base, *out, "--method", "wanda", "--sparsity", 1.5).refused(2, "model.prune.sparsity")
    meditune("prune", place.base, *out, "--method", "wanda", "--layers", 1).refused(2, "model.prune.layers")
    meditune("prune", place.base, *out, "--method", "layers").refused(2, "model.prune.layers")
    meditune("prune", place.base, *out, *small("--layers", 5)).refused(4, "at most 4")
    meditune("prune", "api:some", *out, "--layers", 1).refused(4, "behind an API")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "notes.txt").touch()
    meditune("prune", place.base, "-o", tmp_path, "--layers", 1).refused(1, "contains something else")
    words = place.settings(**RUN | {"model__base": "api:some", "model__prune__method": "wanda"})
    meditune("run", "quickstart", *out, *words).refused(4, "model.prune")


def test_a_model_that_would_not_load_as_it_was_is_refused(place, tmp_path):
    """GPT-2 with this option divides a layer's attention by its number, which its weights don't know."""
    base = tmp_path / "base"
    model = deep("gpt2")
    model.config.scale_attn_by_inverse_layer_idx = True
    model = type(model)(model.config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
        for projection in (model.transformer.h[0].attn.c_proj, model.transformer.h[0].mlp.c_proj):
            projection.weight.zero_()
            projection.bias.zero_()
    model.save_pretrained(base)
    tiny.tokenizer().save_pretrained(base)
    result = meditune("prune", base, "-o", tmp_path / "a", *small("--layers", 1))
    result.refused(4, "gives different outputs after it is saved and loaded again")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_without_any_text_it_is_said_what_to_do(place, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDITUNE_DATA", str(tmp_path))
    meditune("prune", place.base, "-o", tmp_path / "a", "--layers", 1).refused(3, "wikitext-2")


PRUNE = {
    "zeros": {"model__prune__method": "wanda", "model__prune__sparsity": 0.6},
    "layers": {"model__prune__method": "layers", "model__prune__layers": 2},
}


@pytest.mark.parametrize(("kind", "strategy"), [("zeros", "lora"), ("layers", "full")])
def test_a_run_prunes_before_it_tunes(place, kind, strategy):
    name = f"run-{kind}-{strategy}"
    folder, words = place.folder / name, place.settings(**RUN | PRUNE[kind] | {"model__strategy": strategy})
    result = meditune("run", "quickstart", "--output", folder, *words).ok()
    report, facts = place.report(name), facts_in(folder / "pruned")
    assert report["pruning"] == facts
    assert set(facts["perplexity"]["after"]) == {"development answers", "WikiText-2 test.txt"}
    assert "prune" in report["stages"]
    card = (folder / "model" / "README.md").read_text(encoding="utf-8")
    page = (folder / "report.html").read_text(encoding="utf-8")
    for text in (card, page):
        assert ("2 layers removed" if kind == "layers" else "60% zeros by wanda") in " ".join(text.split())
    assert ("Tuning fills the zeros" in result.err) == (kind == "zeros")
    if strategy == "full":
        layers = AutoModelForCausalLM.from_pretrained(folder / "model").config.num_hidden_layers
    else:
        config = json.loads((folder / "model" / "adapter_config.json").read_text(encoding="utf-8"))
        assert config["base_model_name_or_path"] == str((folder / "pruned").resolve())
        layers = AutoModelForCausalLM.from_pretrained(folder / "pruned").config.num_hidden_layers
    assert layers == (3 if kind == "layers" else 5)

    # The base of the report is the model before pruning.
    words = place.settings(**RUN)
    meditune("evaluate", place.base, "-o", place.folder / f"{name}-base", *words).ok()
    base = json.loads((place.folder / f"{name}-base" / "evaluation.json").read_text(encoding="utf-8"))["figures"]
    assert report["base"]["perplexity"] == base["perplexity"]
    meditune("report", folder).ok()


def test_a_run_that_was_stopped_takes_the_pruned_base_that_is_there(place):
    words = place.settings(**RUN | PRUNE["zeros"] | {"train__batch_size": 2, "train__checkpoint_steps": 3})
    whole, stopped = place.folder / "whole", place.folder / "stopped"
    meditune("run", "quickstart", "--output", whole, *words).ok()
    with stopped_after(5):
        assert meditune("run", "quickstart", "--output", stopped, *words).code == 130
    made = (stopped / "pruned" / "model.safetensors").stat().st_mtime_ns
    meditune("run", "quickstart", "--output", stopped, *words).ok()
    assert (stopped / "pruned" / "model.safetensors").stat().st_mtime_ns == made
    for path in [*whole.glob("model/*.safetensors"), *whole.glob("predictions/*.jsonl")]:
        assert path.read_bytes() == (stopped / path.relative_to(whole)).read_bytes(), path
    other = place.settings(**RUN | PRUNE["zeros"] | {"model__prune__sparsity": 0.5})
    meditune("run", "quickstart", "--output", stopped, *other).refused(1, "model.prune.sparsity is 0.6 there")


def test_a_run_that_was_moved_still_finds_its_pruned_base(place, tmp_path):
    words = place.settings(**RUN | PRUNE["layers"])
    meditune("train", "quickstart", "--output", tmp_path / "here", *words).ok()
    (tmp_path / "here").rename(tmp_path / "there")
    meditune("ask", tmp_path / "there", "Does it help?", "--max-new-tokens", 2).ok()
    meditune("merge", tmp_path / "there", "-o", tmp_path / "merged").ok()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").config.num_hidden_layers == 3


def test_merging_fills_the_zeros_and_says_so_unless_they_are_kept(place, tmp_path):
    words = place.settings(**RUN | PRUNE["zeros"])
    meditune("train", "quickstart", "--output", tmp_path / "run", *words).ok()
    plain = meditune("merge", tmp_path / "run", "-o", tmp_path / "plain")
    kept = meditune("merge", tmp_path / "run", "-o", tmp_path / "kept", "--keep-sparsity")
    assert plain.code == kept.code == 0
    assert "In linear layers, 59% of the base's weights are zero, but only 0% of the merged model's" in plain.out
    assert "--keep-sparsity" in plain.out
    assert "set to zero again" in kept.out
    assert "not exactly the evaluated model" in kept.out
    filled, sparse, base = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("plain", "kept", "run/pruned")
    )
    assert sparsity(filled) < 0.01
    assert sparsity(sparse) == sparsity(base)
    for name, layer in linears(sparse).items():
        full = linears(filled)[name].weight
        assert torch.equal(layer.weight, torch.where(linears(base)[name].weight == 0, 0, full))
    again = meditune("merge", tmp_path / "run", "-o", tmp_path / "plain", "--keep-sparsity")
    again.refused(1, "contains something else")


def test_a_pruned_base_can_be_quantized_for_tuning(place, tmp_path):
    pytest.importorskip("bitsandbytes")
    words = place.settings(**RUN | PRUNE["zeros"] | {"model__quantize": "nf4"})
    meditune("train", "quickstart", "--output", tmp_path / "run", *words).ok()
