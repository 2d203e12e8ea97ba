"""Writing to the store, in threads of its own: while it is locked they all wait, and nothing else may wait with them.

Reading goes on meanwhile, and the event loop's own threads are left to that and to whatever an emergency needs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

Result = TypeVar("Result")
Given = ParamSpec("Given")
AT_ONCE = 16
_THREADS = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="meditune-store")


async def stored(call: Callable[Given, Result], *args: Given.args, **named: Given.kwargs) -> Result:
    """What the call returns."""
    return await asyncio.get_running_loop().run_in_executor(_THREADS, lambda: call(*args, **named))
