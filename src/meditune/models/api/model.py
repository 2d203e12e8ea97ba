"""Which names mean an API model, and where it is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from meditune.errors import ModelError
from meditune.files import read_json, write_json
from meditune.models.api.client import Client
from meditune.models.catalogue import CATALOGUE
from meditune.prompts import CHAT_SYSTEM, load_format
from meditune.recipe import ApiSpec, PromptFormat

PREFIX = "api:"
FILE = "api.json"
"""In a tuned model's folder, where a model with weights has its adapter."""


@dataclass(frozen=True)
class ApiModel:
    """A model that is reached through an API."""

    name: str
    """As the API knows it."""
    spec: ApiSpec
    form: PromptFormat | None = None
    """The prompt format saved with it, if any."""
    system: str = CHAT_SYSTEM

    @property
    def title(self) -> str:
        """Name and place, for people."""
        return f"{self.name} at {self.spec.host}"

    def client(self) -> Client:
        """Connects to its API. Raises ModelError as `key`."""
        return Client(self.spec, self.key())

    def key(self) -> str | None:
        """The key to its API, None where none is due.

        Raises ModelError where it is missing or no key, or the network is forbidden.
        """
        forbidden = os.environ.get("MEDITUNE_OFFLINE", "").strip().lower() in {"1", "true", "yes", "on"}
        if forbidden and not self.spec.is_local:
            raise ModelError(f"{self.title} needs the network, and MEDITUNE_OFFLINE is set. Unset it.")
        variable = self.spec.key_variable
        if variable is None:
            return None
        key = os.environ.get(variable, "").strip()
        if not key:
            raise ModelError(
                f"{self.title} needs a key, and the environment variable {variable} isn't set. Put the key into it, or "
                "name another variable with --set model.api.key_variable=NAME (null where the API needs no key)."
            )
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ModelError(f"What {variable} holds is no key: it has blanks or characters other than ASCII in it.")
        return key

    def save(self, folder: Path, base: str) -> None:
        """Write down, in a model's folder, how to reach this model, which was tuned from `base`."""
        place = {"url": self.spec.url, "key_variable": self.spec.key_variable}
        write_json(folder / FILE, {"model": self.name, "base": base, **place, "system": self.system})


def find(name: str, spec: ApiSpec) -> ApiModel | None:
    """The API model of that name (catalogue name, `api:NAME`, or the folder of a tuned one), or None.

    A tuned model's folder says itself where the model is; for the others `spec` does. Raises ModelError where such a
    folder is damaged, or `api:` stands alone.
    """
    entry = CATALOGUE.get(name)
    if entry and entry.api:
        return ApiModel(name, spec)
    if name.startswith(PREFIX):
        if name == PREFIX:
            raise ModelError("model.base: name the model as its API does after api: (api:gpt-4.1-mini).")
        return ApiModel(name.removeprefix(PREFIX), spec)
    given = Path(name).expanduser()
    for folder in (given / "model", given):
        if (folder / FILE).is_file():
            return _stored(folder, spec)
    return None


def _stored(folder: Path, spec: ApiSpec) -> ApiModel:
    said = read_json(folder / FILE)
    try:
        place = {name: said[name] for name in ("url", "key_variable")}
        spec = ApiSpec.model_validate(spec.model_dump() | place)
        return ApiModel(said["model"], spec, load_format(folder), said["system"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder / FILE} isn't what Meditune wrote there. Copy the model's folder again.") from error
