"""Blocking work that is carried to its end, whether or not its caller goes on waiting for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from gpuserver.threads import finish_in_thread

_T = TypeVar("_T")
_U = TypeVar("_U")


async def carry_out(work: Callable[[], _T], after: Callable[[_T], _U]) -> _U:
    """Do what blocks in a thread and then, in the event loop, what follows from it.

    Returns behind both also when it is cancelled: what the work reads is there until its end.
    """
    loop = asyncio.get_running_loop()
    done: list[_U] = []

    def both() -> None:
        result = work()
        loop.call_soon_threadsafe(lambda: done.append(after(result)))

    # The loop resumes this only behind what was called before it.
    await finish_in_thread(both)
    return done[0]


@asynccontextmanager
async def given_away(scratch: Path) -> AsyncIterator[None]:
    """A file that is gone at the end, unless the block has moved it."""
    try:
        yield
    finally:
        await asyncio.to_thread(scratch.unlink, missing_ok=True)
