"""The synthetic set that comes with Meditune: PubMedQA's form, invented content."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from meditune.data import pubmedqa
from meditune.data.example import Example
from meditune.data.rejects import Rejects

SOURCE = "sample"
LICENCE = "CC0-1.0"
FILE = Path(__file__).parent / "sample" / "synthetic_pqal.json"


def read(path: Path, rejects: Rejects) -> Iterator[Example]:
    """The invented examples, marked `synthetic` and without a URL, so that none passes for a published study."""
    for example in pubmedqa.read(path, rejects):
        meta = {key: value for key, value in example.meta.items() if key not in {"url", "subset"}}
        yield example.model_copy(
            update={
                "id": f"{SOURCE}:{example.group}",
                "source": SOURCE,
                "meta": meta | {"licence": LICENCE, "synthetic": True},
            }
        )
