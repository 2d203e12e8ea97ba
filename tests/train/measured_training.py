"""Trains a fresh Llama for two steps in a process of its own, and prints the most memory that took, in bytes."""

import json
import sys

from transformers import AutoConfig, AutoModelForCausalLM

from meditune.config.load_recipe import load_recipe
from meditune.models import inference
from meditune.models.adapters import make_trainable
from meditune.models.hidden_state_cache import HiddenStateCache
from meditune.models.load import LoadedModel, number_format
from meditune.models.shared_prefix_batch import Row
from meditune.train.finetune import peak_memory_gb
from meditune.train.resource_plan import longest_rows
from meditune.train.trainer import TrainingRows, train


class Even:
    """Every token counts the same."""

    def of(self, row: Row) -> list[float]:
        """One for each target."""
        return [1.0] * len(row.targets)


class NoTokenizer:
    """Only the padding token is asked for."""

    pad_token_id = eos_token_id = 0


def main() -> None:
    """Arguments: a configuration as JSON, then the recipe's settings."""
    recipe = load_recipe("quickstart", sys.argv[2:]).recipe
    config = AutoConfig.for_model(**json.loads(sys.argv[1]))
    model = AutoModelForCausalLM.from_config(
        config, dtype=number_format("auto"), attn_implementation=inference.register()
    )
    model = make_trainable(model, recipe.model, 0)
    rows = longest_rows(recipe)
    rows = rows * -(-2 * recipe.train.batch_size * recipe.train.accumulation // len(rows))
    loaded = LoadedModel("", model, NoTokenizer(), None, HiddenStateCache(model, 0))
    list(train(loaded, TrainingRows(rows, Even()), recipe.train, 0))
    print(peak_memory_gb() * 1e9)


if __name__ == "__main__":
    main()
