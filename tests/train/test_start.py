"""Which tuned models can be tuned further."""

import pytest
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig

from meditune.config.recipe import Recipe
from meditune.errors import ModelError
from meditune.train.training_plan import check_start


@pytest.mark.parametrize("kind", [PrefixTuningConfig, PromptTuningConfig, PromptEncoderConfig])
def test_virtual_tokens_of_any_kind_cant_be_tuned_further(kind, tmp_path):
    kind(task_type="CAUSAL_LM", num_virtual_tokens=3).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"is an adapter of virtual tokens"):
        check_start(Recipe(name="further", model={"base": str(tmp_path)}))
