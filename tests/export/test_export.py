"""`meditune export` as a user meets it: what it leaves, when it leaves nothing, and what is sent to a hub."""

import hashlib
import json
import random
from statistics import fmean

import pytest
import torch
import yaml
from transformers import AutoTokenizer

from meditune.config.data_options import DataSpec, PromptFormat, SourceSpec
from meditune.config.recipe import Recipe
from meditune.data.example import DECISIONS, Example
from meditune.data.leakage import FILE_NAME, PARTS, SENTENCES
from meditune.data.prepare import prepare, stored_data
from meditune.engines.open_engine import open_engine
from meditune.engines.openvino_engine import Scorer
from meditune.errors import ModelError
from meditune.evidence.support_model import ClaimCorrection, is_judge, load_correction
from meditune.export import export, openvino_onnx, verify
from meditune.export.prompt_templates import ollama_template
from meditune.export.verify import Deviation
from meditune.models.load import load
from meditune.prompts import save_format
from tests import tiny
from tests.commands import jsonl, meditune, rows
from tests.data.test_hub_upload import TOKEN, hub


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """A check of few items; the synthetic sample stands in for PubMedQA."""
    monkeypatch.setenv("MEDITUNE_DATA", "/nowhere")
    monkeypatch.setattr(verify, "COUNT", 6)
    monkeypatch.setattr(verify, "ANSWERS", 2)
    monkeypatch.setattr(verify, "WRITTEN_ITEMS", 2)


def test_a_merged_export_says_what_it_is_and_is_made_once(tmp_path):
    folder = tiny.save(tmp_path / "model")
    facts = export.export(str(folder), "merged")
    place = folder / "export" / "merged"
    stored = json.loads((place / "export.json").read_text())
    assert stored == json.loads(json.dumps(facts))
    assert (stored["engine"], stored["weights"], stored["stop_tokens"]) == ("transformers", "bfloat16", [1])
    assert {"model.safetensors", "tokenizer.json", "prompt.json"} <= set(stored["sha256"])
    assert stored["drift"]["agreement"] >= 0.9
    assert "perplexity" in (place / "README.md").read_text()
    weights, settings = ((place / name).stat().st_mode for name in ("model.safetensors", "config.json"))
    assert weights == settings, "the weights can be read by everyone who can read the other files"
    before = (place / "export.json").stat().st_mtime_ns
    export.export(str(folder), "merged")
    assert (place / "export.json").stat().st_mtime_ns == before


def test_an_export_with_missing_or_damaged_files_is_made_again(tmp_path):
    folder = tiny.save(tmp_path / "model")
    facts = export.export(str(folder), "merged")
    place = folder / "export" / "merged"
    (place / "tokenizer.json").unlink()
    assert export.export(str(folder), "merged")["sha256"] == facts["sha256"]
    assert (place / "tokenizer.json").is_file()
    whole = (place / "model.safetensors").read_bytes()
    (place / "model.safetensors").write_bytes(whole[:1000])
    export.export(str(folder), "merged")
    assert (place / "model.safetensors").read_bytes() == whole


def test_an_export_made_before_a_judge_was_corrected_is_made_again_with_the_correction(tmp_path):
    folder = tiny.save(tmp_path / "model")
    export.export(str(folder), "merged")
    assert not is_judge(str(folder / "export" / "merged"))
    for threshold in (0.6, 0.7):
        ClaimCorrection(threshold=threshold).save(folder)
        export.export(str(folder), "merged")
        assert load_correction(folder / "export" / "merged").threshold == threshold


def test_the_original_is_asked_again_where_its_prompts_have_changed(tmp_path):
    folder = tiny.save(tmp_path / "model")
    said = []
    for cue in ("Answer:", "What the doctors of this house would say, in short:"):
        save_format(PromptFormat(answer_cue=cue, decision_cue=cue), folder)
        export.export(str(folder), "merged", tmp_path / str(len(said)))
        said.append(json.loads((folder / "export" / "original.json").read_text())["output"])
    assert said[0] != said[1]


