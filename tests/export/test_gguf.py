"""GGUF files hold the model and its tokenizer as llama.cpp needs them, and prompts elsewhere are those of training.

llama.cpp itself tokenizes and runs what is compared. Ollama's prompts are written here from a Modelfile, by the part of
Go's text/template that our templates use.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from meditune.chat_template import Messages
from meditune.config.data_options import PromptFormat
from meditune.data.example import STYLE, Example, Turn
from meditune.engines.llamacpp_engine import LlamacppEngine
from meditune.engines.open_engine import open_engine
from meditune.errors import ModelError
from meditune.export import export, verify
from meditune.export.gguf import add_vocabulary, file_name, matrix_type, write_gguf
from meditune.export.prompt_templates import MODELFILE, check_prompts, write_chat_template
from meditune.progress import report_to
from meditune.prompts import Encoder, save_format
from tests import tiny
from tests.commands import meditune
from tests.export.test_export import finished

gguf = pytest.importorskip("gguf")
SPACE = "▁"
REPLACE = normalizers.Replace(" ", SPACE)


ACTION = re.compile(r"\{\{ (.*?) \}\}")
TEMPLATE = re.compile('^TEMPLATE """(.*?)"""$', re.DOTALL | re.MULTILINE)


def modelfile_prompt(folder: Path) -> Callable[[Messages], str]:
    """Return a function that writes the prompts of the Modelfile in a folder as Ollama does."""
    found = TEMPLATE.search((folder / MODELFILE).read_text())
    assert found is not None, "modelfile() writes a template"
    pieces = ACTION.split(found[1])
    return lambda messages: _executed(
        pieces,
        0,
        {"System": "\n\n".join(message["content"] for message in messages if message["role"] == "system")},
        messages,
    )[0]


def _executed(pieces: list[str], at: int, fields: dict[str, str], messages: Messages) -> tuple[str, int]:
    """Execute a template of Go's text/template up to the end of a block, and return its text and where it ended.

    `pieces` are texts and, at odd places, actions: fields, conditions on fields and roles, and a loop over messages.
    """
    text = ""
    while at < len(pieces):
        action = pieces[at] if at % 2 else ""
        if action == "end" or action.startswith("else"):
            break
        if not at % 2:
            text += pieces[at]
        elif action.startswith("."):
            text += fields[action[1:]]
        elif action == "range .Messages":
            begin = at + 1
            _, at = _executed(pieces, begin, {"Role": "", "Content": ""}, messages)
            for message in messages:
                inside = {"Role": message["role"], "Content": message["content"]}
                text += _executed(pieces, begin, inside, messages)[0]
        else:
            is_done = False
            while pieces[at] != "end":
                condition = pieces[at].removeprefix("else").strip()
                branch, at = _executed(pieces, at + 1, fields, messages)
                if not is_done and _holds(condition, fields):
                    text, is_done = text + branch, True
        at += 1
    return text, at


def _holds(condition: str, fields: dict[str, str]) -> bool:
    """Return whether a condition holds: "" (else), "if .System" or 'if eq .Role "user"'."""
    if not condition.startswith("if eq "):
        return not condition or bool(fields[condition.removeprefix("if .")])
    name, value = condition.removeprefix("if eq .").split(" ", 1)
    return f'"{fields[name]}"' == value


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """A check of few items; rounding changes random weights more than those that learnt something."""
    monkeypatch.setenv("MEDITUNE_DATA", "/nowhere")
    verify._print_once.cache_clear()
    values: dict[str, float] = {"COUNT": 3, "ANSWERS": 1, "WRITTEN_ITEMS": 1, "WRITTEN_TOKENS": 4}
    values |= {"AGREEMENT": 0.0, "MAX_PERPLEXITY_RISE": 100.0}
    for name, value in values.items():
        monkeypatch.setattr(verify, name, value)


def sentencepiece(normalizer=None, cutter=None):
    """A BPE of letters that spells other characters in bytes."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), SPACE, *"adehiprstu"]
    vocabulary = {token: number for number, token in enumerate([*tokens, "he", "the"])}
    model = models.BPE(vocabulary, [("h", "e"), ("t", "he")], unk_token="<unk>", byte_fallback=True)
    raw = Tokenizer(model)
    if normalizer:
        raw.normalizer = normalizer
    if cutter:
        raw.pre_tokenizer = cutter
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize(
    ("normalizer", "cutter", "begins"),
    [
        (normalizers.Sequence([normalizers.Prepend(SPACE), REPLACE]), None, True),
        (normalizers.Prepend(SPACE), None, True),
        (None, pre_tokenizers.Metaspace(prepend_scheme="first"), True),
        (None, pre_tokenizers.Sequence([pre_tokenizers.Metaspace(prepend_scheme="always")]), True),
        (None, pre_tokenizers.Metaspace(prepend_scheme="never"), False),
        # Gemma's
        (REPLACE, pre_tokenizers.Split(" ", "merged_with_previous"), False),
    ],
    ids=["llama", "prepend", "first", "always", "never", "gemma"],
)
def test_a_text_begins_with_a_space_where_the_tokenizer_puts_one(tmp_path, normalizer, cutter, begins):
    tiny.model("gemma3").save_pretrained(tmp_path)
    tokenizer = sentencepiece(normalizer, cutter)
    tokenizer.save_pretrained(tmp_path)
    assert (tokenizer.tokenize("the")[0][0] == SPACE) == begins
    assert vocabulary(tmp_path)["tokenizer.ggml.add_space_prefix"].contents() == begins


