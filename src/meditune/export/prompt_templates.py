"""The prompt format of training in other programs' template languages, and a check that the prompts are the same.

Ollama uses Go's text/template in a Modelfile (github.com/ollama/ollama, docs/modelfile.md and template/template.go);
vLLM, transformers and llama.cpp's server use Jinja in `chat_template.jinja`. In the plain format, a chat's system
messages become the context, and each question and reply follows its cue, as in `meditune serve`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from meditune.chat_template import ChatTemplate, Messages, TemplateError
from meditune.config.data_options import PromptFormat
from meditune.data.example import STYLE, Example, Turn
from meditune.engines.tokenizer import PlainTokenizer
from meditune.errors import ModelError
from meditune.prompts import LIMITS, QUOTE, Encoder

MODELFILE = "Modelfile"
JINJA = "chat_template.jinja"
_QUOTES = '"""'
_LINE_SEPARATORS = ("\\r\\n", "\\r", *"\v\f\x1c\x1d\x1e\x85\u2028\u2029")
"""Line separators of `str.splitlines` other than \\n, as they are written in a Jinja string"""


def modelfile(file: str, template: str, stops: Sequence[str], context: int) -> str:
    """Return a Modelfile's text. LIMITS is in LICENSE, which people read, not in SYSTEM, which the model would read."""
    return "\n".join(
        [
            f"FROM ./{file}",
            f"TEMPLATE {_QUOTES}{template}{_QUOTES}",
            f"LICENSE {_QUOTES}{LIMITS}{_QUOTES}",
            *(f'PARAMETER stop "{stop}"' for stop in stops),
            f"PARAMETER num_ctx {context}",
            "PARAMETER temperature 0",
            "PARAMETER repeat_penalty 1",
            "",
        ]
    )


def ollama_template(tokenizer: Any, form: PromptFormat) -> str:
    """Return the prompt format, or the model's chat template, in Ollama's template language.

    The template omits a BOS token that llama.cpp adds itself. It also omits system messages if the format quotes its
    context, because Ollama's language can't begin each line with a mark. Raises ModelError if the template can't be
    written.
    """
    part = _chat_parts(tokenizer, form)
    if any(mark in text for text in part.values() for mark in ("{{", _QUOTES)):
        raise ModelError('The prompt format contains {{ or """, which have a special meaning in a Modelfile.')
    begin = part["start"]
    if "system_start" in part:
        system = f"{part['system_start']}{{{{ .System }}}}{part['system_end']}"
        begin = f"{{{{ if .System }}}}{system}{{{{ else }}}}{begin}{{{{ end }}}}"
    user = f'{{{{ if eq .Role "user" }}}}{part["user_start"]}{{{{ .Content }}}}{part["user_end"]}'
    reply = f"{part['assistant_start']}{{{{ .Content }}}}{part['assistant_end']}{{{{ end }}}}"
    reply = f'{{{{ else if eq .Role "assistant" }}}}{reply}'
    return f"{begin}{{{{ range .Messages }}}}{user}{reply}{{{{ end }}}}"


def ollama_prompt(tokenizer: Any, form: PromptFormat) -> Callable[[Messages], str]:
    """Return a function that writes the same prompts as Ollama with the template of `ollama_template`."""
    part = _chat_parts(tokenizer, form)

    def write(messages: Messages) -> str:
        system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
        with_system = system and "system_start" in part
        text = f"{part['system_start']}{system}{part['system_end']}" if with_system else part["start"]
        for role, content in ((message["role"], message["content"]) for message in messages):
            if role != "system":
                text += f"{part[f'{role}_start']}{content}{part[f'{role}_end']}"
        return text

    return write


def _chat_parts(tokenizer: Any, form: PromptFormat) -> dict[str, str]:
    """Return the texts before the first message, and before and after each role's content."""
    if not form.is_chat:
        part = {
            "start": "",
            "user_start": f"{form.question_cue} ",
            "user_end": f"\n{form.plain_cue or form.answer_cue}",
            "assistant_start": " ",
            "assistant_end": "\n",
        }
        return part if form.quoted else part | {"system_start": "", "system_end": "\n"}
    try:
        part = ChatTemplate(tokenizer, form.thinking).parts()
    except TemplateError as error:
        raise ModelError(f"{error} Export the model to gguf: a GGUF file contains the template unchanged.") from error
    bos = added_bos(tokenizer)
    return part | {name: part[name].removeprefix(bos) for name in ("start", "system_start") if name in part}


