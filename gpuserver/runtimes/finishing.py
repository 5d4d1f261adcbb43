"""Blocking work in a thread that is waited for, whatever becomes of the one who asked for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

_T = TypeVar("_T")


async def finish_in_thread(
    function: Callable[..., _T], *args: Any, stop: threading.Event | None = None
) -> _T:
    """Run a blocking function in a thread and wait for its end even when the caller is cancelled.

    A thread can't be stopped; leaving it behind would let a half-made thing outlive its owner.
    `stop` is set when nobody wants its result any more.
    """
    work = asyncio.get_running_loop().run_in_executor(None, function, *args)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        if stop is not None:
            stop.set()
        while not work.done():
            with suppress(asyncio.CancelledError):  # cancelled again
                await asyncio.wait([work])
        work.exception()  # nobody is left to be told of it
        raise
