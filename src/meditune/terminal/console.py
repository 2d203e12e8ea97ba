"""What every command shows with: standard output, and the question whether data may leave the machine."""

from __future__ import annotations

import sys

from rich.console import Console

from meditune.errors import MedituneError
from meditune.remote.estimate import Approve, refuse

WIDE = 200


def console() -> Console:
    """Standard output; plain text where it isn't a terminal, and wide, because nothing there needs wrapping."""
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDE)


def refuse_upload(text: str) -> None:
    """Approve of no upload."""
    raise MedituneError(f"Nothing was sent. Data would leave this machine:\n{text}\nTo agree, add --yes.")


def approval(yes: bool, refusal: Approve = refuse) -> Approve:
    """What answers for the user before anything is sent: --yes, or an answer typed into a terminal, else `refusal`."""

    def approve(text: str) -> None:
        if not yes and not sys.stdin.isatty():
            refusal(text)
        print(text, file=sys.stderr)
        if not yes:
            print("Send it? [y/N] ", end="", file=sys.stderr, flush=True)
            if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
                raise MedituneError("Nothing was sent.")

    return approve
