"""Those whose turn has not come yet, in order, each told how many come first."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Final

from gpuserver.errors import EngineBusy
from gpuserver.metrics import Meter
from gpuserver.providers import Waiting

_FIRST_GUESS: Final = 5.0
_WEIGHT: Final = 0.2
"""Of the latest answer in the usual length of one."""
_PAUSE_SECONDS: Final = 1.0
"""Between two words to one who waits."""
_AGAIN_SECONDS: Final = 5.0
"""After so long the same is said again: whoever hears nothing takes the model for hung."""


class WaitingLine:
    """Lets `running` in at the same moment and `waiting` stand behind them; of one event loop."""

    def __init__(
        self, running: int, waiting: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._room, self._longest, self._clock = running, waiting, clock
        self._line: deque[asyncio.Event] = deque()
        self._usual = _FIRST_GUESS
        self.running = 0

    @property
    def waiting(self) -> int:
        return len(self._line)

    async def enter(self) -> AsyncGenerator[Waiting, None]:
        """Ends when it is the caller's turn, which `leave` ends; says first how long that may be.

        Raises EngineBusy. Closed before its end, it has not entered.
        """
        if self.running < self._room:
            self.running += 1
            return
        if len(self._line) >= self._longest:
            raise EngineBusy(seconds=self._seconds(len(self._line)))
        place = asyncio.Event()
        self._line.append(place)
        now = asyncio.get_running_loop().time
        told, at = 0, -math.inf
        try:
            while place in self._line:
                place.clear()
                position = self._line.index(place) + 1
                left = at - now() + (_AGAIN_SECONDS if position == told else _PAUSE_SECONDS)
                if left <= 0:
                    told, at = position, now()
                    yield Waiting(position, self._seconds(position))
                    continue
                with suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await place.wait()
        except BaseException:
            if place in self._line:
                self._line.remove(place)
                self._moved()
            else:
                self._next()
            raise

    @asynccontextmanager
    async def place(self, meter: Meter) -> AsyncIterator[AsyncGenerator[Waiting, None]]:
        """The waits before the caller's turn, which lasts from their end to the block's.

        `meter` is told how long they took. Raises EngineBusy in the block.
        """
        asked, entered = self._clock(), None

        async def waits() -> AsyncGenerator[Waiting, None]:
            nonlocal entered
            async with aclosing(self.enter()) as line:
                async for waiting in line:
                    yield waiting
            entered = self._clock()
            meter.waited(entered - asked)

        async with aclosing(waits()) as waiting:
            try:
                yield waiting
            finally:
                if entered is not None:
                    self.leave(entered)

    def leave(self, entered: float) -> None:
        """The turn that began at `entered`, on the clock, is over."""
        self._usual += _WEIGHT * (self._clock() - entered - self._usual)
        self._next()

    def _next(self) -> None:
        self.running -= 1
        if self._line:
            self.running += 1
            self._line.popleft().set()
            self._moved()

    def _moved(self) -> None:
        for place in self._line:
            place.set()

    def _seconds(self, position: int) -> int:
        """About how long until so many more have been answered."""
        return max(1, math.ceil(self._usual * position / self._room))