def test_a_model_of_two_styles_is_checked_in_both(tmp_path):
    folder = tiny.save(tmp_path / "model")
    save_format(PromptFormat(plain_cue="Told plainly:"), folder)
    export.export(str(folder), "merged")
    prompts = json.loads((folder / "export" / "original.json").read_text())["output"]["prompts"]
    tokenizer = load(str(folder)).tokenizer
    cues = [tokenizer.decode(prompt).splitlines()[-1].strip() for prompt in prompts]
    assert cues == ["Conclusion:", "Told plainly:"]


def test_a_model_that_drifts_is_not_kept(tmp_path, monkeypatch):
    folder = tiny.save(tmp_path / "model")
    monkeypatch.setattr(verify, "PERPLEXITY", -0.5)
    with pytest.raises(ModelError, match="perplexity of reference answers rose"):
        export.export(str(folder), "merged")
    assert [path.name for path in (folder / "export").iterdir()] == ["original.json"]


def test_a_model_of_conversations_is_checked_on_its_own_held_out_replies(tmp_path):
    talks = [
        [("system", "Be brief."), ("user", f"Is {number} a lot?"), ("assistant", f"Not for {number} adults.")]
        for number in range(40)
    ]
    messages = [{"messages": [{"role": role, "content": text} for role, text in talk]} for talk in talks]
    source = SourceSpec(name="own", path=str(jsonl(tmp_path / "talks.jsonl", messages)))
    run = tmp_path / "run"
    splits = prepare(Recipe(name="test", data=DataSpec(sources=[source], split="group")), run / "data").splits
    (run / "recipe.yaml").write_text("model:\n  base: smollm2-135m\n")
    tokenizer = tiny.chat_tokenizer()
    tiny.model("llama", vocab_size=len(tokenizer)).save_pretrained(run / "model")
    tokenizer.save_pretrained(run / "model")
    save_format(PromptFormat(format="chat"), run / "model")
    done = meditune("export", run, "--to", "merged").ok()
    assert "On 2 questions from the run's data: perplexity" in done.out
    assert "decisions" not in done.out
    assert "PubMedQA" not in done.err
    request = json.loads((run / "export" / "original.json").read_text())["request"]
    held_out = {example.id for example in (*splits.dev, *splits.test)}
    assert {name for name, _ in request["items"]} <= held_out
    assert (verify.COUNT, len(request["items"])) == (6, 6)


def test_decisions_are_compared_if_the_run_was_trained_on_them(tmp_path, monkeypatch):
    run = finished(tmp_path)
    monkeypatch.setattr(verify, "AGREEMENT", 1.1)
    refused = meditune("export", run, "--to", "merged")
    assert refused.code == 4
    assert "only 100% of the decisions are the same (at least 110% required)" in refused.err
    (run / "recipe.yaml").write_text("model:\n  base: smollm2-135m\ntrain:\n  tasks: [answer]\n")
    meditune("export", run, "--to", "merged").ok()


def test_calibration_reads_all_tasks_of_training_rows_that_no_check_uses(tmp_path):
    run = finished(tmp_path)
    splits = stored_data(run / "data").splits
    tokenizer = load(str(run / "model")).tokenizer
    texts = [tokenizer.decode(row) for row in verify.calibration_rows(run, PromptFormat(), tokenizer)]
    assert len(texts) == min(verify.CALIBRATION_ROWS, 2 * len(splits.train))
    assert {any(text.endswith(f" {word}</s>") for text in texts) for word in DECISIONS} == {True}
    assert any(example.answer[-30:] in text for example in splits.train for text in texts)
    held_out = [example.question for example in (*splits.dev, *splits.test)]
    assert not [question for question in held_out if any(question in text for text in texts)]


