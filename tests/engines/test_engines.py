"""A job has one last piece, whatever is told of it afterwards.

Text that comes token by token is the text of all tokens, and nothing that ends it is shown.

A model is opened by its folder; what can't be opened is said.

Packages that only some engines need.

For the tests of each engine: jobs put to it as a server would, and their pieces.
"""

from __future__ import annotations

import queue
import subprocess
import sys
from collections.abc import Sequence

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from meditune.config.data_options import PromptFormat
from meditune.engines.engine import Engine, GenerationChunk, GenerationRequest, TokenLogprob
from meditune.engines.exported_model import weights_digest, why_outdated
from meditune.engines.open_engine import open_engine
from meditune.engines.scheduler import ScheduledRequest
from meditune.engines.tokenizer import Detokenizer, PlainTokenizer, token_bytes
from meditune.errors import ModelError
from meditune.files import read_json, write_json
from meditune.prompts import save_format
from meditune.serve.routes.openai_api import _named
from tests import tiny

PATIENCE = 120
"""Seconds that one piece may take"""


def collect(pieces: queue.Queue[GenerationChunk]) -> list[GenerationChunk]:
    """All pieces up to the last one."""
    found = []
    while True:
        found.append(pieces.get(timeout=PATIENCE))
        if found[-1].finish or found[-1].error:
            return found


def together(engine: Engine, jobs: Sequence[GenerationRequest]) -> list[list[GenerationChunk]]:
    """The pieces of jobs that are started at the same time."""
    waiting: list[queue.Queue[GenerationChunk]] = [queue.Queue() for _ in jobs]
    for job, pieces in zip(jobs, waiting, strict=True):
        engine.start(job, pieces.put)
    return [collect(pieces) for pieces in waiting]


def ask(engine: Engine, job: GenerationRequest) -> list[GenerationChunk]:
    """The pieces of one job."""
    return together(engine, [job])[0]


def text(pieces: Sequence[GenerationChunk]) -> str:
    """What they say together."""
    return "".join(piece.text for piece in pieces)


def tokens(pieces: Sequence[GenerationChunk]) -> list[int]:
    """Their tokens."""
    return [token for piece in pieces for token in piece.tokens]


def test_nothing_comes_after_the_last_piece():
    pieces = []
    answer = ScheduledRequest(GenerationRequest([5], 1), pieces.append, tiny.tokenizer())
    for token in (30, 40, 50):
        answer.take(token)
    answer.end()
    answer.fail(RuntimeError())
    assert [piece.finish for piece in pieces] == ["length"]


SAID = "Ärzte sagen: β-Blocker helfen 😀, 高血压 too. It’s naïve."


def pieces(ids, prompt, stop=()):
    wording = Detokenizer(tiny.tokenizer(), prompt, stop)
    found = []
    for token in ids:
        found.append(wording.add(token))
        if wording.stopped:
            return found
    return [*found, wording.rest()]


def test_characters_of_several_tokens_come_whole():
    tokenizer = tiny.tokenizer()
    ids = tokenizer(SAID)["input_ids"]
    found = pieces(ids, tokenizer("Question: why?")["input_ids"])
    assert "".join(found) == SAID
    assert not any("\ufffd" in piece for piece in found)
    assert sum(map(bool, found)) > 20, "it doesn't come piece by piece"


def test_half_a_character_at_the_end_is_left_out():
    tokenizer = tiny.tokenizer()
    ids = tokenizer("yes 😀")["input_ids"]
    assert "".join(pieces(ids[:-1], [5])) == "yes "


@pytest.mark.parametrize("broken", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("said", ["é", "血", "😀", "é yes 血"])
def test_a_character_after_bytes_that_are_none_isnt_lost(broken, said):
    tokenizer = tiny.tokenizer()
    half = tokenizer("😀")["input_ids"][0]
    ids = [
        *tokenizer("no ")["input_ids"],
        *[half] * broken,
        *tokenizer(said)["input_ids"],
        *tokenizer("!")["input_ids"],
    ]
    assert "".join(pieces(ids, [5])) == tokenizer.decode(ids) == "no " + "\ufffd" * broken + said + "!"


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (("😀",), "Ärzte sagen: β-Blocker helfen "),
        (("too. Not", "naïve"), "Ärzte sagen: β-Blocker helfen 😀, 高血压 too. It’s "),
        (("e sa", "Ärzte sagen!"), "Ärzt"),
        (("", "not there"), SAID),
        ((SAID[-3:] + "!",), SAID),
    ],
)
def test_a_text_that_ends_the_answer_is_not_part_of_it(stop, expected):
    ids = tiny.tokenizer()(SAID)["input_ids"]
    assert "".join(pieces(ids, [5], stop)) == expected


def test_special_tokens_are_no_text():
    tokenizer = tiny.tokenizer()
    ids = tokenizer("yes")["input_ids"]
    assert "".join(pieces([0, *ids, 0], [0])) == "yes"


