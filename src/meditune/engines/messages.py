"""Messages between a server and the process of its engine, over a pipe: a length, then a pickled tuple.

Both ends are this package in processes of one user; nothing else writes into the pipe.
"""

from __future__ import annotations

import os
import pickle
import struct
import threading
from typing import Any

HEAD = struct.Struct("<I")
READ_BYTES = 1 << 20
CLOSE_S = 1.0
NOWHERE = -1


class Incoming:
    """The end that reads."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._left = b""

    def read(self) -> list[Any]:
        """All messages that are whole, at least one; none where the other end was closed.

        All of them at once: each return from the system waits until Python's lock is free, which takes as long as the
        engine's step.
        """
        while True:
            found = self._whole()
            if found:
                return found
            more = os.read(self._file, READ_BYTES)
            if not more:
                return []
            self._left += more

    def _whole(self) -> list[Any]:
        found, place = [], 0
        while len(self._left) - place >= HEAD.size:
            end = place + HEAD.size + HEAD.unpack_from(self._left, place)[0]
            if end > len(self._left):
                break
            found.append(pickle.loads(self._left[place + HEAD.size : end]))
            place = end
        self._left = self._left[place:]
        return found


class Outgoing:
    """The end that writes; from any thread."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._lock = threading.Lock()

    def write(self, *message: Any) -> None:
        """Send a message. Raises OSError where the other end is gone."""
        packed = pickle.dumps(message)
        left = memoryview(HEAD.pack(len(packed)) + packed)
        with self._lock:
            while left:
                left = left[os.write(self._file, left) :]

    def close(self) -> None:
        """Write no more: the file's number may soon be another file's. Whoever writes at this moment gets a second."""
        held = self._lock.acquire(timeout=CLOSE_S)
        self._file = NOWHERE
        if held:
            self._lock.release()
