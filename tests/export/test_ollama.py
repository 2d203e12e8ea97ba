"""A Modelfile asks the model as it was tuned: the same text, and by llama.cpp, which Ollama runs, the same tokens."""

import re

import httpx2
import pytest

from meditune.config.data_options import PromptFormat
from meditune.data.example import Example
from meditune.engines.exported_model import stop_tokens
from meditune.engines.llamacpp_engine import server
from meditune.engines.tokenizer import PlainTokenizer
from meditune.export.gguf import NAME, write_ollama
from meditune.prompts import Encoder, save_format
from tests import tiny

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
