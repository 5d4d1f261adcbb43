"""An event loop whose time leaps from timer to timer: seconds are exact, and over at once."""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec

_P = ParamSpec("_P")


class _Selector(selectors.DefaultSelector):
    """Where it would wait for a time, that time is over at once."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(timeout if timeout is None else 0)
        if timeout is not None and not ready:
            self.now += max(0.0, timeout)
        return ready


class LeapingLoop(asyncio.SelectorEventLoop):
    """Its time stands still while anything can run. Not for work in threads or processes."""

    def __init__(self) -> None:
        self._leaping = _Selector()
        super().__init__(self._leaping)

    def time(self) -> float:
        return self._leaping.now


def in_leaps(test: Callable[_P, Coroutine[Any, Any, None]]) -> Callable[_P, None]:
    """A test that runs in a `LeapingLoop` of its own and leaves no task behind."""

    @functools.wraps(test)
    def run(*given: _P.args, **named: _P.kwargs) -> None:
        async def whole() -> None:
            await test(*given, **named)
            assert asyncio.all_tasks() == {asyncio.current_task()}

        with asyncio.Runner(loop_factory=LeapingLoop) as runner:
            runner.run(whole())

    return run
