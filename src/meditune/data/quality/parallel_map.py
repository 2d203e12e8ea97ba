"""Ordered parallel map over batches of rows: in this process, in worker processes, or on a Ray cluster."""

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
BATCHES_PER_WORKER = 2
"""Batches per worker that are in progress or queued; more would only use memory"""


class Map(Protocol):
    """A function that applies another function to each item, in order, like `map`."""

    def __call__(self, function: Callable[[Item], Made], items: Iterable[Item], /) -> Iterator[Made]:
        """Return the function's result for each item."""
        ...


@contextmanager
def engine(name: Name, workers: int) -> Iterator[Map]:
    """Yield a map that applies a picklable function to batches in `workers` processes; one worker means this process.

    The engine ray connects to the cluster in RAY_ADDRESS; if that isn't set, it starts a local cluster of `workers`
    processes. Raises MedituneError if Ray isn't installed.
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
                return _in_order(under_way, lambda future: future.result(), workers * BATCHES_PER_WORKER)

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
        return _in_order((apply.remote(shared, item) for item in items), ray.get, slots * BATCHES_PER_WORKER)

    try:
        yield applied
    finally:
        ray.shutdown()


def _apply(function: Callable[[Item], Made], item: Item) -> Made:
    return function(item)


def _in_order(pending: Iterable[Any], result: Callable[[Any], Made], max_pending: int) -> Iterator[Made]:
    """Yield results in order; work is started on demand, at most `max_pending` items at a time."""
    waiting: deque[Any] = deque()
    for each in pending:
        waiting.append(each)
        if len(waiting) >= max_pending:
            yield result(waiting.popleft())
    while waiting:
        yield result(waiting.popleft())


def _end_with_parent() -> None:
    """End this worker when its parent process is killed; otherwise it would wait for work forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only workers call this"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
