"""Watches what is loaded: a dead process is seen within two seconds, a hung model when it is idle.

`Status` is read every second. A model that nobody has used for a while runs a tiny forward pass;
one that fails or hangs is asked again until it works.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

from gpuserver.errors import EngineBusy, EngineFailed, EngineStalled, GpuServerError
from gpuserver.observability import get_logger
from gpuserver.providers import Watched
from gpuserver.runtimes.entry import Entry
from gpuserver.runtimes.runtimes import Runtimes

log = get_logger(__name__)

_EVERY_SECONDS: Final = 1.0
_IDLE_SECONDS: Final = 30.0
_RETRY_SECONDS: Final = 5.0


class Prober:
    """Keeps `Entry.problem` true for every loaded runtime that can be watched."""

    def __init__(
        self,
        runtimes: Runtimes,
        deadline: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """A forward pass that takes longer than `deadline` seconds has failed."""
        self._runtimes = runtimes
        self._deadline = deadline
        self._clock = clock

    async def run_forever(self) -> None:
        """Look every second; probes run beside it, for a hung one must not hide another."""
        async with asyncio.TaskGroup() as probes:
            while True:
                for entry in self.due():
                    entry.probe = probes.create_task(self.probe(entry))
                await asyncio.sleep(_EVERY_SECONDS)

    def due(self) -> list[Entry]:
        """Look at every runtime; those that a probe is due for."""
        return [entry for entry in self._runtimes.running() if self._is_due(entry)]

    def _is_due(self, entry: Entry) -> bool:
        if not isinstance(entry.runtime, Watched):
            return False
        status, now = entry.runtime.status(), self._clock()
        if status.state == "asleep":
            return False
        if status.state == "restarting" and entry.problem is None:
            # Its next process is new: nothing is known of that until it has worked.
            entry.problem, entry.quiet_since = EngineFailed(engine=entry.key.provider), now
        if (status.running or status.waiting) and entry.problem is None:
            entry.quiet_since = now
        # One that does not come back by itself may do so when it is asked.
        soon = entry.problem is not None and status.state == "ready"
        patience = _RETRY_SECONDS if soon else _IDLE_SECONDS
        return entry.probe is None and now - entry.quiet_since >= patience

    async def probe(self, entry: Entry) -> None:
        """One forward pass; says in the entry how it went."""
        runtime: Any = entry.runtime
        problem = await self._problem(entry, runtime)
        if entry.runtime is not runtime:
            return  # closed meanwhile
        entry.probe, entry.quiet_since = None, self._clock()
        if problem is not None and entry.problem is None:
            log.error("model does not work", model=entry.name, code=problem.code)
        elif problem is None and entry.problem is not None:
            log.info("model works again", model=entry.name)
        entry.problem = problem

    async def _problem(self, entry: Entry, runtime: Watched) -> GpuServerError | None:
        try:
            async with asyncio.timeout(self._deadline):
                await runtime.probe()
        except TimeoutError:
            return EngineStalled(engine=entry.key.provider, limit=f"{self._deadline:g}")
        except EngineBusy:
            return entry.problem  # it works for others
        except GpuServerError as error:
            return error
        # The top of this task: a bug in one provider must not end the watch over the others.
        except Exception:
            log.exception("probe failed", model=entry.name)
            return EngineFailed(engine=entry.key.provider)
        return None
