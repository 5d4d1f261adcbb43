"""One vLLM engine and its processes: built, watched, and built again when they die."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import multiprocessing
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any, Final, Literal

import psutil

from gpuserver.errors import EngineBusy, EngineFailed, ProviderUnavailable
from gpuserver.providers.vllm.upstream import AsyncLLM, EngineDeadError

_logger = logging.getLogger(__name__)

_TICK_SECONDS: Final = 0.25
_STABLE_SECONDS: Final = 60.0
"""An engine that lived this long is built again at once, and so is the first that dies."""
_PAUSES: Final = (0.0, 1.0, 5.0, 15.0, 60.0)
_SHUTDOWN_SECONDS: Final = 2.0
_KILL_SECONDS: Final = 2.0
_CLOSE_SECONDS: Final = 60.0
_PROCESS: Final = "EngineCore"

# vLLM measures what memory is free while it loads, and two loads at once would mislead each other.
_one_load = threading.Lock()


@dataclass(frozen=True, slots=True)
class _Alive:
    """An engine, the processes it came with, and what tells that the main one has ended."""

    llm: AsyncLLM
    processes: tuple[psutil.Process, ...]
    sentinels: tuple[Any, ...]
    since: float


class Engine:
    """Supervises what `build` makes; requests use `llm()` on one event loop.

    A thread waits for the death of the engine's processes. It ends what runs with EngineDeadError
    at once, and builds the engine again: the first time immediately, then with growing pauses.
    """

    def __init__(
        self,
        build: Callable[[], AsyncLLM],
        on_death: Callable[[], None],
        on_tick: Callable[[], None],
    ) -> None:
        """`build` blocks and raises ProviderUnavailable; `on_death` and `on_tick`, which comes
        four times a second, are called in the supervisor's thread."""
        self._build, self._on_death, self._on_tick = build, on_death, on_tick
        self._alive: _Alive | None = None
        self._closing = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._thread = threading.Thread(target=self._supervise, name="vllm-supervisor", daemon=True)
        self._load_seconds = 0.0
        self._began = 0.0
        self._failures = 0
        self._before: frozenset[int] = frozenset()
        self.loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Build the engine and watch it. Blocking. Raises ProviderUnavailable."""
        self._alive = self._new()
        self._thread.start()
        if self._closing.is_set():  # just now, when there was nothing to end yet
            self._end(0)
            self._check_open()

    def llm(self) -> AsyncLLM:
        """The engine, for requests on the running event loop.

        Raises EngineBusy from its death until it is built again, so that another model can answer
        meanwhile, and EngineFailed when it is closed.
        """
        if self._closing.is_set() or not self._thread.ident:
            raise EngineFailed(engine="llm")
        alive = self._alive
        if alive is None or alive.llm.errored:
            raise EngineBusy(seconds=self._seconds_left())
        self.loop = asyncio.get_running_loop()
        return alive.llm

    @property
    def state(self) -> Literal["ready", "restarting"]:
        alive = self._alive
        return "restarting" if alive is None or alive.llm.errored else "ready"

    @property
    def pids(self) -> tuple[int, ...]:
        alive = self._alive
        return tuple(process.pid for process in alive.processes) if alive else ()

    def kill(self) -> None:
        """End processes that hang; the supervisor sees it and builds new ones."""
        if (alive := self._alive) is not None:
            _kill(alive.processes)

    def close(self) -> None:
        """End everything, also a load that is going on. Blocking; safe to call twice."""
        self._closing.set()
        deadline = time.monotonic() + _CLOSE_SECONDS
        while not self._idle.wait(_TICK_SECONDS) and time.monotonic() < deadline:
            _kill(_newborn(self._before))
        if self._thread.ident:
            self._thread.join(_CLOSE_SECONDS)
        self._end(_SHUTDOWN_SECONDS)

    # In the thread that loads, which is the supervisor's after the first time.

    def _new(self) -> _Alive:
        with _one_load:
            self._before = _children()
            self._idle.clear()
            try:
                self._check_open()
                self._began = time.monotonic()
                alive = _alive(self._build())
                self._load_seconds = alive.since - self._began
                if self._closing.is_set():
                    _end(alive, 0)
                    self._check_open()
                return alive
            except ProviderUnavailable:
                # One that failed half-way may hold the GPU's memory.
                _kill(_newborn(self._before))
                self._check_open()
                raise
            finally:
                self._idle.set()

    def _check_open(self) -> None:
        if self._closing.is_set():
            raise ProviderUnavailable(
                problem="The chat model was closed while it was loading.", fix="load it again."
            )

    def _supervise(self) -> None:
        while (alive := self._watch()) is not None:
            self._notice(alive)
            lived = time.monotonic() - alive.since
            self._failures = 0 if lived > _STABLE_SECONDS else self._failures
            self._rebuild()

    def _watch(self) -> _Alive | None:
        """The engine once it has died; None when it is to be closed."""
        while not self._closing.is_set():
            alive = self._alive
            assert alive is not None
            if wait(alive.sentinels, _TICK_SECONDS) or alive.llm.errored:
                return None if self._closing.is_set() else alive
            self._on_tick()
        return None

    def _notice(self, alive: _Alive) -> None:
        """Let every request know; left to itself the library may wait for a process to end."""
        self._began = time.monotonic()
        self._alive = None
        _logger.error("The chat engine has died; it is started again.")
        self._on_death()
        if self.loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the requests
                self.loop.call_soon_threadsafe(
                    alive.llm.output_processor.propagate_error, EngineDeadError()
                )
        _kill(alive.processes)
        _end(alive, 0)

    def _rebuild(self) -> None:
        while not self._closing.is_set():
            pause = _PAUSES[min(self._failures, len(_PAUSES) - 1)]
            self._failures += 1
            if self._closing.wait(pause):
                return
            try:
                self._alive = self._new()
            except ProviderUnavailable as error:
                if not self._closing.is_set():
                    _logger.error("The chat engine could not be started again: %s", error)
            else:
                return

    def _end(self, seconds: float) -> None:
        alive, self._alive = self._alive, None
        if alive is not None:
            _end(alive, seconds)

    def _seconds_left(self) -> int:
        """About how long until the engine is there again."""
        noticed = self._alive is None
        gone = time.monotonic() - self._began if noticed else 0.0
        return max(1, math.ceil(self._load_seconds - gone))


def _alive(llm: AsyncLLM) -> _Alive:
    """Raises ProviderUnavailable for one that has ended already."""
    main = llm.engine_core.resources.engine_manager.processes
    try:
        processes = [psutil.Process(process.pid) for process in main]
        children = [child for process in processes for child in process.children(recursive=True)]
    except psutil.NoSuchProcess as error:
        llm.shutdown(timeout=0)
        raise ProviderUnavailable(
            problem="The chat engine ended as soon as it was loaded.",
            fix="see the log for the reason; memory may be short.",
        ) from error
    return _Alive(
        llm,
        (*processes, *children),
        tuple(process.sentinel for process in main),
        time.monotonic(),
    )


def _end(alive: _Alive, seconds: float) -> None:
    """Shut an engine down within so many seconds, and make sure of its processes."""
    alive.llm.shutdown(timeout=seconds)
    _kill(alive.processes)


def _kill(processes: Sequence[psutil.Process]) -> None:
    """End processes and wait for that; one that has ended is not mistaken for another."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, _KILL_SECONDS)


def _children() -> frozenset[int]:
    """The main processes of all engines of this server, by pid."""
    return frozenset(
        child.pid
        for child in multiprocessing.active_children()
        if child.pid is not None and child.name.startswith(_PROCESS)
    )


def _newborn(before: frozenset[int]) -> list[psutil.Process]:
    """The processes of the engine being loaded, which nobody else knows of yet."""
    found = []
    for pid in _children() - before:
        try:
            process = psutil.Process(pid)
            found += [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
    return found
