"""One load: a runtime made and loaded in a thread and what that took, or broken off half-way."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from gpuserver.errors import ShuttingDown
from gpuserver.machine import Machine
from gpuserver.metrics import Meter
from gpuserver.observability import get_logger
from gpuserver.providers import LoadStage, Place, Runtime, RuntimeKey
from gpuserver.runtimes.entry import Entry, Growth
from gpuserver.runtimes.fitting import HOST
from gpuserver.threads import begin_in_thread, finish_in_thread

log = get_logger(__name__)

_PRESS_SECONDS: Final = 0.2


class Loader:
    """Makes runtimes of the classes that `factory` finds, and loads them."""

    def __init__(
        self,
        place: Place,
        factory: Callable[[RuntimeKey], Any],
        meter: Callable[[str], Meter],
        machine: Machine,
        clock: Callable[[], float],
    ) -> None:
        """`meter` gives what counts the work of the runtime of a name."""
        self._place, self._factory, self._meter = place, factory, meter
        self._machine, self._clock = machine, clock

    async def load(self, entry: Entry, where: tuple[int, ...] = (HOST,)) -> None:
        """Load what the entry is for. A failed load is closed before it is told of.

        Cancelled, it breaks the load off and waits until that has ended; cancelled again, it
        leaves the load behind. Raises whatever the runtime does.
        """
        loop, stop = asyncio.get_running_loop(), threading.Event()

        def tell(stage: LoadStage, share: float | None) -> None:
            # Where a load tells how it goes on is where it can be stopped: in a long download.
            if stop.is_set():
                raise ShuttingDown
            loop.call_soon_threadsafe(entry.tell, stage, share)

        place = replace(
            self._place,
            adapters=entry.key.adapters,
            meter=self._meter(entry.name),
            on_progress=tell,
            gpu=None if where == (HOST,) else where[0],
        )
        entry.tell("loading", None)
        # It may import a library, which takes seconds.
        provider = await begin_in_thread(self._factory, entry.key)
        runtime: Runtime = provider(entry.key.model, place)
        work = begin_in_thread(self._grow, runtime, where)
        try:
            growth = await asyncio.shield(work)
        except asyncio.CancelledError:
            stop.set()
            await _break_off(entry, runtime, work)
            raise
        except BaseException:
            await finish_in_thread(end, entry, runtime)
            raise
        entry.start(runtime, growth, self._clock())

    def _grow(self, runtime: Runtime, where: tuple[int, ...]) -> Growth:
        """Load it and see what that took. Blocking."""
        began = self._clock()
        before = self._in_use()
        runtime.load()
        after = self._in_use()
        taken = {device: after[device] - before[device] for device in before.keys() & after}
        memory = max(0, taken.pop(HOST))
        on_gpus = {} if where == (HOST,) else {index: mb for index, mb in taken.items() if mb > 0}
        return Growth(memory, on_gpus, self._clock() - began)

    def _in_use(self) -> dict[int, int]:
        """Megabytes of each GPU that anybody uses, and of the host that this process does."""
        used = {gpu.index: gpu.total_mb - gpu.free_mb for gpu in self._machine.gpus()}
        return {**used, HOST: self._machine.resident_mb((os.getpid(),))}


def end(entry: Entry, runtime: Runtime) -> None:
    """Close a runtime, whatever that raises: nobody else may suffer from it. Blocking."""
    try:
        runtime.close()
    # The end of a runtime: what goes wrong in it can only be told to the log.
    except Exception:
        log.exception("runtime did not close", model=entry.name)


async def _break_off(entry: Entry, runtime: Runtime, work: asyncio.Future[Growth]) -> None:
    try:
        while not work.done():
            # Again and again: some notice it only once they have come to a certain point.
            await begin_in_thread(end, entry, runtime)
            await asyncio.wait([work], timeout=_PRESS_SECONDS)
        await finish_in_thread(end, entry, runtime)
    finally:
        if work.done():
            work.exception()  # nobody is left to be told of it
        else:
            work.cancel()
            log.warning("a load is left behind", model=entry.name)