def test_calibrated_4_bit_weights_are_closer_to_a_model_with_a_few_strong_channels(tmp_path):
    pytest.importorskip("nncf")
    strong = tiny.model("llama", hidden_size=128, intermediate_size=256)
    with torch.no_grad():
        for layer in strong.model.layers:
            layer.input_layernorm.weight[::16] = 30
            layer.post_attention_layernorm.weight[::16] = 30
    strong.save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    chance = random.Random(1)
    rows, texts = ([[chance.randrange(2, 490) for _ in range(40)] for _ in range(count)] for count in (16, 4))
    with torch.no_grad():
        exact = strong(torch.tensor(texts)).logits.log_softmax(-1)
    error = []
    for number, given in enumerate(((), rows)):
        folder = tmp_path / str(number)
        folder.mkdir()
        openvino_onnx.write_openvino(tmp_path / "model", folder, "int4", given)
        scorer = Scorer(folder)
        pairs = [
            (found.logprob, exact[row, place, text[place + 1]].item())
            for row, text in enumerate(texts)
            for place, found in enumerate(scorer.score(text[:1], [text[1:]])[0])
        ]
        error.append(fmean(abs(one - other) for one, other in pairs))
    assert error[1] < 0.8 * error[0]


def test_an_unknown_form_gets_the_known_ones(tmp_path):
    with pytest.raises(ModelError, match="Formats: merged"):
        export.export(str(tmp_path), "pdf")


def test_tolerances():
    fine = {"items": 50, "perplexity": (10.0, 10.1), "accuracy": (70.0, 66.0), "changed": (2, 0), "agreement": 0.96}
    assert Deviation(**fine, written=(2.0, 2.1)).problems() == []
    assert "turned wrong" in Deviation(**fine | {"changed": (6, 0)}, written=(2.0, 2.1)).problems()[0]
    assert "of the decisions are the same" in Deviation(**fine | {"agreement": 0.8}, written=(2.0, 2.1)).problems()[0]
    assert "the exported model's answers have" in Deviation(**fine, written=(2.0, 9.0)).problems()[0]
    assert Deviation(**fine | {"perplexity": (10.0, float("nan"))}, written=(2.0, 2.1)).problems()
    assert Deviation(**fine | {"perplexity": (10.0, 10.5)}, written=(2.0, 2.1)).problems(looseness=3) == []
    noisy = Deviation(**fine | {"perplexity": (10.0, 10.5), "least_rise": 0.01}, written=(2.0, 2.1))
    assert noisy.problems() == [], "chance explains the rise of 5%"
    assert Deviation(**fine | {"perplexity": (10.0, 10.5), "least_rise": 0.03}, written=(2.0, 2.1)).problems()
    assert Deviation(**fine | {"changed": (5, 1)}, written=(2.0, 2.1)).problems() == [], "chance explains it (p 0.11)"


@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_an_export_without_probabilities_is_reported(value):
    before, after = [-1.0, -2.0, -1.5], [-1.0, value, -1.5]
    rise = verify._least_rise(before, after)
    assert rise is None
    perplexity = (verify._exp(before), verify._exp(after))
    found = Deviation(3, perplexity, None, None, None, (2.0, 2.0), least_rise=rise).problems()
    assert "perplexity of reference answers" in found[0]


def test_a_check_whose_questions_all_exceed_the_prompt_is_refused(tmp_path):
    form = PromptFormat(max_tokens=64, answer_tokens=16)
    example = Example(id="a:1", source="a", question="word " * 500, answer="No.", group="1")
    check = verify.Check([example], [], form, verify.OWN_DATA)
    engine = open_engine(str(tiny.save(tmp_path / "model")))
    with pytest.raises(ModelError, match="none of 1 questions from the run's data"):
        check.outputs(engine, "Checking")
    engine.close()


def test_a_format_in_ollamas_own_syntax_cant_be_written():
    with pytest.raises(ModelError, match="special meaning in a Modelfile"):
        ollama_template(tiny.tokenizer(), PromptFormat(question_cue="{{ x }}"))


