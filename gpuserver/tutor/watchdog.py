"""Notices an engine that hangs in the middle of its work."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from gpuserver.errors import EngineStalled


class Watchdog:
    """Raises EngineStalled in the block it guards when an engine keeps it waiting too long.

    One timer looks now and then: a timeout around each token would cost more than the token does.
    """

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._timeout = asyncio.timeout(None)
        self._timer: asyncio.TimerHandle | None = None
        self._limit = 0.0
        self._since: float | None = None
        self._stalled = False

    def expect(self, seconds: float) -> None:
        """The engine's next step is due within `seconds`."""
        self._limit, self._since = seconds, self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(seconds, self._look)

    def relax(self) -> None:
        """The engine has done its step; what follows is not its fault."""
        self._since = None

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            raise EngineStalled(engine=self._engine, limit=f"{self._limit:g}") from None

    def _look(self) -> None:
        self._timer = None
        if self._since is None:
            # Armed again by the next `expect`.
            return
        waited = self._loop.time() - self._since
        # Timers may come a hair early.
        if waited >= self._limit - 0.01:
            self._timeout.reschedule(self._loop.time())
        else:
            self._timer = self._loop.call_later(self._limit - waited, self._look)
