"""Coordination of the processes that torchrun starts for distributed training; no effect with a single process.

torchrun sets environment variables for each process: its number (RANK), its number on its machine (LOCAL_RANK) and the
number of processes (WORLD_SIZE). All processes train; only the first (RANK 0) prints and manages the run's folder.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from meditune.errors import MedituneError

Value = TypeVar("Value")

WAIT = timedelta(hours=6)
"""The longest time that the other processes wait while the first process prepares data or generates replay text"""
LAG = 60.0
"""Seconds to wait for a file from another machine, because network file systems cache that a file doesn't exist"""


def world() -> int:
    """Return the number of processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def rank() -> int:
    """Return this process's number (0-based)."""
    return int(os.environ["RANK"]) if world() > 1 else 0


def local_rank() -> int:
    """Return this process's number on its machine (0-based), which is also the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0")) if world() > 1 else 0


def local_world() -> int:
    """Return the number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world() > 1 else 1


def is_first() -> bool:
    """Return whether this is the first process, which prints and manages the run's folder."""
    return rank() == 0


@contextmanager
def process_group() -> Iterator[None]:
    """Join the process group for the duration of the block, in which only the first process prints.

    An error in one process ends all processes. The process that fails first raises its error. In the other processes,
    collective operations then fail, and the processes end silently. Raises MedituneError if this machine has too few
    GPUs, or if another process was killed.
    """
    if world() == 1:
        yield
        return
    store = _join()
    import torch.distributed as dist

    try:
        with ExitStack() as stack:
            if not is_first():
                nowhere = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
                stack.enter_context(redirect_stdout(nowhere))
                stack.enter_context(redirect_stderr(nowhere))
            yield
    except SystemExit as ended:
        if ended.code:
            _fail(ended, store)
        raise
    except BaseException as error:
        _fail(error, store)
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise MedituneError(
                "Another process of this training run ended without an error message, perhaps because memory ran out. "
                "Finished work is kept; run the same command again to resume."
            ) from error
        raise
    finally:
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def barrier() -> None:
    """Wait until all processes have reached this call."""
    if world() > 1:
        import torch

        all_reduce_sum(torch.zeros(1))


def broadcast(value: Value) -> Value:
    """Return the value from the first process in all processes."""
    if world() == 1:
        return value
    import torch
    import torch.distributed as dist

    values = [value]
    dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]


def all_reduce_sum(tensor: Any) -> Any:
    """Replace the tensor in place with its sum over all processes, and return it."""
    if world() > 1:
        import torch.distributed as dist

        dist.all_reduce(tensor)
    return tensor


def broadcast_tensor(tensor: Any) -> None:
    """Copy the first process's values into the tensor of every process."""
    if world() > 1:
        import torch.distributed as dist

        dist.broadcast(tensor, src=0)


def only_first(manager: AbstractContextManager[Any]) -> AbstractContextManager[Any]:
    """Return `manager` in the first process, and a context manager that does nothing in the other processes."""
    return manager if is_first() else nullcontext()


@contextmanager
def one_on_each_machine_first() -> Iterator[None]:
    """Run the block first in one process per machine, so that the other processes find what was downloaded."""
    if local_rank():
        barrier()
    yield
    if not local_rank():
        barrier()


def check_shared(path: Path) -> None:
    """Raise MedituneError if this process can't see a file that the first process wrote."""
    deadline = time.monotonic() + LAG
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.5)
    if not path.exists():
        raise MedituneError(
            f"{path} doesn't exist on {socket.gethostname()}. All machines that train together need the same --output "
            "folder: put it on a shared file system."
        )


def _join() -> Any:
    """Join the other processes and return the store through which they signal failures."""
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    backend = "gloo"
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        if local_rank() >= count:
            raise MedituneError(
                f"{local_world()} processes were started on {socket.gethostname()}, which has {count} GPUs. Start "
                f"torchrun with --nproc-per-node {count}."
            )
        torch.cuda.set_device(local_rank())
        backend = "cpu:gloo,cuda:nccl"
    store, number, count = next(rendezvous("env://", timeout=WAIT))
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=WAIT)
    return store


def _fail(error: BaseException, store: Any) -> None:
    """Return in the process that failed first; in the others, raise SystemExit, which ends them silently."""
    # After Ctrl-C in a terminal, torchrun sends a second signal, which would interrupt the last output.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    try:
        earlier = store.add(f"failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", 1) > 1
    except RuntimeError:
        earlier = True  # The process that hosts the store has ended, and has reported why.
    if earlier:
        raise SystemExit(getattr(error, "exit_code", 1)) from None
