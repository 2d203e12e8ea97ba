"""The secret that surrogates are made with: this machine's own, never beside the data."""

from __future__ import annotations

import os
import secrets

from meditune.errors import DataError
from meditune.files import cache_folder

VARIABLE = "MEDITUNE_PHI_SECRET"
_FEWEST_CHARACTERS = 16


def secret() -> bytes:
    """From the environment's MEDITUNE_PHI_SECRET, else from the cache folder, where it is made on first use.

    Who has it and a guess at a name can test the guess, so it must not go where the surrogates go. Raises DataError
    where it is too short to be one.
    """
    given = os.environ.get(VARIABLE)
    file = cache_folder("phi") / "secret"
    if given is None:
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_name(f".secret.{os.getpid()}.partial")
            partial.touch(mode=0o600)
            partial.write_text(secrets.token_hex(32), encoding="ascii")
            partial.replace(file)
        given = file.read_text(encoding="ascii").strip()
    if len(given) < _FEWEST_CHARACTERS:
        where = VARIABLE if VARIABLE in os.environ else str(file)
        raise DataError(f"{where}: a secret of {_FEWEST_CHARACTERS} characters or more is needed for surrogates.")
    return given.encode()
