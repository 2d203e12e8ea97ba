"""Where batches of rows are worked on: here, in a few processes, or on a Ray cluster. What comes back is in order."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal, Protocol, TypeVar

from meditune.errors import MedituneError, install_command

Name = Literal["local", "ray"]
Item = TypeVar("Item")
Made = TypeVar("Made")
AHEAD = 2
"""Batches for each worker that are under way or wait for their turn: more would only take memory."""


class Map(Protocol):
    """Applies a function to each item, in order, as `map` does."""

    def __call__(self, function: Callable[[Item], Made], items: Iterable[Item], /) -> Iterator[Made]:
        """What the function makes of each item."""
        ...


@contextmanager
def engine(name: Name, workers: int) -> Iterator[Map]:
    """What applies a function, which must be picklable, to batches, in so many processes; with one worker, here.

    Ray is asked for by RAY_ADDRESS, and a cluster of `workers` processes is started here without it. Raises
    MedituneError where Ray isn't installed.
    """
    if name == "ray":
        with _ray(workers) as found:
            yield found
    elif workers == 1:
        yield map
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, context, initializer=_end_with_parent) as pool:

            def applied(function: Callable[[Item], Made], items: Iterable[Item], /) -> Iterator[Made]:
                under_way = (pool.submit(function, item) for item in items)
                return _in_order(under_way, lambda future: future.result(), workers * AHEAD)

            try:
                yield applied
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


@contextmanager
def _ray(workers: int) -> Iterator[Map]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
    except ImportError as error:
        raise MedituneError(f"--engine ray needs one more package: {install_command('scale')}.") from error
    elsewhere = os.environ.get("RAY_ADDRESS")
    own = {} if elsewhere else {"num_cpus": workers, "include_dashboard": False}
    ray.init(address=elsewhere, log_to_driver=False, logging_level="error", **own)
    slots = max(int(ray.cluster_resources().get("CPU", 1)), 1)
    apply = ray.remote(_apply)

    def applied(function: Callable[[Item], Made], items: Iterable[Item], /) -> Iterator[Made]:
        shared = ray.put(function)
        return _in_order((apply.remote(shared, item) for item in items), ray.get, slots * AHEAD)

    try:
        yield applied
    finally:
        ray.shutdown()


def _apply(function: Callable[[Item], Made], item: Item) -> Made:
    return function(item)


def _in_order(under_way: Iterable[Any], result: Callable[[Any], Made], most: int) -> Iterator[Made]:
    """The results of work that begins as it is asked for, at most so many at a time."""
    waiting: deque[Any] = deque()
    for each in under_way:
        waiting.append(each)
        if len(waiting) >= most:
            yield result(waiting.popleft())
    while waiting:
        yield result(waiting.popleft())


def _end_with_parent() -> None:
    """Let this worker end when the process that started it was killed; it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only workers call this"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
