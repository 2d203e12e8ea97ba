"""A model is opened by its folder; what can't be opened is said."""

import pytest

from meditune.engines.engine import Job
from meditune.engines.opening import open_engine
from meditune.errors import ModelError
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