def vocabulary(folder):
    """Return the fields of a GGUF file with only the tokenizer of a model's folder."""
    writer = gguf.GGUFWriter(folder / "made.gguf", "gemma3")
    add_vocabulary(writer, folder)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return gguf.GGUFReader(folder / "made.gguf").fields


def test_added_tokens_without_an_embedding_are_left_out(tmp_path):
    tokenizer = sentencepiece(REPLACE)
    tiny.model("gemma3", vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image_soft_token>"]})
    tokenizer.save_pretrained(tmp_path)
    assert len(vocabulary(tmp_path)["tokenizer.ggml.tokens"].contents()) == len(tokenizer) - 1


LLAMA3 = {
    **{"rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0},
    **{"high_freq_factor": 4.0, "original_max_position_embeddings": 16},
}


def architecture(name):
    """A tiny model, whose weights are large enough that a wrong layout shows."""
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    if name == "qwen3":
        ids = {"bos_token_id": 0, "eos_token_id": 1}
        made = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=500, num_key_value_heads=2, head_dim=16, max_position_embeddings=1024, **shape, **ids
            )
        )
    else:
        made = tiny.model("llama", rope_parameters=LLAMA3) if name == "llama3" else tiny.model(name)
    if name == "mistral":
        made.config.sliding_window = None
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return made


@pytest.mark.parametrize("name", ["gpt2", "mistral", "qwen3", "llama3"])
def test_llamacpp_gives_a_text_the_same_likelihood(tmp_path, name):
    pytest.importorskip("xllamacpp")
    made = architecture(name)
    made.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    write_gguf(tmp_path, tmp_path)
    facts = {"kind": "gguf", "engine": "llamacpp", "weights": "Q8_0", "stop_tokens": [1], "context_tokens": 1024}
    (tmp_path / "export.json").write_text(json.dumps({**facts, "sha256": {file_name("Q8_0"): ""}, "made_from": {}}))
    # llama.cpp doesn't report the first two tokens of 血 and the first of ½.
    prompt, text = list(range(20, 60)), [*range(100, 110), *tiny.tokenizer()(" 血 (½)")["input_ids"]]
    with torch.no_grad():
        likely = made(torch.tensor([[*prompt, *text]])).logits[0].log_softmax(-1)
    wanted = [float(likely[len(prompt) - 1 + place, token]) for place, token in enumerate(text)]
    engine = LlamacppEngine(tmp_path)
    error = np.array([token.logprob for token in engine.score(prompt, [text])[0]]) - wanted
    engine.close()
    assert np.std(error) < 0.1 < 0.5 < np.std(wanted)


