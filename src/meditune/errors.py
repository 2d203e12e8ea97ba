"""Exceptions whose messages are written for users.

Every message says what is wrong, where (file, line, key) and what to do next. The command line prints it without a
traceback and exits with the error's exit code.
"""

from __future__ import annotations

import errno
import shlex
from pathlib import Path


def install_command(*extras: str) -> str:
    """Return the command that installs Meditune's extras, for an error message.

    In a checkout, the command installs from the checkout. If Meditune was installed from a wheel, pip keeps the
    installed version and adds the packages of its extras.
    """
    source = Path(__file__).resolve().parents[2]
    chosen = f"[{','.join(extras)}]"
    if not (source / "pyproject.toml").is_file():
        return f"pip install {shlex.quote(f'meditune{chosen}')}"
    place = "." if source == Path.cwd().resolve() else source
    return f"pip install --editable {shlex.quote(f'{place}{chosen}')}"


def os_error_sentence(error: OSError) -> str | None:
    """Return a sentence about a full disk or an unusable file; None for errors that the user can't correct."""
    if error.errno == errno.ENOSPC:
        return "the disk is full. Free some space and run the same command again."
    if error.filename is None:
        return None
    return f"{error.filename}: {error.strerror}. Correct the problem or choose another path."


class MedituneError(Exception):
    """An error that the user can correct. The message is shown unchanged."""

    exit_code = 1


class RecipeError(MedituneError):
    """An error in a recipe or in a `--set` option."""

    exit_code = 2


class DiskFullError(MedituneError):
    """A file or folder that can't be written because the disk is full."""


class DataError(MedituneError):
    """Data that are missing, damaged, or would make the result worthless (leakage)."""

    exit_code = 3


class ModelError(MedituneError):
    """A model that is unavailable, can't be read, or can't be used for a task."""

    exit_code = 4


class StoreError(DataError):
    """A server's store that can't be read or written, which isn't the caller's fault."""


class DamagedIndexError(DataError):
    """An index whose files are missing or damaged when it is searched, which isn't the caller's fault."""


class EngineError(ModelError):
    """An engine that fails, closes or becomes unreachable while it answers, which isn't the caller's fault."""


class EngineUnavailableError(EngineError):
    """An engine that has stopped and is being restarted, or couldn't be restarted."""

    def __init__(self, message: str, retry_after_s: float, given_up: bool = False) -> None:
        """Store the seconds until a retry. With `given_up`, no restart will be tried, so the process should end."""
        super().__init__(message)
        self.retry_after_s, self.given_up = retry_after_s, given_up


class GateError(MedituneError):
    """A model that doesn't meet the gate's policy, or server settings that aren't safe."""

    exit_code = 5


class DriftError(MedituneError):
    """Drift in requests or answers, or a version that was withdrawn because answers got worse."""

    exit_code = 6


class Stopped(BaseException):
    """Ctrl-C or a signal to terminate. It isn't an Exception, so that `except Exception` doesn't catch it."""

    exit_code = 130
