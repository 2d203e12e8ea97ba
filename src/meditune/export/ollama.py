"""A GGUF file with the Modelfile by which Ollama runs it: `ollama create NAME -f Modelfile`.

Ollama's template is made of the one prompt format, so a question reaches the model as it did in training. The tuned
model never saw a system message, so the limits, which stand under SYSTEM, are for people (`ollama show`), not for it.
Source: github.com/ollama/ollama, docs/modelfile.md.
"""

from __future__ import annotations

from pathlib import Path

from meditune.engines.exported import stop_tokens
from meditune.engines.tokenizer import PlainTokenizer
from meditune.errors import ModelError
from meditune.export.gguf import NAME, write_gguf
from meditune.files import read_json
from meditune.limits import LIMITS
from meditune.prompts import load_format
from meditune.recipe import PromptFormat

FILE_NAME = "Modelfile"
QUOTES = '"""'


def write_ollama(source: Path, folder: Path) -> dict[str, str]:
    """Put GGUF file and Modelfile into `folder`; returns the packages that made it."""
    tools = write_gguf(source, folder)
    form = load_format(source) or PromptFormat()
    tokenizer = PlainTokenizer(source)
    stops = [tokenizer.convert_ids_to_tokens(token) for token in stop_tokens(source)]
    context = read_json(source / "config.json")["max_position_embeddings"]
    (folder / FILE_NAME).write_text(modelfile(form, stops, context), encoding="utf-8")
    return tools


def modelfile(form: PromptFormat, stops: list[str], context: int) -> str:
    """The Modelfile's text. Raises ModelError where the format holds what Ollama takes for its own."""
    cue = form.plain_cue or form.answer_cue
    template = f"{form.question_cue} {{{{ .Prompt }}}}\n{cue}"
    if QUOTES in template or "{{" in form.question_cue + cue:
        raise ModelError('The prompt format holds """ or {{, which mean something else in a Modelfile.')
    return "\n".join(
        [
            f"FROM ./{NAME}",
            f"TEMPLATE {QUOTES}{template}{QUOTES}",
            f"SYSTEM {QUOTES}{LIMITS}{QUOTES}",
            *(f'PARAMETER stop "{stop}"' for stop in stops),
            f"PARAMETER num_ctx {context}",
            "PARAMETER temperature 0",
            "PARAMETER repeat_penalty 1",
            "",
        ]
    )
