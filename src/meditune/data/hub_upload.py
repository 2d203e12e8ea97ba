"""Upload of a prepared set to the Hugging Face hub: the plan, the checks and the upload itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meditune.data.dataset_card import SPLITS, SYNTHETIC, identifiers, synthetic_rows
from meditune.data.prepare import data_folder, stored_data
from meditune.data.read_sources import Terms, restricted, terms_of
from meditune.data.sources import SOURCES, licence_requirements, offline
from meditune.errors import DataError, MedituneError
from meditune.files import read_text

CARD = "README.md"
FILES = (CARD, *(f"{name}.jsonl" for name in SPLITS.values()))
"""The files that are sent. Rejected rows, and files that name local paths, are not sent."""


@dataclass(frozen=True)
class Upload:
    """A planned upload: the files to send, and the repository to send them to."""

    folder: Path
    repository: str
    private: bool
    rows: dict[str, int]
    terms: Terms
    identifiers: str

    def text(self) -> str:
        """Return the summary that the user sees before confirming the upload."""
        size = sum((self.folder / name).stat().st_size for name in FILES)
        who = "only you and your organization can see it" if self.private else "EVERYONE can see it"
        rows = ", ".join(f"{count:,} {name}" for name, count in self.rows.items())
        invented = synthetic_rows(self.terms)
        return "\n".join(
            [
                f"Upload to {endpoint()}/datasets/{self.repository}, where {who}:",
                f"  {sum(self.rows.values()):,} rows ({rows}), {size / 1e6:,.1f} MB: {', '.join(FILES)}",
                *([f"  {invented:,} rows are synthetic, and the card says so."] if invented else []),
                f"  {self.identifiers}",
                *(f"  {sentence}" for sentence in licence_requirements(self.terms)),
            ]
        )


def plan_upload(folder: Path, repository: str, private: bool) -> Upload:
    """Return the planned upload of a prepared set; `folder` is the set's folder, or that of the run with the set.

    Raises DataError for restricted rows, identifiers left in a user's own data, or synthetic rows that the card doesn't
    mention.
    """
    place = data_folder(folder)
    data = stored_data(place)
    splits = data.splits.named()
    terms = terms_of(example for examples in splits.values() for example in examples)
    if held := restricted(terms):
        named = ", ".join(f"{count:,} rows of {name}" for name, count in held.items())
        raise DataError(
            f"{place} is restricted ({named}). Neither this set nor anything derived from it may be shared, not even "
            "in a private repository on someone else's machine. Nothing was sent."
        )
    if left := identifiers_left(data.quality["phi"]):
        raise DataError(
            f"{place}: {' and '.join(left)} contain identifiers of people, which were left in the text. Prepare "
            "the data again with --set data.phi.action=mask, or remove these rows. Nothing was sent."
        )
    card = read_text(place / CARD)
    if (data.synthetic or synthetic_rows(terms)) and "synthetic" not in card.casefold():
        raise DataError(
            f"{place / CARD} doesn't say that {synthetic_rows(terms):,} of the rows are synthetic. Remove these rows, "
            f'or add this text to the card: "{SYNTHETIC}" Nothing was sent.'
        )
    counts = {name: len(rows) for name, rows in splits.items()}
    return Upload(place, repository, private, counts, terms, identifiers(data.quality))


def identifiers_left(phi: dict[str, Any]) -> list[str]:
    """Return phrases such as "3 examples of own" for the user's own sources in which identifiers were left."""
    return [
        f"{row['with_identifiers']:,} examples of {name}"
        for name, row in phi["sources"].items()
        if phi["action"] == "report" and name not in SOURCES and row["with_identifiers"]
    ]


def send(repository: str, kind: str, folder: Path, files: Sequence[str], private: bool) -> str:
    """Send files to a repository in one commit, and return the commit's URL.

    A repository that doesn't exist is created; its `kind` is dataset or model. The token comes from HF_TOKEN or
    `hf auth login`. Raises MedituneError if Meditune is offline, or if the upload is rejected or interrupted.
    """
    if offline():
        raise MedituneError(
            "Uploading needs the network, but MEDITUNE_OFFLINE or HF_HUB_OFFLINE is set. Unset the variable."
        )
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi(endpoint=endpoint(), library_name="meditune")
    try:
        api.create_repo(repository, repo_type=kind, private=private, exist_ok=True)
        if private and not api.repo_info(repository, repo_type=kind).private:
            raise MedituneError(
                f"The repository {repository} already exists and is public. Nothing was sent. Add --public, or "
                "choose another repository."
            )
        done: Any = api.upload_folder(
            repo_id=repository,
            repo_type=kind,
            folder_path=folder,
            allow_patterns=list(files),
            commit_message="Prepared by Meditune",
        )
    except HFValidationError as error:
        raise MedituneError(f"{repository}: not a valid repository name ({error}). Use OWNER/NAME.") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        advice = "Check the repository's name and the token's write access, then run the same command again to resume."
        if status == 401:
            advice = "Set HF_TOKEN to a token with write access, or run hf auth login."
        message = f"{error.server_message or f'status {status}'}. {advice}"
        raise MedituneError(f"{endpoint()} rejected the upload to {repository}: {message}") from error
    except (httpx2.HTTPError, OSError) as error:
        raise MedituneError(
            f"{endpoint()}: the upload was interrupted ({error}). Run the same command again."
        ) from error
    return str(done.commit_url)


def endpoint() -> str:
    """Return the address of the hub."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
