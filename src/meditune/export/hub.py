"""The merged model of a run to the Hugging Face hub: what would go there, whether it may, and the upload.

A model can give away what it was trained on, so what keeps a data set back keeps its model back: the checks are those
of `meditune data push`. Nothing that is sent names a place on this machine.

The page that lies beside an exported model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from meditune.data import hub_upload
from meditune.data.hub_upload import Upload
from meditune.data.leakage import FILE_NAME
from meditune.data.preference.prepare_pairs import FOLDER as PAIRS
from meditune.data.read_sources import demands
from meditune.engines.exported_model import EXPORT
from meditune.errors import DataError, ModelError
from meditune.files import read_json, read_text, write_json
from meditune.models.catalogue import CATALOGUE
from meditune.models.load import is_hub_id
from meditune.prompts import LIMITS

CARD = "README.md"
IDENTIFIERS = {"Apache-2.0": "apache-2.0", "MIT": "mit", "Gemma terms of use": "gemma"}
"""Licences of base models as the hub calls them (huggingface.co/docs/hub/repositories-licenses)"""


@dataclass(frozen=True)
class ModelUpload:
    """What would go where."""

    merged: Path
    data: Upload
    base: str

    def text(self) -> str:
        """For people, before they agree."""
        who = "only you and your organization can see it" if self.data.private else "EVERYONE can see it"
        size = sum(path.stat().st_size for path in self.merged.iterdir())
        return "\n".join(
            [
                f"Sent to {hub_upload.endpoint()}/{self.data.repository}, where {who}:",
                f"  the merged model, {size / 1e6:,.0f} MB, made from {self.base} ({_licence(self.base)})",
                f"  It was trained on {sum(self.data.rows.values()):,} rows, and may repeat what is in them.",
                f"  {self.data.identifiers}",
                *(f"  {sentence}" for sentence in demands(self.data.terms)),
            ]
        )


def planned(run: Path, merged: Path, repository: str, private: bool) -> ModelUpload:
    """What of a finished run, whose merged model is here already, would be sent.

    Raises DataError where it may not be: restricted rows, identifiers of people that were left in the text, or a run
    whose data aren't here to be looked at.
    """
    refuse_without_data(run)
    data = hub_upload.plan_upload(run, repository, private)
    unlisted = read_json(merged / FILE_NAME)["unlisted"] if (merged / FILE_NAME).is_file() else 0
    if unlisted:
        raise DataError(
            f"{run}: the model was trained on {unlisted:,} restricted examples, which it can give away: it may not be "
            "passed on. Nothing was sent."
        )
    facts = run / PAIRS / "facts.json"
    looked = read_json(facts).get("phi") if facts.is_file() else None
    if looked and (left := hub_upload.identifiers_left(looked)):
        raise DataError(
            f"{run}: {' and '.join(left)}, on which the model was tuned, hold identifiers of people that were left in "
            "the text. Tune it again with --set data.phi.action=mask, or take these pairs out. Nothing was sent."
        )
    recipe = yaml.safe_load(read_text(run / "recipe.yaml"))
    return ModelUpload(merged, data, str(recipe["model"]["base"]))


def refuse_without_data(run: Path) -> None:
    """Raise ModelError where a folder isn't a run whose data are here to be looked at."""
    if not (run / "data" / "quality.json").is_file():
        raise ModelError(
            f"{run} isn't a run with its data, so nothing here says whether its model may be passed on. Nothing was "
            "sent."
        )


def push(upload: ModelUpload) -> str:
    """Make the repository unless it is there, send the files in one commit; returns its address.

    Raises MedituneError where the hub doesn't take it.
    """
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for path in upload.merged.iterdir():
            if path.name not in (CARD, EXPORT):
                (folder / path.name).symlink_to(path.resolve())
        facts: dict[str, Any] = read_json(upload.merged / EXPORT)
        facts["made_from"]["model"] = upload.base
        write_json(folder / EXPORT, facts)
        (folder / CARD).write_text(card(upload, facts), encoding="utf-8")
        files = sorted(path.name for path in folder.iterdir())
        return hub_upload.send(upload.data.repository, "model", folder, files, upload.data.private)


def card(upload: ModelUpload, facts: dict[str, Any]) -> str:
    """The model card, with the front matter that the hub reads."""
    known = CATALOGUE.get(upload.base)
    base = known.hub_id if known else upload.base if is_hub_id(upload.base) else None
    licence = IDENTIFIERS.get(_licence(upload.base), "other")
    return "\n".join(
        [
            "---",
            *([f"base_model: {base}"] if base else []),
            f"license: {licence}",
            *(["license_name: base-model"] if licence == "other" else []),
            "library_name: transformers",
            "pipeline_tag: text-generation",
            "language: en",
            "tags: [medical, meditune]",
            "---",
            "",
            f"# {upload.data.repository.rpartition('/')[2]}: {Path(upload.base).name} tuned with Meditune",
            "",
            f"**Limits.** {LIMITS}",
            "",
            "## Use",
            "",
            "    hf download " + upload.data.repository + " --local-dir FOLDER",
            "    meditune serve FOLDER",
            "",
            "It is a plain transformers model in BF16. Ask it in the format that `prompt.json` holds.",
            "",
            "## Training data",
            "",
            *(f"- {sentence}" for sentence in demands(upload.data.terms)),
            "",
            "## Checked against the model that it was made from",
            "",
            str(facts["drift"]["said"]),
            "",
        ]
    )


def _licence(base: str) -> str:
    return CATALOGUE[base].licence if base in CATALOGUE else "the base model's own licence"


def text(facts: dict[str, Any], name: str) -> str:
    """Markdown: what it is, its limits, how it is used, and what the check found."""
    drift = facts["drift"]
    return "\n".join(
        [
            f"# A Meditune model for the {facts['engine']} engine ({facts['weights']})",
            "",
            f"**Limits.** {LIMITS}",
            "",
            "## Use",
            "",
            "    meditune serve FOLDER",
            "",
            "`prompt.json` is the prompt's format, `export.json` says what this was made from and with.",
            "",
            "## Checked against the model that it was made from",
            "",
            f"{drift['said']}",
            "",
            f"Made from {name}; tools: {', '.join(f'{tool} {version}' for tool, version in facts['tools'].items())}.",
            "",
        ]
    )
