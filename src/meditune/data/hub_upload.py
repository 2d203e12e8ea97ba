"""A prepared set to the Hugging Face hub: what would go there, whether it may, and the upload."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meditune.data.dataset_card import SPLITS, SYNTHETIC, identifiers, synthetic_rows
from meditune.data.prepare import stored_data
from meditune.data.read_sources import Terms, demands, restricted, terms_of
from meditune.data.sources import SOURCES, offline
from meditune.errors import DataError, MedituneError
from meditune.files import read_text

CARD = "README.md"
FILES = (CARD, *(f"{name}.jsonl" for name in SPLITS.values()))
"""All that is sent. Refused rows stay, and what names places on this machine."""


@dataclass(frozen=True)
class Upload:
    """What would go where."""

    folder: Path
    repository: str
    private: bool
    rows: dict[str, int]
    terms: Terms
    identifiers: str
    """Whether people's identifiers are in it, in words"""

    def text(self) -> str:
        """For people, before they agree."""
        size = sum((self.folder / name).stat().st_size for name in FILES)
        who = "only you and your organization can see it" if self.private else "EVERYONE can see it"
        rows = ", ".join(f"{count:,} {name}" for name, count in self.rows.items())
        invented = synthetic_rows(self.terms)
        return "\n".join(
            [
                f"Sent to {endpoint()}/datasets/{self.repository}, where {who}:",
                f"  {sum(self.rows.values()):,} rows ({rows}), {size / 1e6:,.1f} MB: {', '.join(FILES)}",
                *([f"  {invented:,} rows are synthetic, and the card says so."] if invented else []),
                f"  {self.identifiers}",
                *(f"  {sentence}" for sentence in demands(self.terms)),
            ]
        )


def plan_upload(folder: Path, repository: str, private: bool) -> Upload:
    """What of a prepared set, or of the run that holds it, would be sent.

    Raises DataError where it may not be: restricted rows, or invented ones that the card passes over in silence.
    """
    place = folder / "data" if (folder / "data" / "quality.json").is_file() else folder
    if not (place / "quality.json").is_file():
        raise DataError(f"{folder}: no prepared data here. Make them with meditune data prepare RECIPE --output DIR.")
    data = stored_data(place)
    splits = data.splits.named()
    terms = terms_of(example for examples in splits.values() for example in examples)
    if held := restricted(terms):
        named = ", ".join(f"{count:,} rows of {name}" for name, count in held.items())
        raise DataError(
            f"{place} is restricted ({named}), and so is what is made of it: it may not be passed on, not even to a "
            "private place on someone else's machine. Nothing was sent."
        )
    left = identifiers_left(data.quality["phi"])
    if left:
        raise DataError(
            f"{place}: {' and '.join(left)} hold identifiers of people, which were left in the text. Prepare the data "
            "again with --set data.phi.action=mask, or take these rows out. Nothing was sent."
        )
    card = read_text(place / CARD)
    if (data.synthetic or synthetic_rows(terms)) and "synthetic" not in card.casefold():
        raise DataError(
            f"{place / CARD} doesn't say that {synthetic_rows(terms):,} of the rows are synthetic. Say so in the card "
            f'("{SYNTHETIC}"), or remove them. Nothing was sent.'
        )
    counts = {name: len(rows) for name, rows in splits.items()}
    return Upload(place, repository, private, counts, terms, identifiers(data.quality))


def identifiers_left(looked: dict[str, Any]) -> list[str]:
    """Sources of the user's own in which identifiers were found and left, with how many examples."""
    if looked["action"] != "report":
        return []
    return [
        f"{row['with_identifiers']:,} examples of {name}"
        for name, row in looked["sources"].items()
        if name not in SOURCES and row["with_identifiers"]
    ]


def push(upload: Upload) -> str:
    """Send a set; returns the commit's address. Raises MedituneError where the hub doesn't take it."""
    return send(upload.repository, "dataset", upload.folder, FILES, upload.private)


def send(repository: str, kind: str, folder: Path, files: Sequence[str], private: bool) -> str:
    """Make a repository of a kind (dataset, model) unless it is there, send files in one commit; returns its address.

    The token is the hub's own (HF_TOKEN, or `hf auth login`). Raises MedituneError where the hub doesn't take it.
    """
    if offline():
        raise MedituneError("Sending needs the network, and MEDITUNE_OFFLINE or HF_HUB_OFFLINE is set. Unset it.")
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi(endpoint=endpoint(), library_name="meditune")
    try:
        api.create_repo(repository, repo_type=kind, private=private, exist_ok=True)
        if private and not api.repo_info(repository, repo_type=kind).private:
            raise MedituneError(
                f"{repository} is there already, and everyone can see it. Nothing was sent. Add --public, or name "
                "another."
            )
        done: Any = api.upload_folder(
            repo_id=repository,
            repo_type=kind,
            folder_path=folder,
            allow_patterns=list(files),
            commit_message="Prepared by Meditune",
        )
    except HFValidationError as error:
        raise MedituneError(f"{repository}: no name of a repository; give OWNER/NAME ({error}).") from error
    except HfHubHTTPError as error:
        said = error.server_message or f"status {error.response.status_code}"
        advice = "Check the name, and whether the token may write there; the same command goes on."
        if error.response.status_code == 401:
            advice = "Put a token that may write there into HF_TOKEN, or run hf auth login."
        raise MedituneError(f"{endpoint()} didn't take {repository}: {said}. {advice}") from error
    except (httpx2.HTTPError, OSError) as error:
        raise MedituneError(f"{endpoint()}: the upload broke off ({error}). Try the same command again.") from error
    return str(done.commit_url)


def endpoint() -> str:
    """The hub's address."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
