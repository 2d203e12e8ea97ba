"""A sentencepiece tokenizer in a GGUF file begins texts with a space where the original does, and only there.

A Modelfile asks the model as it was tuned: the same text, and by llama.cpp, which Ollama runs, the same tokens.
"""

import re

import httpx2
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from meditune.config.data_options import PromptFormat
from meditune.data.example import Example
from meditune.engines.exported_model import stop_tokens
from meditune.engines.llamacpp_engine import server
from meditune.engines.tokenizer import PlainTokenizer
from meditune.export.gguf import NAME, add_vocabulary, write_ollama
from meditune.prompts import Encoder, save_format
from tests import tiny

gguf = pytest.importorskip("gguf")
SPACE = "▁"
REPLACE = normalizers.Replace(" ", SPACE)


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
    writer = gguf.GGUFWriter(tmp_path / "made.gguf", "gemma3")
    add_vocabulary(writer, tmp_path)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    field = gguf.GGUFReader(tmp_path / "made.gguf").fields["tokenizer.ggml.add_space_prefix"]
    assert field.contents() == begins


QUESTIONS = ["Does it help?", "What is asthma,\nand why?", "Größe < 5 mm & 20 °C?"]


def rendered(template: str, question: str) -> str:
    """What Ollama makes of a template without conditions (Go's text/template: a field is put in as it is)."""
    assert template.count("{{") == 1
    return template.replace("{{ .Prompt }}", question)


@pytest.mark.parametrize(
    "form", [PromptFormat(), PromptFormat(question_cue="Q:", answer_cue="A:")], ids=["own", "short"]
)
@pytest.mark.parametrize("architecture", ["llama"])
def test_a_question_reaches_the_model_as_in_training(tmp_path, architecture, form):
    pytest.importorskip("xllamacpp")
    folder = tiny.save(tmp_path / "model", architecture)
    save_format(form, folder)
    (tmp_path / "out").mkdir()
    write_ollama(folder, tmp_path / "out")
    said = (tmp_path / "out" / "Modelfile").read_text()
    template = re.search(r'TEMPLATE """(.*?)"""', said, re.DOTALL)[1]
    tokenizer = PlainTokenizer(folder)
    encoder = Encoder(tokenizer, form)
    started = server(tmp_path / "out" / NAME, 256, 1, "key")
    for question in QUESTIONS:
        example = Example(id="x", source="x", question=question, group="x")
        wanted = encoder.prompt(example, "answer").prompt
        text = rendered(template, question)
        assert tokenizer(text, split_special_tokens=True)["input_ids"] == wanted
        body = {"content": text, "add_special": True, "parse_special": True}
        reply = httpx2.post(f"{started.listening_address}/tokenize", json=body, headers={"Authorization": "Bearer key"})
        assert reply.json()["tokens"] == wanted
    stops = [tokenizer.convert_ids_to_tokens(token) for token in stop_tokens(folder)]
    assert re.findall(r'PARAMETER stop "(.*)"', said) == stops
    del started
