"""Stops asking what keeps failing, and tries it again now and then."""

from __future__ import annotations

import time
from collections.abc import Callable


class CircuitBreaker:
    """Opens after so many failures in a row; from then on calls fail at once, without being tried.

    After a pause one call is let in as a trial: it closes the breaker, or doubles the pause.
    A call that is let in tells how it went by one of `succeeded`, `failed` and `left`. Seconds.
    A caller is whatever tells one call from another: the others' trial is not theirs to end.
    """

    def __init__(
        self,
        failures: int,
        pause: float,
        longest_pause: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit, self._clock = failures, clock
        self._first_pause, self._longest_pause = pause, longest_pause
        self._pause = pause
        self._failures = 0
        self._until: float | None = None
        self._trial: object = None
        """The caller whose call it is."""

    @property
    def is_open(self) -> bool:
        return self._until is not None

    @property
    def refuses(self) -> bool:
        """Whether a call would not be let in now; of an open one, False when a trial is due."""
        return self._until is not None and (self._trial is not None or self._clock() < self._until)

    def admits(self, caller: object) -> bool:
        """Whether a call may be made now; whoever has the trial may go on with it."""
        if self._until is not None and self._trial is not caller:
            if self.refuses:
                return False
            self._trial = caller
        return True

    def succeeded(self) -> None:
        """It works."""
        self._failures, self._until, self._trial = 0, None, None
        self._pause = self._first_pause

    def failed(self, caller: object) -> None:
        """It does not."""
        self._failures += 1
        if self._until is None and self._failures >= self._limit:
            self._until = self._clock() + self._pause
        elif self._trial is caller:
            self._pause = min(2 * self._pause, self._longest_pause)
            self._until = self._clock() + self._pause
            self._trial = None
        # Others were under way when it opened: what they find is no news.

    def left(self, caller: object) -> None:
        """The call ended before it was known: if it was the trial, another one is let in."""
        if self._trial is caller:
            self._trial = None

    def open(self) -> None:
        """It is known not to work before anything was asked of it."""
        if self._until is None:
            self._until = self._clock() + self._pause