def test_a_byte_that_the_vocabulary_names_by_its_number_is_that_byte():
    raw = Tokenizer(models.BPE({"<unk>": 0, "<0xC3>": 1, "<0xA4>": 2, "ß": 3}, [], byte_fallback=True))
    raw.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    assert [token_bytes(tokenizer, token) for token in (1, 2, 3)] == [b"\xc3", b"\xa4", "ß".encode()]


@pytest.mark.parametrize(
    "template",
    [
        "{% if tools is not none or documents is not none %}TOOLS{% endif %}{{ messages[0]['content'] }}",
        "{{ messages[0] | tojson(separators=(',', ':'), sort_keys=true, ensure_ascii=true) }}",
        [{"name": "default", "template": "{{ messages[0]['content'] }}"}, {"name": "tool_use", "template": "{{ 1 }}"}],
    ],
    ids=["tools", "tojson", "several templates"],
)
def test_a_chat_template_writes_what_transformers_writes(tmp_path, template):
    tiny.tokenizer().save_pretrained(tmp_path)
    settings = read_json(tmp_path / "tokenizer_config.json")
    write_json(tmp_path / "tokenizer_config.json", {**settings, "chat_template": template})
    ours, theirs = (
        make(tmp_path).apply_chat_template([{"role": "user", "content": "Größe"}], tokenize=False)
        for make in (PlainTokenizer, AutoTokenizer.from_pretrained)
    )
    assert ours == theirs


def test_tokens_keep_the_space_that_a_decoder_strips_before_a_text():
    raw = Tokenizer(models.BPE({"<unk>": 0, "▁yes": 1, "yes": 2, "▁": 3, "▁▁": 4}, [], byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    raw.decoder = decoders.Sequence(steps)  # as in Llama 2 and Mistral
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    assert [token_bytes(tokenizer, token) for token in range(1, 5)] == [b" yes", b"yes", b" ", b"  "]
    named = _named(tokenizer, TokenLogprob(1, -0.5, {2: -1.0, 3: -2.0}))
    assert named == {" yes": -0.5, "yes": -1.0, " ": -2.0}


def test_stored_truncation_and_padding_do_not_change_prompts(tmp_path):
    tokenizer = tiny.tokenizer()
    tokenizer(tiny.WORDS, truncation=True, max_length=10)  # as a trainer does before it saves the tokenizer
    tokenizer.backend_tokenizer.enable_padding(length=400)
    tokenizer.save_pretrained(tmp_path)
    for prompt in ("yes", tiny.WORDS):
        assert PlainTokenizer(tmp_path).encode(prompt) == AutoTokenizer.from_pretrained(tmp_path).encode(prompt)


def test_a_model_s_folder_opens_with_transformers(tmp_path):
    engine = open_engine(str(tiny.save(tmp_path / "model")))
    assert engine.name.startswith("transformers ")
    assert engine.context_tokens == 1024
    assert len(tokens(ask(engine, GenerationRequest([5, 6], 3)))) <= 3
    engine.close()


def test_an_unknown_engine_gets_a_near_name(tmp_path):
    with pytest.raises(ModelError, match="Did you mean transformers"):
        open_engine(str(tmp_path), "transformer")


@pytest.fixture
def exported_run(tmp_path):
    """A model with what looks like its export for an engine that is always "installed"."""
    pytest.importorskip("xllamacpp")
    place = tiny.save(tmp_path / "model")
    folder = place / "export" / "gguf"
    folder.mkdir(parents=True)
    facts = {"kind": "gguf", "engine": "llamacpp", "weights": "Q8_0", "stop_tokens": [1], "context_tokens": 9}
    facts |= {"sha256": {}}
    write_json(folder / "export.json", facts | {"made_from": {"sha256": weights_digest(place)}})
    return place, folder


def test_an_export_of_what_the_model_was_before_is_not_opened(exported_run, caplog):
    place, folder = exported_run
    assert why_outdated(folder, place) == ""
    made = tiny.model("llama")
    made.get_input_embeddings().weight.data += 0.1
    made.save_pretrained(place)
    engine = open_engine(str(place))
    engine.close()
    assert engine.name.startswith("transformers ")
    assert f"was exported with different weights than {place} has now" in caplog.text
    with pytest.raises(ModelError, match=f"meditune export {place} --to gguf"):
        open_engine(str(place), "llamacpp")


def test_an_export_with_another_prompt_format_is_not_opened(exported_run):
    place, folder = exported_run
    save_format(PromptFormat(answer_cue="Say:"), place)
    with pytest.raises(ModelError, match="a different prompt format"):
        open_engine(str(place), "llamacpp")
    save_format(PromptFormat(answer_cue="Say:"), folder)
    assert why_outdated(folder, place) == ""


def test_openvino_reports_nothing_to_anybody():
    pytest.importorskip("openvino")
    code = (
        "from meditune.engines.exported_model import import_package\n"
        "import_package('openvino', 'openvino.tools.ovc')\n"
        "from openvino.tools.ovc import telemetry_utils\n"
        "print(telemetry_utils.tm.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("telemetry_stub")
