"""A model in a process of its own: one call at a time, in order, with a deadline and a way out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from inspect import isgenerator
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Final

from gpuserver.errors import EngineFailed, GpuServerError, ProviderUnavailable
from gpuserver.providers import Status

Checkpoint = Callable[[], None]
"""A target calls it between small steps of work; it raises when nobody waits for the result."""

_SPAWN: Final = multiprocessing.get_context("spawn")
_START_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.02
_END: Final = object()
_logger = logging.getLogger(__name__)


class Cancelled(BaseException):
    """Nobody waits for this call any more. Not an Exception, so that no engine swallows it."""


class Worker:
    """A child process that holds a `target(*arguments, checkpoint)` and runs its methods.

    A thread of the worker's own does all the talking over the pipe, so calls are answered in the
    order in which they came, from any event loop, and every request gets exactly one reply. A
    child that dies or misses a deadline is replaced at once. A worker that was closed stays closed.
    """

    def __init__(
        self,
        engine: str,
        target: Callable[..., object],
        *arguments: object,
        start_seconds: float = _START_SECONDS,
    ) -> None:
        self.engine = engine
        self.waiting = 0
        self._target = (target, arguments)
        self._start_seconds = start_seconds
        self._closed = threading.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"worker-{engine}")
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None
        self._ready = False

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def status(self) -> Status:
        """At once; any thread."""
        pid = self.pid
        if pid is None or not self.is_ready():
            return Status("restarting", waiting=self.waiting)
        return Status("ready", min(1, self.waiting), max(0, self.waiting - 1), (pid,))

    def start(self) -> None:
        """Wait until the child is ready. Blocking. Raises ProviderUnavailable or its refusal."""
        self._submit(self._ready_pipe).result()

    async def call(self, method: str, *arguments: object, deadline: float) -> Any:
        """What the child's method returns, within `deadline` seconds from when it is sent there.

        Raises EngineFailed, or the GpuServerError that the method raised. When the awaiting task
        is cancelled the child is told to stop, and the next call begins once it has.
        """
        nobody_waits = threading.Event()
        self.waiting += 1
        try:
            request = (method, arguments)
            work = self._submit(self._answer_to, request, deadline, nobody_waits)
            return await asyncio.wrap_future(work)
        finally:
            self.waiting -= 1
            nobody_waits.set()

    async def stream(
        self, method: str, *arguments: object, deadline: float
    ) -> AsyncGenerator[Any, None]:
        """What the child's method yields, each within `deadline` seconds from the one before.

        The child works on while its parts wait here, so that a slow reader holds up nobody else.
        Closing the generator stops it at its next part. Raises as `call` does.
        """
        loop, nobody_waits = asyncio.get_running_loop(), threading.Event()
        parts: asyncio.Queue[Any] = asyncio.Queue()

        def give(part: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(parts.put_nowait, part)

        self.waiting += 1
        try:
            request = (method, arguments)
            work = self._submit(self._answer_to, request, deadline, nobody_waits, give)
            work.add_done_callback(lambda _: give(_END))
            try:
                while (part := await parts.get()) is not _END:
                    yield part
                work.result()
            finally:
                work.cancel()
        finally:
            self.waiting -= 1
            nobody_waits.set()

    def is_ready(self) -> bool:
        """Whether the child is there to be asked; one that has died is replaced from now on."""
        process, ready = self._process, self._ready
        if ready and process is not None and not wait([process.sentinel], 0):
            return True
        if ready:
            self._ready = False
            with contextlib.suppress(RuntimeError):  # it was closed
                self._thread.submit(self._revive)
        return False

    def close(self) -> None:
        """End the child and the thread. Blocking; safe to call twice."""
        self._closed.set()
        self._thread.shutdown(wait=True)
        self._end()

    def _submit(self, work: Callable[..., Any], *arguments: object) -> Future[Any]:
        try:
            return self._thread.submit(work, *arguments)
        except RuntimeError as error:  # the thread is closed
            raise EngineFailed(engine=self.engine) from error

    # The rest runs in the worker's thread.

    def _ready_pipe(self) -> Connection:
        if self._pipe is not None and self._process is not None and self._process.is_alive():
            return self._pipe
        self._end()
        if self._closed.is_set():  # no child for calls that still wait
            raise EngineFailed(engine=self.engine)
        self._pipe, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(
            target=_serve, args=(theirs, *self._target), name=self.engine, daemon=True
        )
        try:
            self._process.start()
            theirs.close()  # held only by the child, so that its death is seen
            _checked(self.engine, self._exchange(self._pipe, None, self._start_seconds))
        except (EOFError, OSError, EngineFailed) as error:
            self._end()
            raise ProviderUnavailable(
                problem=f"The {self.engine} engine did not start.",
                fix="see the log above for the reason, or run ./start.sh again.",
            ) from error
        except GpuServerError:
            self._end()
            raise
        self._ready = True
        return self._pipe

    def _revive(self) -> None:
        try:
            self._ready_pipe()
        except GpuServerError as error:
            if not self._closed.is_set():
                _logger.error("The %s worker can't be replaced: %s", self.engine, error)

    def _answer_to(
        self,
        request: object,
        deadline: float,
        nobody_waits: threading.Event,
        give: Callable[[Any], None] | None = None,
    ) -> Any:
        try:
            pipe = self._ready_pipe()
        except ProviderUnavailable as error:
            raise EngineFailed(engine=self.engine) from error
        try:
            reply = self._exchange(pipe, request, deadline, nobody_waits, give)
        except (EOFError, OSError) as error:
            self._end()
            if not self._closed.is_set():
                _logger.error("The %s worker died or missed its deadline.", self.engine)
                with contextlib.suppress(RuntimeError):  # closed just now
                    self._thread.submit(self._revive)  # for the next call
            raise EngineFailed(engine=self.engine) from error
        return _checked(self.engine, reply)

    def _exchange(
        self,
        pipe: Connection,
        request: object,
        seconds: float,
        nobody_waits: threading.Event | None = None,
        give: Callable[[Any], None] | None = None,
    ) -> tuple[str, Any]:
        """Send a request, if there is one, and wait for the reply. Raises EOFError and OSError."""
        assert self._process is not None
        # The killing ends a send to a stopped child as well, which would otherwise last for ever.
        overdue = threading.Timer(seconds, self._process.kill)
        overdue.start()
        try:
            if request is not None:
                pipe.send(request)
            while True:
                if self._closed.is_set():
                    raise BrokenPipeError("closed")
                if nobody_waits is not None and nobody_waits.is_set():
                    pipe.send(None)
                    nobody_waits = None
                if not pipe.poll(_POLL_SECONDS):
                    continue
                outcome, value = pipe.recv()
                if outcome != "part":
                    return outcome, value
                if give is not None:
                    give(value)
                overdue.cancel()
                overdue = threading.Timer(seconds, self._process.kill)
                overdue.start()
        finally:
            overdue.cancel()

    def _end(self) -> None:
        self._ready = False
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None and self._process.pid is not None:
            self._process.kill()
            self._process.join()
        self._process = self._pipe = None


class WorkerPool:
    """Some workers of one kind; each call goes to the least busy one."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.workers = workers

    def start(self) -> None:
        """Wait until all are ready. Blocking. Raises ProviderUnavailable."""
        with ThreadPoolExecutor(len(self.workers)) as threads:
            for started in [threads.submit(worker.start) for worker in self.workers]:
                started.result()

    def status(self) -> Status:
        """Of all of them together: ready when each is."""
        each = [worker.status() for worker in self.workers]
        return Status(
            "ready" if all(status.state == "ready" for status in each) else "restarting",
            sum(status.running for status in each),
            sum(status.waiting for status in each),
            tuple(pid for status in each for pid in status.pids),
        )

    def least_busy(self) -> Worker:
        return min(self.workers, key=lambda worker: worker.waiting)

    def close(self) -> None:
        for worker in self.workers:
            worker.close()


