"""An index that changes while it is served: its newest version is taken, so that what was retracted isn't found."""

from __future__ import annotations

import threading
from collections.abc import Callable

from meditune.errors import MedituneError
from meditune.retrieve.index import Index
from meditune.serve.logs import LOGGER

SECONDS = 30.0


def follow(index: Index, told: Callable[[str], None], seconds: float = SECONDS) -> Callable[[], None]:
    """Look for a newer version every so many seconds, and tell its content's hash; what is returned ends that.

    An index that can't be read is said in the log, once, and the version that is open stays in use.
    """
    ended = threading.Event()

    def look() -> None:
        in_trouble = False
        while not ended.wait(seconds):
            try:
                if index.refresh():
                    told(index.manifest.content)
                    LOGGER.info("the index has changed", extra={"index": index.manifest.content})
                in_trouble = False
            except MedituneError as error:
                if not in_trouble:
                    LOGGER.warning("the index's newest version can't be used", extra={"why": str(error)})
                in_trouble = True

    threading.Thread(target=look, name="index", daemon=True).start()
    return ended.set
