"""One thread that works on what waits, several pieces at a time, in the order they came in."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from gpuserver.errors import EngineFailed
from gpuserver.metrics import Meter

_CLOSE_SECONDS: Final = 10.0
_logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")


@dataclass(slots=True, eq=False)
class _Job(Generic[T, R]):
    piece: T
    result: Future[R] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


class Batches(Generic[T, R]):
    """The first piece is begun at once; those that come in meanwhile are the next batch.

    `work` gives one result a piece. Where it fails for a batch, each piece of it is tried once
    more by itself, so that only those fail that can't be worked on.
    """

    def __init__(
        self, engine: str, limit: int, work: Callable[[Sequence[T]], Sequence[R]], meter: Meter
    ) -> None:
        self._engine, self._limit, self._work, self._meter = engine, limit, work, meter
        self._waiting: deque[_Job[T, R]] = deque()
        self._running = 0
        self._closed = False
        self._changed = threading.Condition()
        # A daemon: a GPU that hangs must not keep the server from ending.
        self._thread = threading.Thread(target=self._run, name=engine, daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        return self._running

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def submit(self, piece: T) -> Future[R]:
        """What will be made of a piece. One cancelled before its turn is never worked on.

        The future, and this call once closed, raise EngineFailed.
        """
        job: _Job[T, R] = _Job(piece)
        with self._changed:
            if self._closed:
                raise EngineFailed(engine=self._engine)
            self._waiting.append(job)
            self._changed.notify()
        return job.result

    def close(self) -> bool:
        """Fail what waits and let the running batch end; says whether it did. Blocking."""
        with self._changed:
            self._closed = True
            left = list(self._waiting)
            self._waiting.clear()
            self._changed.notify()
        for job in left:
            if job.result.set_running_or_notify_cancel():
                self._fail(job)
        self._thread.join(_CLOSE_SECONDS)
        return not self._thread.is_alive()

    # In the thread

    def _run(self) -> None:
        while batch := self._next():
            now = time.monotonic()
            for job in batch:
                self._meter.waited(now - job.since)
            self._answer(batch)

    def _next(self) -> list[_Job[T, R]]:
        """The next batch; empty when closed."""
        with self._changed:
            while not self._closed:
                batch: list[_Job[T, R]] = []
                while self._waiting and len(batch) < self._limit:
                    job = self._waiting.popleft()
                    if job.result.set_running_or_notify_cancel():
                        batch.append(job)
                if batch:
                    return batch
                self._changed.wait()
        return []

    def _answer(self, batch: Sequence[_Job[T, R]]) -> None:
        self._meter.batch(len(batch))
        self._running = len(batch)
        try:
            results = self._work([job.piece for job in batch])
        except Exception as error:  # noqa: BLE001 - the top of this thread
            self._running = 0
            self._log(error, len(batch))
            if len(batch) > 1:  # too much memory, or one of them is to blame
                for job in batch:
                    self._answer([job])
            else:
                self._meter.failed()
                self._fail(batch[0])
            return
        self._running = 0
        for job, result in zip(batch, results, strict=True):
            job.result.set_result(result)

    def _fail(self, job: _Job[T, R]) -> None:
        job.result.set_exception(EngineFailed(engine=self._engine))

    def _log(self, error: Exception, size: int) -> None:
        # A message may hold a pupil's words; a RuntimeError's is the library's ("out of memory").
        place = traceback.extract_tb(error.__traceback__)[-1]
        said = f": {error}" if type(error) is RuntimeError else ""
        _logger.error(
            "The %s engine failed on a batch of %d: %s at %s:%s%s",
            self._engine, size, type(error).__name__, place.filename, place.lineno, said,
        )  # fmt: skip