def test_a_vllm_export_asks_the_model_as_in_training(tmp_path):
    folder = tiny.save(tmp_path / "model")
    settings = folder / "generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"do_sample": True, "temperature": 0.7}))
    save_format(PromptFormat(), folder)
    done = meditune("export", folder, "--to", "vllm").ok()
    place = folder / "export" / "vllm"
    assert f"vllm serve {place} --dtype bfloat16 --max-model-len 1024" in done.out
    assert "The prompts of 3 chats have the same tokens" in done.out
    assert "temperature" not in json.loads((place / "generation_config.json").read_text())
    messages = [{"role": "user", "content": "Does it help?"}]
    tokenizer = AutoTokenizer.from_pretrained(place)
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "Question: Does it help?\nConclusion:"


def test_what_cant_be_exported_is_said_before_anything_is_made(tmp_path):
    folder = tiny.save(tmp_path / "model", "phi")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("")
    for words, message in (
        ((folder, "--to", "gguf", "--quantization", "Q4_K_S"), "Unknown quantization 'Q4_K_S'. Did you mean Q4_K_M?"),
        (
            (folder, "--to", "vllm", "--quantization", "Q4_K_M"),
            "--quantization Q4_K_M: exports to vllm have bfloat16 weights.",
        ),
        (
            (folder, "--to", "gguf"),
            "GGUF export supports llama, mistral, gemma3_text, qwen2, qwen3, gpt2 models, not phi",
        ),
        ((tmp_path / "run", "--to", "ollama"), "It is a run whose training hasn't finished."),
    ):
        refused = meditune("export", *words)
        assert (refused.code, message in refused.err) == (4, True), refused.err
    assert not (folder / "export").exists()


def test_a_chat_model_without_a_template_has_no_prompts_to_export(tmp_path):
    folder = tiny.save(tmp_path / "model")
    save_format(PromptFormat(format="chat"), folder)
    for to in ("ollama", "vllm"):
        assert "the model's tokenizer has no chat template" in meditune("export", folder, "--to", to).err
        assert not (folder / "export" / to).exists()


@pytest.fixture
def there(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    with hub(large=(".safetensors",)) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running


@pytest.fixture
def run(tmp_path, monkeypatch):
    """What a finished run leaves: data, recipe and a model."""
    monkeypatch.setenv("MEDITUNE_DATA", "/nowhere")
    for module, name, value in ((verify, "COUNT", 6), (verify, "ANSWERS", 2), (verify, "WRITTEN_ITEMS", 2)):
        monkeypatch.setattr(module, name, value)
    return finished(tmp_path)


def finished(place, answers="The drug helped.", **terms):
    place.mkdir(exist_ok=True)
    names = {"id": lambda number: f"own-{number}", "question": lambda number: f"Does {number} help?"}
    path = jsonl(place / "own.jsonl", rows(40, answer=lambda number: f"{answers} {number}", **names))
    source = SourceSpec(name="own", path=str(path), **terms)
    prepare(Recipe(name="test", data=DataSpec(sources=[source], split="group")), place / "run" / "data")
    (place / "run" / "recipe.yaml").write_text("model:\n  base: smollm2-135m\n")
    tiny.save(place / "run" / "model")
    save_format(PromptFormat(), place / "run" / "model")
    report = {"data": {"test_set": "own (test)"}, "base": {"accuracy": 0.5}, "tuned": {"accuracy": 0.7}}
    report["comparison"] = {"accuracy": {"ci95": [0.1, 0.3]}}
    (place / "run" / "report.json").write_text(json.dumps(report))
    (place / "run" / "model" / FILE_NAME).write_text(
        json.dumps({"version": 1, "examples": 5, "unlisted": 0} | {key: [] for key in (*PARTS, SENTENCES)})
    )
    return place / "run"


def send(run, *words):
    return meditune("export", run, "--to", "hub", "--repo", "clinic/answers", *words)


def test_the_merged_model_arrives_after_a_yes_and_names_no_place_here(run, there):
    asked = send(run)
    assert asked.code == 1
    assert f"To be sent to {there.url}/clinic/answers, where only you and your organization" in asked.err
    assert "smollm2-135m (Apache-2.0)" in asked.err
    assert "To agree, add --yes." in asked.err
    assert not any(request.startswith("POST") for request in there.requests)

    send(run, "--yes").ok()
    assert there.created[0]["visibility"] == "private"
    merged = run / "export" / "merged"
    assert set(there.files) == {"chat_template.jinja", *(path.name for path in merged.iterdir())}
    assert there.files["model.safetensors"] == (merged / "model.safetensors").read_bytes()
    assert not [name for name, data in there.files.items() if str(run.parent).encode() in data]
    card = there.files["README.md"].decode()
    front = yaml.safe_load(card.split("---")[1])
    assert (front["license"], front["base_model"]) == ("apache-2.0", "HuggingFaceTB/SmolLM2-135M-Instruct")
    assert "**Limits.**" in card
    assert "## Measured on own (test)" in card
    assert "| accuracy | 0.500 | 0.700 | +0.100 to +0.300 |" in card
    assert b"'Question: '" in there.files["chat_template.jinja"]
    assert json.loads(there.files["export.json"])["made_from"]["model"] == "smollm2-135m"


def test_the_base_model_s_folder_is_not_named_and_the_sums_are_those_of_the_sent_files(run, there):
    (run / "recipe.yaml").write_text(f"model:\n  base: {run.parent / 'base'}\n")
    (run / "model" / "chat_template.jinja").write_text("{{ messages }}")
    send(run, "--yes").ok()
    assert not [name for name, data in there.files.items() if str(run.parent).encode() in data]
    facts = json.loads(there.files["export.json"])
    assert facts["made_from"]["model"] == "base"
    for name, digest in facts["sha256"].items():
        assert hashlib.sha256(there.files[name]).hexdigest() == digest, name


def test_a_model_of_restricted_data_stays_here(tmp_path, run, there):
    refused = send(finished(tmp_path / "other", restricted=True), "--yes")
    assert refused.code == 3
    assert "is restricted" in refused.err
    path = run / "model" / FILE_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {"unlisted": 7}))
    refused = send(run, "--yes")
    assert refused.code == 3
    assert "trained on 7 restricted examples" in refused.err
    assert there.requests == []


