"""The processes that train together, as torchrun starts and numbers them. Where there is one, all of this does nothing.

torchrun gives each process its number (RANK), the number within its machine (LOCAL_RANK) and how many there are
(WORLD_SIZE). Number 0, the first, owns the run's folder and is the only one that prints; the others compute.
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
"""So long may the first process prepare data, or write replay text, while the others wait."""
LAG = 60.0
"""Seconds in which a file of one machine becomes seen by the others: network file systems remember what isn't there."""


def world() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def rank() -> int:
    """This process's number, from 0."""
    return int(os.environ["RANK"]) if world() > 1 else 0


def local_rank() -> int:
    """This process's number on its machine, from 0; the number of the GPU that it takes."""
    return int(os.environ.get("LOCAL_RANK", "0")) if world() > 1 else 0


def local_world() -> int:
    """How many of the processes are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world() > 1 else 1


def is_first() -> bool:
    """Whether this process owns the run's folder and prints."""
    return rank() == 0


@contextmanager
def process_group() -> Iterator[None]:
    """Be one of the processes inside the block; only the first prints there.

    An error in one ends all: the first to fail raises it, the others, whose waiting fails in consequence, end without
    a word. Raises MedituneError where this machine has too few GPUs, or another process was killed.
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
                "Another process of this training ended without a word, perhaps killed for its memory. What is "
                "finished is kept; run the same command again to go on."
            ) from error
        raise
    finally:
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def barrier() -> None:
    """Return when all processes have come here."""
    if world() > 1:
        import torch

        all_reduce_sum(torch.zeros(1))


def broadcast(value: Value) -> Value:
    """The first process's value, in all of them."""
    if world() == 1:
        return value
    import torch
    import torch.distributed as dist

    values = [value]
    dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]


def all_reduce_sum(tensor: Any) -> Any:
    """The tensor, which now holds the sum over all processes."""
    if world() > 1:
        import torch.distributed as dist

        dist.all_reduce(tensor)
    return tensor


def broadcast_tensor(tensor: Any) -> None:
    """Put the first process's values into the tensor."""
    if world() > 1:
        import torch.distributed as dist

        dist.broadcast(tensor, src=0)


def only_first(manager: AbstractContextManager[Any]) -> AbstractContextManager[Any]:
    """The context manager in the first process; one that does nothing in the others."""
    return manager if is_first() else nullcontext()


@contextmanager
def one_on_each_machine_first() -> Iterator[None]:
    """Let one process of each machine do the block before the others do: it fetches what they then find there."""
    if local_rank():
        barrier()
    yield
    if not local_rank():
        barrier()


def check_shared(path: Path) -> None:
    """Raise MedituneError where this process doesn't see what the first one wrote."""
    deadline = time.monotonic() + LAG
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.5)
    if not path.exists():
        raise MedituneError(
            f"{path} isn't there on {socket.gethostname()}. All machines of a training must see the same --output "
            "folder: put it on a file system that they share."
        )


def _join() -> Any:
    """Meet the others; returns the store by which they tell each other what can't wait."""
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    backend = "gloo"
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        if local_rank() >= count:
            raise MedituneError(
                f"{local_world()} processes were started on {socket.gethostname()}, which has {count} GPUs. Give "
                f"torchrun --nproc-per-node {count}."
            )
        torch.cuda.set_device(local_rank())
        backend = "cpu:gloo,cuda:nccl"
    store, number, count = next(rendezvous("env://", timeout=WAIT))
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=WAIT)
    return store


def _fail(error: BaseException, store: Any) -> None:
    """Return in the first process that fails; end the others without a word."""
    # torchrun's request to end comes a moment after a terminal's ctrl-C, and would break into the last words.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    try:
        earlier = store.add(f"failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", 1) > 1
    except RuntimeError:
        earlier = True  # The process that kept the store is gone, and has said why.
    if earlier:
        raise SystemExit(getattr(error, "exit_code", 1)) from None
