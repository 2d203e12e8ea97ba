"""From names to a service."""

import pytest

from meditune.serve.settings import Settings
from meditune.serve.startup import Wanted, open_service
from meditune.serve.version_router import fingerprint
from tests import tiny


@pytest.mark.parametrize(
    ("folder", "name"),
    [("runs/gout", "gout"), ("runs/gout/model", "gout"), ("runs/gout/export/merged", "gout"), ("model", "here")],
)
def test_a_model_is_called_by_its_run(tmp_path, folder, name):
    model = tiny.save(tmp_path / "here" / folder)
    service = open_service(Wanted(str(model)), Settings(), tmp_path / "store")
    service.engine.close()
    assert service.served.name == name
    named = open_service(Wanted(str(model), name="mine"), Settings(), tmp_path / "store")
    named.engine.close()
    assert named.served.name == "mine"
    assert named.served.version == service.served.version != "unknown"


def test_a_version_is_that_of_the_weights(tmp_path):
    one, same, other = (tiny.save(tmp_path / name / "model") for name in ("one", "same", "other"))
    tiny.model("llama", seed=1).save_pretrained(other)
    assert fingerprint(one) == fingerprint(same) == fingerprint(one.parent)
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(one / "model.safetensors") not in {"", fingerprint(one)}
    (tmp_path / "empty").mkdir()
    assert fingerprint(tmp_path / "empty") == ""