def _checked(engine: str, reply: tuple[str, Any]) -> Any:
    outcome, value = reply
    if outcome == "refused":
        kind, details = value
        raise kind(**details)
    if outcome == "failed":
        _logger.error("The %s engine failed: %s", engine, value)
        raise EngineFailed(engine=engine)
    return value


# In the child


def _serve(pipe: Connection, target: Callable[..., object], arguments: tuple[object, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which decides
    os.dup2(2, 1)  # a library that prints does so to the log

    def checkpoint() -> None:
        if pipe.poll():
            try:
                pipe.recv()
            except EOFError:
                raise SystemExit from None  # the parent is gone
            raise Cancelled

    engine: list[object] = []
    reply = _outcome(lambda: engine.append(target(*arguments, checkpoint)))
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        pipe.send(reply)
        while engine:
            request = pipe.recv()
            if request is None:
                continue  # a cancel that came after the reply
            method, given = request

            def work(method: str = method, given: tuple[object, ...] = given) -> object:
                value = getattr(engine[0], method)(*given)
                if not isgenerator(value):
                    return value
                _send_parts(pipe, value, checkpoint)
                return None

            pipe.send(_outcome(work))


def _send_parts(
    pipe: Connection, parts: Generator[object, Any, Any], checkpoint: Checkpoint
) -> None:
    """Send each as it comes; stop when nobody waits for more."""
    with contextlib.closing(parts):
        for part in parts:
            pipe.send(("part", part))
            checkpoint()


def _outcome(work: Callable[[], Any]) -> tuple[str, Any]:
    try:
        return "done", work()
    except Cancelled:
        return "cancelled", None
    except GpuServerError as error:
        return "refused", (type(error), error.details)
    except Exception as error:  # noqa: BLE001 - the top of this process
        # The message may hold a pupil's words; the place says enough.
        place = traceback.extract_tb(error.__traceback__)[-1]
        return "failed", f"{type(error).__name__} at {place.filename}:{place.lineno}"
