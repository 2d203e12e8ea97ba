"""Write the prepared test items of a run to the file that the tasks in this folder read.

    meditune data prepare quickstart --output runs/quickstart
    python integrations/lm-eval/export.py runs/quickstart --model runs/quickstart

Every line has the fields of PubMedQA (QUESTION, CONTEXTS, final_decision) and `id`. With --model, it also has
`meditune_prompt`: the prompt that Meditune gives this model for the decision, in the model's own prompt format and
shortened to its token budget.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from meditune.data.example import Example, read_examples
from meditune.errors import DataError, MedituneError
from meditune.files import write_jsonl

FILE = Path("meditune_pubmedqa.jsonl")


def main() -> None:
    """Write the file and print its number of items."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's folder, or the output folder of `meditune data prepare`")
    parser.add_argument("--model", help="also write the prompts for this model, for example runs/quickstart")
    parser.add_argument("--split", choices=("test", "dev"), default="test", help="default: test")
    parser.add_argument(
        "--output", type=Path, default=FILE, help=f"the file to write (default: {FILE}, which the tasks read)"
    )
    options = parser.parse_args()
    try:
        count = write_jsonl(options.output, rows(options.run, options.split, options.model))
    except MedituneError as error:
        sys.exit(str(error))
    print(f"{options.output}: {count} items")


def rows(run: Path, split: str, model: str | None = None) -> list[dict[str, Any]]:
    """Return a row for each item of the split that has a decision. Raise DataError if there is no such item."""
    path = run / "data" / f"{split}.jsonl"
    if not path.is_file():
        raise DataError(f"{path} doesn't exist. Run `meditune data prepare RECIPE --output {run}` first.")
    examples = [example for example in read_examples(path) if example.decision]
    if not examples:
        raise DataError(f"{path} has no item with a decision, so there is nothing to write.")
    prompts = _prompts(run, model, examples) if model else {}
    return [
        {
            "id": example.id,
            "QUESTION": example.question,
            "CONTEXTS": [passage.text for passage in example.context],
            "final_decision": example.decision,
            "meditune_prompt": prompts.get(example.id, ""),
        }
        for example in examples
    ]


def _prompts(run: Path, model: str, examples: list[Example]) -> dict[str, str]:
    from meditune.config.load_recipe import load_recipe
    from meditune.models.load import load

    loaded = load(model)
    form = loaded.form or load_recipe(str(run / "recipe.yaml")).recipe.prompt
    encoder = loaded.encoder(form)
    tokens = {example.id: encoder.prompt(example, "decision").prompt for example in examples}
    return {name: loaded.tokenizer.decode(ids, skip_special_tokens=True) for name, ids in tokens.items()}


if __name__ == "__main__":
    main()