def test_what_is_missing_or_has_no_effect_is_said_before_anything_is_made(run, there):
    assert "--repo OWNER/NAME" in meditune("export", run, "--to", "hub").err
    assert "--quantization has no effect" in send(run, "--yes", "--quantization", "int4").err
    for words in (["--repo", "clinic/answers"], ["--public"], ["--yes"]):
        assert "need --to hub" in meditune("export", run, "--to", "gguf", *words).err
    refused = send(run / "model", "--yes")
    assert "isn't a run with its data" in refused.err
    assert not (run / "export").exists()
    assert there.requests == []


def test_an_export_of_a_model_that_was_moved_stays(tmp_path):
    first = tiny.save(tmp_path / "model")
    save_format(PromptFormat(), first)
    export.export(str(first), "merged")
    folder = first.rename(tmp_path / "moved")
    path = folder / "export" / "merged" / "export.json"
    facts, before = json.loads(path.read_text()), path.stat().st_mtime_ns
    assert export.export(str(folder), "merged") == facts
    assert path.stat().st_mtime_ns == before


def test_only_the_models_own_outdated_export_is_replaced(tmp_path):
    folder = tiny.save(tmp_path / "model")
    elsewhere = tmp_path / "elsewhere"
    before = [export.export(str(folder), "merged", output) for output in (None, elsewhere)]
    tuned = tiny.model("llama")
    tuned.get_input_embeddings().weight.data += 0.1
    tuned.save_pretrained(folder)
    facts = export.export(str(folder), "merged")
    assert facts["sha256"] != before[0]["sha256"]
    assert json.loads((folder / "export" / "merged" / "export.json").read_text())["sha256"] == facts["sha256"]
    refused = meditune("export", folder, "--to", "merged", "--output", elsewhere)
    refused.refused(1, "already exists and contains something else", "--output")
    save_format(PromptFormat(answer_cue="Say:"), folder)
    assert export.export(str(folder), "merged")["made_from"]["prompt"]["answer_cue"] == "Say:"
