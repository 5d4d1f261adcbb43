"""Blocking work in threads: finished whatever becomes of the one who asked for it, or given up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

_T = TypeVar("_T")


async def finish_in_thread(
    function: Callable[..., _T], *args: Any, hurry: Callable[[], None] = lambda: None
) -> _T:
    """Run a blocking function in a thread and wait for its end even when the caller is cancelled.

    A thread can't be stopped; leaving it behind would let a half-made thing outlive its owner.
    `hurry` is called when the caller is cancelled: a long function may look out for that.
    """
    work = asyncio.get_running_loop().run_in_executor(None, function, *args)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        hurry()
        while not work.done():
            with suppress(asyncio.CancelledError):  # cancelled again
                await asyncio.wait([work])
        work.exception()  # nobody is left to be told of it
        raise


def begin_in_thread(function: Callable[..., _T], *args: Any) -> asyncio.Future[_T]:
    """Begin a blocking function in a thread that keeps no process from ending.

    A process waits at its end for the event loop's own threads, however long they take.
    """
    result: Future[_T] = Future()
    result.set_running_or_notify_cancel()

    def run() -> None:
        try:
            value = function(*args)
        except BaseException as error:  # noqa: BLE001 - the top of this thread
            result.set_exception(error)
        else:
            result.set_result(value)

    threading.Thread(target=run, name=function.__name__, daemon=True).start()
    return asyncio.wrap_future(result)
