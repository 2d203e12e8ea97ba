"""Errors that are written for the person who reads them.

Every error says what is wrong, where (file, line, key) and what to do next. The command line prints the sentence
without a traceback and ends with the error's exit code.
"""

from __future__ import annotations

import shlex
from pathlib import Path


def install_command(*extras: str) -> str:
    """Return the command that installs Meditune's extras, for an error message.

    Meditune isn't on the package index, where its name may be taken by a stranger: the command installs from the
    source folder. It works from any folder where Meditune runs out of that one, else from within it.
    """
    source = Path(__file__).resolve().parents[2]
    inside = not (source / "pyproject.toml").is_file() or source == Path.cwd().resolve()
    place = f"{'.' if inside else source}[{','.join(extras)}]"
    return f"pip install --editable {shlex.quote(place)}"


class MedituneError(Exception):
    """Something the user can put right. The message is shown as it is."""

    exit_code = 1


class RecipeError(MedituneError):
    """A recipe, or a `--set` on the command line, that can't be used."""

    exit_code = 2


class DiskFullError(MedituneError):
    """A file or folder for which the disk has no room."""


class DataError(MedituneError):
    """Data that is missing, damaged, or would make the result worthless (leakage)."""

    exit_code = 3


class ModelError(MedituneError):
    """A model that can't be had, read, or used for what was asked."""

    exit_code = 4


class StoreError(DataError):
    """What a server keeps can't be read or written: no fault of who asks it."""


class EngineError(ModelError):
    """An engine that fails, closes, or can't be reached while it answers: no fault of who asks it."""


class EngineUnavailableError(EngineError):
    """An engine that has ended: it is being restarted, or could not be."""

    def __init__(self, message: str, retry_after_s: float, given_up: bool = False) -> None:
        """`given_up`: it is not tried again, so the process should end."""
        super().__init__(message)
        self.retry_after_s, self.given_up = retry_after_s, given_up


class GateError(MedituneError):
    """A model that doesn't meet the policy it was held to."""

    exit_code = 5


class DriftError(MedituneError):
    """Requests or answers that are no longer what they were."""

    exit_code = 6


class Stopped(BaseException):
    """The user pressed ctrl-C, or the system asked to end. Not an Exception, so that nothing swallows it."""

    exit_code = 130
