"""Upload the merged model of a run to the Hugging Face hub.

A model can reveal its training data, so the checks of `meditune data push` also apply to the model. The uploaded files
contain no paths on this machine.
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
from meditune.data.prepare_pairs import FOLDER as PAIRS
from meditune.data.sources import licence_requirements
from meditune.engines.exported_model import EXPORT
from meditune.errors import DataError, ModelError
from meditune.export.prompt_templates import JINJA, write_chat_template
from meditune.files import read_json, read_text, sha256, write_json
from meditune.models.catalogue import CATALOGUE, is_hub_id
from meditune.prompts import load_format
from meditune.train.model_card import measured, warnings

CARD = "README.md"
IDENTIFIERS = {"Apache-2.0": "apache-2.0", "MIT": "mit", "Gemma terms of use": "gemma"}
"""Licences of base models -> the hub's identifiers (huggingface.co/docs/hub/repositories-licenses)"""


@dataclass(frozen=True)
class ModelUpload:
    """A planned upload: what is sent, and where to. `report` is the content of report.json, if the run has one."""

    merged: Path
    data: Upload
    base: str
    report: dict[str, Any] | None

    def text(self) -> str:
        """Return a description of the upload, for people to approve."""
        who = "only you and your organization can see it" if self.data.private else "EVERYONE can see it"
        size = sum(path.stat().st_size for path in self.merged.iterdir())
        return "\n".join(
            [
                f"To be sent to {hub_upload.endpoint()}/{self.data.repository}, where {who}:",
                f"  the merged model, {size / 1e6:,.0f} MB, made from {self.base} ({_licence(self.base)})",
                f"  It was trained on {sum(self.data.rows.values()):,} rows and may repeat their content.",
                f"  {self.data.identifiers}",
                *(f"  {sentence}" for sentence in licence_requirements(self.data.terms)),
            ]
        )


def plan_upload(run: Path, merged: Path, repository: str, private: bool) -> ModelUpload:
    """Return the planned upload of a finished run, whose merged model must be in `merged`.

    Raises DataError if the training data contain restricted rows or personal identifiers, and ModelError if the data
    are missing.
    """
    refuse_without_data(run)
    data = hub_upload.plan_upload(run, repository, private)
    unlisted = read_json(merged / FILE_NAME)["unlisted"] if (merged / FILE_NAME).is_file() else 0
    if unlisted:
        raise DataError(
            f"{run}: the model was trained on {unlisted:,} restricted examples and can reveal them, so it may not "
            "be shared. Nothing was sent."
        )
    facts = run / PAIRS / "facts.json"
    looked = read_json(facts).get("phi") if facts.is_file() else None
    if looked and (left := hub_upload.identifiers_left(looked)):
        raise DataError(
            f"{run}: {' and '.join(left)}, on which the model was tuned, contain personal identifiers. Tune the "
            "model again with --set data.phi.action=mask, or remove these pairs. Nothing was sent."
        )
    recipe = yaml.safe_load(read_text(run / "recipe.yaml"))
    report = read_json(run / "report.json") if (run / "report.json").is_file() else None
    return ModelUpload(merged, data, str(recipe["model"]["base"]), report)


def refuse_without_data(run: Path) -> None:
    """Raise ModelError if a folder isn't a run with its data, because the data must be checked before an upload."""
    if not (run / "data" / "quality.json").is_file():
        raise ModelError(
            f"{run} isn't a run with its data, so Meditune can't check whether its model may be shared. Nothing was "
            "sent."
        )


def push(upload: ModelUpload) -> str:
    """Create the repository unless it exists, upload the files in one commit, and return the repository's address.

    If the model uses the plain format, its chat template is replaced with a template that writes this format.
    """
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for path in upload.merged.iterdir():
            if path.name not in (CARD, EXPORT):
                (folder / path.name).symlink_to(path.resolve())
        facts: dict[str, Any] = read_json(upload.merged / EXPORT)
        form = load_format(folder)
        if form and not form.is_chat:
            write_chat_template(folder, form)
            facts["sha256"][JINJA] = sha256(folder / JINJA)
        facts["made_from"]["model"] = upload.base if is_hub_id(upload.base) else Path(upload.base).name
        write_json(folder / EXPORT, facts)
        (folder / CARD).write_text(card(upload, facts), encoding="utf-8")
        files = sorted(path.name for path in folder.iterdir())
        return hub_upload.send(upload.data.repository, "model", folder, files, upload.data.private)


def card(upload: ModelUpload, facts: dict[str, Any]) -> str:
    """Return the model card, with the front matter that the hub reads."""
    known = CATALOGUE.get(upload.base)
    base = known.hub_id if known else upload.base if is_hub_id(upload.base) else None
    licence = IDENTIFIERS.get(_licence(upload.base), "other")
    repository = upload.data.repository
    front = [
        *([f"base_model: {base}"] if base else []),
        f"license: {licence}",
        *(["license_name: base-model"] if licence == "other" else []),
        *("library_name: transformers", "pipeline_tag: text-generation", "language: en", "tags: [medical, meditune]"),
    ]
    metrics = "## Not measured\n\nThe run has no report.json, so the model wasn't compared with its base."
    if upload.report:
        metrics = "\n\n".join(measured(upload.report))
    return "\n\n".join(
        [
            "\n".join(["---", *front, "---"]),
            f"# {repository.rpartition('/')[2]}: {Path(upload.base).name} tuned with Meditune",
            *warnings(upload.report),
            "## Use",
            f"    hf download {repository} --local-dir FOLDER\n    meditune serve FOLDER",
            "This is a plain transformers model in BF16. Its chat template writes the same prompts as in training, so "
            "servers such as vLLM use the prompts that it was trained on. `prompt.json` describes the prompt format.",
            metrics,
            "## Training data",
            "\n".join(f"- {sentence}" for sentence in licence_requirements(upload.data.terms)),
            "## Comparison of the merged model with the tuned model",
            f"{facts['drift']['summary']}\n",
        ]
    )


def _licence(base: str) -> str:
    return CATALOGUE[base].licence if base in CATALOGUE else "the base model's own licence"
