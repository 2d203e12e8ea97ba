"""A model is opened by its folder; what can't be opened is said."""

import pytest

from meditune.config.data_options import PromptFormat
from meditune.engines.engine import Job
from meditune.engines.exported_model import outdated, weights_digest
from meditune.engines.open_engine import open_engine
from meditune.errors import ModelError
from meditune.files import write_json
from meditune.prompts import save_format
from tests import tiny
from tests.engines.asking import ask, tokens


def test_a_model_s_folder_opens_with_transformers(tmp_path):
    engine = open_engine(str(tiny.save(tmp_path / "model")))
    assert engine.name.startswith("transformers ")
    assert engine.context_tokens == 1024
    assert len(tokens(ask(engine, Job([5, 6], 3)))) <= 3
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
    assert outdated(folder, place) == ""
    made = tiny.model("llama")
    made.get_input_embeddings().weight.data += 0.1
    made.save_pretrained(place)
    engine = open_engine(str(place))
    engine.close()
    assert engine.name.startswith("transformers ")
    assert f"was made from other weights than {place} has now" in caplog.text
    with pytest.raises(ModelError, match=f"meditune export {place} --to gguf"):
        open_engine(str(place), "llamacpp")


def test_an_export_with_another_prompt_format_is_not_opened(exported_run):
    place, folder = exported_run
    save_format(PromptFormat(answer_cue="Say:"), place)
    with pytest.raises(ModelError, match="another prompt format"):
        open_engine(str(place), "llamacpp")
    save_format(PromptFormat(answer_cue="Say:"), folder)
    assert outdated(folder, place) == ""