def jinja_template(tokenizer: Any, form: PromptFormat, lead: str = "") -> str:
    """Return a Jinja chat template that writes the plain prompt format, with `lead` between BOS and the text."""
    context = "message['content'] | trim"
    if form.quoted:
        lines = "".join(f" | replace('{separator}', '\\n')" for separator in _LINE_SEPARATORS)
        context = f"'{QUOTE}' + ({context}{lines} | replace('\\n', '\\n{QUOTE}'))"
    else:
        context = f"({context})"
    cues = (f"{form.question_cue} ", f"\n{form.plain_cue or form.answer_cue}")
    before, after, begin = (_jinja_text(text) for text in (*cues, added_bos(tokenizer) + lead))
    return (
        f"{{{{ {begin} }}}}{{% for message in messages %}}"
        f"{{% if message['role'] == 'user' %}}{{{{ {before} + (message['content'] | trim) + {after} }}}}"
        "{% elif message['role'] == 'assistant' %}{{ ' ' + (message['content'] | trim) + '\\n' }}"
        f"{{% else %}}{{{{ {context} + '\\n' }}}}{{% endif %}}{{% endfor %}}"
    )


def write_chat_template(folder: Path, form: PromptFormat) -> None:
    """Write a chat template for the plain prompt format into a folder. Raises ModelError if the tokens differ."""
    path, tokenizer = folder / JINJA, PlainTokenizer(folder)
    # Some SentencePiece tokenizers put a space before a text, but not after BOS.
    for lead in ("", " "):
        path.unlink(missing_ok=True)
        path.write_text(jinja_template(tokenizer, form, lead), encoding="utf-8")
        try:
            check_chat_template(folder, form)
        except ModelError:
            if lead:
                raise
        else:
            return


def check_chat_template(folder: Path, form: PromptFormat) -> int:
    """Compare the prompts of the chat template in a model's folder with those of training; see `check_prompts`."""
    tokenizer = PlainTokenizer(folder)
    tokenize = partial(tokenizer.encode, add_special_tokens=False)
    return check_prompts(tokenizer, form, jinja_prompt(tokenizer), tokenize, "A chat server")


def added_bos(tokenizer: Any) -> str:
    """Return the BOS token if the tokenizer puts it before every text, otherwise an empty string."""
    is_added = tokenizer.bos_token is not None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    return tokenizer.bos_token if is_added else ""


def jinja_prompt(tokenizer: Any) -> Callable[[Messages], str]:
    """Return a function that writes prompts with a tokenizer's chat template."""
    return partial(tokenizer.apply_chat_template, tokenize=False, add_generation_prompt=True)


def _jinja_text(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"


def check_prompts(
    tokenizer: Any,
    form: PromptFormat,
    write: Callable[[Messages], str],
    tokenize: Callable[[str], list[int]],
    program: str,
    accepts_system: bool = True,
) -> int:
    """Return the number of chats that were checked. Raises ModelError if a prompt's tokens differ from training."""
    encoder = Encoder(tokenizer, form)
    turns = (
        Turn(role="user", text="Größe < 5 mm: does it hurt?"),
        Turn(role="assistant", text="No.\nRarely at 20 °C & more."),
    )
    context = "The drug halved the pain (p = 0.01)."
    if form.quoted and not form.is_chat:
        context += "\rIt\u2028helped."  # each line is quoted
    chats = [(), turns, (Turn(role="system", text=context), *turns)]
    compared = 0
    for earlier in chats if accepts_system else chats[:2]:
        meta = {} if form.is_chat else {STYLE: "plain"}
        question = "What is asthma, and does exercise help?"
        example = Example(id="chat", source="chat", group="chat", question=question, turns=earlier or None, meta=meta)
        messages = [{"role": turn.role, "content": turn.text} for turn in earlier]
        try:
            wanted = encoder.prompt_ids(example, "answer")
        except TemplateError:
            continue  # a chat template without system messages
        text = write([*messages, {"role": "user", "content": question}])
        if tokenize(text) != wanted:
            raise ModelError(
                f"{program} would get different tokens for a prompt than the model got in training: "
                f"{tokenizer.decode(tokenize(text))!r} instead of {tokenizer.decode(wanted)!r}."
            )
        compared += 1
    return compared
