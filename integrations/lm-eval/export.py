"""The prepared test items of a run as the file that the tasks beside this script read.

    meditune data prepare quickstart --output runs/quickstart
    python integrations/lm-eval/export.py runs/quickstart --model runs/quickstart

Every line has the fields of PubMedQA (QUESTION, CONTEXTS, final_decision), `id`, and with --model `meditune_prompt`:
the text that Meditune shows this model before it decides, in its own prompt format and shortened to its budget.
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
    """Write the file and say how many items it has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run, or of `meditune data prepare`")
    parser.add_argument("--model", help="also write the prompts for this model")
    parser.add_argument("--split", choices=("test", "dev"), default="test")
    parser.add_argument("--output", type=Path, default=FILE, help=f"default: {FILE}, where the tasks look for it")
    options = parser.parse_args()
    try:
        count = write_jsonl(options.output, rows(options.run, options.split, options.model))
    except MedituneError as error:
        sys.exit(str(error))
    print(f"{options.output}: {count} items")


def rows(run: Path, split: str, model: str | None = None) -> list[dict[str, Any]]:
    """A row for each item of the split that has a decision. Raises DataError where there is none."""
    path = run / "data" / f"{split}.jsonl"
    if not path.is_file():
        raise DataError(f"{path} isn't there. Run `meditune data prepare RECIPE --output {run}` first.")
    examples = [example for example in read_examples(path) if example.decision]
    if not examples:
        raise DataError(f"{path} has no item with a decision.")
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