FORM = PromptFormat(question_cue="Q:", answer_cue="A:", plain_cue="In plain words:")


def chat(system: str | None = None) -> Example:
    turns = [
        *([Turn(role="system", text=system)] if system else []),
        *(Turn(role="user", text="What is asthma,\nand why?"), Turn(role="assistant", text="A disease.")),
    ]
    question = "Größe < 5 mm & 20 °C?"
    return Example(id="x", source="x", question=question, group="x", turns=tuple(turns), meta={STYLE: "plain"})


def messages_of(example):
    turns = [{"role": turn.role, "content": turn.text} for turn in example.turns]
    return [*turns, {"role": "user", "content": example.question}]


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A tuned model whose rows have whole blocks of 256 numbers."""
    folder = tmp_path_factory.mktemp("wide") / "model"
    tiny.model("llama", hidden_size=256, intermediate_size=512).save_pretrained(folder)
    tiny.tokenizer(bos=True).save_pretrained(folder)
    save_format(FORM, folder)
    return folder


def test_one_command_quantizes_and_writes_a_modelfile_with_the_prompts_of_training(wide):
    pytest.importorskip("xllamacpp")
    done = meditune("export", wide, "--to", "ollama", "--quantization", "q4_k_m", "--quantization", "Q8_0").ok()
    assert done.err.count("PubMedQA isn't on this machine") == 1
    assert re.search(
        r"^Q4_K_M, \d+ MB\. On 3 questions from .* sample: perplexity [\d.]+ -> [\d.]+", done.out, re.MULTILINE
    )
    assert done.out.count("The prompts of 3 chats have the same tokens as in training.") == 2
    fine, folder = wide / "export" / "ollama", wide / "export" / "ollama-Q4_K_M"
    assert f"ollama create NAME -f {folder / MODELFILE}" in done.out
    assert (folder / "model-Q4_K_M.gguf").stat().st_size < 0.75 * (fine / "model-Q8_0.gguf").stat().st_size

    said = (folder / MODELFILE).read_text()
    assert said.startswith("FROM ./model-Q4_K_M.gguf\n")
    assert re.findall(r'PARAMETER stop "(.*)"', said) == ["</s>"]
    # Ollama's own default penalises repetition.
    assert "PARAMETER repeat_penalty 1\n" in said
    engine = open_engine(str(folder))
    encoder, write = Encoder(engine.tokenizer, FORM), modelfile_prompt(folder)
    for example in (chat(), chat("Inhalers help."), chat().model_copy(update={"turns": ()})):
        assert engine.tokenize(write(messages_of(example))) == encoder.prompt_ids(example, "answer")
    with pytest.raises(ModelError, match="Ollama would get different tokens"):
        check_prompts(engine.tokenizer, PromptFormat(), write, engine.tokenize, "Ollama")
    engine.close()

    reader = gguf.GGUFReader(folder / "model-Q4_K_M.gguf")
    assert reader.fields["general.file_type"].contents() == 15
    assert "'\\nIn plain words:'" in reader.fields["tokenizer.chat_template"].contents()
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert [types[f"blk.{layer}.attn_v.weight"] for layer in (0, 1)] == ["Q4_K", "Q6_K"]
    assert (types["token_embd.weight"], types["output.weight"], types["blk.0.attn_q.weight"]) == (
        "Q4_K",
        "Q6_K",
        "Q4_K",
    )
    stored = next(tensor for tensor in reader.tensors if tensor.name == "token_embd.weight")
    original = (
        tiny.model("llama", hidden_size=256, intermediate_size=512).get_input_embeddings().weight.detach().numpy()
    )
    error = gguf.dequantize(stored.data, stored.tensor_type) - original
    assert 0.01 < np.std(error) / np.std(original) < 0.12


def test_a_run_is_checked_on_its_own_answers_and_a_refusal_says_what_to_try(tmp_path, monkeypatch):
    pytest.importorskip("xllamacpp")
    run = finished(tmp_path, answers="Half of them (½) got better with the drug.")
    monkeypatch.setattr(verify, "PERPLEXITY", 1.0)
    updates = []
    with report_to(updates.append):
        facts = export.export(str(run), "gguf")
    assert facts["drift"]["summary"].startswith("On 3 questions from the run's data: perplexity ")
    bars = {update.label: update.total for update in updates if update.label}
    checked = {f"Checking the {model}" for model in ("merged export", "original", "gguf export")}
    assert {"Quantizing to Q8_0", *checked} <= set(bars)
    assert all(bars.values())
    assert not [update for update in updates if "PubMedQA" in update.text]
    measured = (run / "export" / "original.json").stat().st_mtime_ns
    monkeypatch.setattr(verify, "PERPLEXITY", -0.9)
    refused = meditune("export", run, "--to", "gguf", "--quantization", "Q5_K_M")
    assert refused.code == 4
    assert "The Q5_K_M gguf export deviates from the original on the run's data: the perplexity of" in refused.err
    assert "Nothing was kept. Try finer weights: --quantization Q6_K or --quantization Q8_0" in refused.err
    assert (run / "export" / "original.json").stat().st_mtime_ns == measured, "the original isn't measured again"


def test_each_matrix_gets_the_type_that_llamacpp_chooses():
    def types(name, layers=32, columns=4096, quantization="Q4_K_M"):
        return [matrix_type(name.format(layer), columns, quantization, layers, False) for layer in range(layers)]

    # The first and the last eighth of the layers, and every third between, as in llama-quant.cpp.
    fine = [*range(4), 6, 9, 12, 15, 18, 21, 24, 27, *range(28, 32)]
    assert [layer for layer, kind in enumerate(types("blk.{}.ffn_down.weight")) if kind == "Q6_K"] == fine
    assert set(types("blk.{}.ffn_up.weight", quantization="Q5_K_M")) == {"Q5_K"}
    assert set(types("blk.{}.attn_v.weight", quantization="Q6_K")) == {"Q6_K"}
    # SmolLM2's 576 columns aren't whole blocks of 256.
    assert set(types("blk.{}.attn_q.weight", columns=576)) == {"Q5_0"}
    assert matrix_type("token_embd.weight", 2048, "Q5_K_M", 30, True) == "Q6_K"
    assert matrix_type("output.weight", 36, "Q8_0", 2, False) == "F16"


@pytest.mark.parametrize("scheme", ["first", "always"])
@pytest.mark.parametrize("quoted", [False, True])
def test_a_chat_template_writes_the_prompts_of_training(tmp_path, scheme, quoted):
    """The chat template for vLLM and the hub, with tokenizers that put a space before a text but not behind BOS."""
    tokenizer = sentencepiece(None, pre_tokenizers.Metaspace(prepend_scheme=scheme))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save_pretrained(tmp_path)
    form = FORM.model_copy(update={"quoted": quoted, "question_cue": "It's Q:"})
    write_chat_template(tmp_path, form)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    separated = "Inhalers help.".join("\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")
    for example in (chat(), chat("Inhalers help.\nOften."), chat(f"Yes.\r\n{separated}Often.")):
        text = loaded.apply_chat_template(messages_of(example), tokenize=False, add_generation_prompt=True)
        wanted = Encoder(loaded, form).prompt_ids(example, "answer")
        assert loaded(text, add_special_tokens=False)["input_ids"] == wanted
