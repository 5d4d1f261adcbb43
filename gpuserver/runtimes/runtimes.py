"""What is loaded: each model once, shared by whoever leases it, closed when nobody wants it."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final

from gpuserver.errors import (
    GpuServerError,
    ModelInUse,
    ModelNotLoaded,
    OutOfMemory,
    ShuttingDown,
)
from gpuserver.machine import Machine, ThisMachine
from gpuserver.machine.gpus import Gpu
from gpuserver.machine.memory import memory_of, no_memory
from gpuserver.metrics import Meter
from gpuserver.observability import get_logger
from gpuserver.providers import Place, RuntimeKey, Status
from gpuserver.providers.table import find
from gpuserver.runtimes.entry import Entry, OnStage, Row, runtime_id
from gpuserver.runtimes.fitting import LARGE, Fit, Need, Usage, need, plan, room
from gpuserver.runtimes.lessees import Lessees, Nobody
from gpuserver.runtimes.loading import Loader, end
from gpuserver.threads import finish_in_thread

log = get_logger(__name__)

_REMEMBERED: Final = 16
_PROBE_END_SECONDS: Final = 2.0


class Runtimes:
    """Loaded models by what they are (`RuntimeKey`), counted by lease.

    A model is loaded once under concurrency, in a thread; a failed load leaves nothing behind but
    the reason. One that has begun goes on without those who asked for it. Small ones close with
    their last lease. Large ones, those pinned and those loaded by hand stay until they are unloaded
    or, unless pinned, another one needs their memory.
    """

    def __init__(
        self,
        place: Place,
        factory: Callable[[RuntimeKey], Any] = find,
        meter: Callable[[str], Meter] = lambda name: Meter(),
        machine: Machine | None = None,
        clock: Callable[[], float] = time.monotonic,
        patience: float = 4.0,
    ) -> None:
        """`meter` gives what counts the work of the runtime of a name; `patience`: how many
        seconds `close` waits for a load to break off."""
        self.lessees: Lessees = Nobody()
        self.machine = machine or ThisMachine()
        self._settings = place.settings
        self._loader = Loader(place, factory, meter, self.machine, clock)
        self._clock = clock
        self._patience = patience
        self._entries: dict[RuntimeKey, Entry] = {}
        self._failed: OrderedDict[RuntimeKey, Row] = OrderedDict()
        self._names: dict[str, RuntimeKey] = {}
        # Whether the next large one fits is only known when the one before is loaded or closed;
        # vLLM, too, measures a GPU on which nothing else may move.
        self._large = asyncio.Lock()
        self._closed = False

    # Leases

    async def acquire(self, key: RuntimeKey, watch: OnStage | None = None) -> Any:
        """The runtime for a key, loaded if need be; give it back by `release`.

        `watch` is told how the load goes on. Raises ProviderUnavailable, ModelTooLarge,
        OutOfMemory, ShuttingDown.
        """
        entry = self._entries.get(key)
        if entry is None:
            large = key.provider in LARGE
            entry = Entry(key, self._name(key), self._clock(), kept=large)
            self._entries[key] = entry
        entry.leases += 1
        try:
            if entry.runtime is None:
                with entry.watched_by(watch):
                    await self._until_loaded(entry)
        except BaseException:
            await self.release(key)
            raise
        return entry.runtime

    async def release(self, key: RuntimeKey) -> None:
        """Give a lease back; with the last one, a runtime that is not kept closes."""
        entry = self._entries.get(key)
        if entry is None:
            return  # closed with everything else
        entry.leases -= 1
        entry.used_at = self._clock()
        if entry.leases == 0 and entry.runtime is None:
            self._forget(entry)
        elif entry.leases == 0 and not entry.kept:
            async with self._turn(entry):
                await self._close_unused(entry)

    def touch(self, key: RuntimeKey) -> None:
        """Somebody begins or ends to use it: it is not the one unused the longest."""
        if key in self._entries:
            self._entries[key].used_at = self._clock()

    def loaded(self) -> dict[RuntimeKey, int]:
        """Every loaded runtime and how many leases there are on it."""
        return {entry.key: entry.leases for entry in self.running()}

    # By hand

    async def load(self, key: RuntimeKey, *, pin: bool, watch: OnStage | None = None) -> None:
        """Load it if need be and keep it without a lease. Raises as `acquire` does."""
        await self.acquire(key, watch)
        entry = self._entries[key]
        entry.kept = True
        entry.pinned = entry.pinned or pin
        await self.release(key)

    def named(self, name: str) -> RuntimeKey:
        """The key of an id, of a runtime or of a load that failed. Raises ModelNotLoaded."""
        for key in (*self._entries, *self._failed):
            if runtime_id(key) == name:
                return key
        raise ModelNotLoaded(model=name)

    async def unload(self, key: RuntimeKey) -> None:
        """Close it, pinned or not, or forget that its load failed. Raises ModelInUse."""
        self._failed.pop(key, None)
        await self.lessees.give_back(key)
        entry = self._entries.get(key)
        if entry is None:
            return
        if entry.load is not None and not entry.leases:
            if not entry.load.cancelling():
                # Cancelled again, it would be left behind, with its memory.
                entry.load.cancel()
            await asyncio.wait([entry.load])
        async with self._turn(entry):
            if not await self._close_unused(entry) and entry.leases:
                raise ModelInUse(model=entry.name, users=entry.leases)

    def pin(self, key: RuntimeKey, *, pinned: bool) -> None:
        """Keep it whatever else needs memory, or no longer. Raises ModelNotLoaded."""
        entry = self._entries.get(key)
        if entry is None or entry.runtime is None:
            raise ModelNotLoaded(model=runtime_id(key))
        entry.pinned = pinned
        entry.kept = True

    async def close(self) -> None:
        """Close everything and break off what is being loaded; nobody may hold a lease any more."""
        self._closed = True
        await self._break_off_loads()
        for entry in list(self._entries.values()):
            async with self._turn(entry):
                if entry.runtime is not None:
                    await self._close(entry)
        self._entries.clear()
        self._failed.clear()

    # What there is

    def running(self) -> Iterator[Entry]:
        """The loaded ones."""
        return (entry for entry in self._entries.values() if entry.runtime is not None)

    def problem(self, key: RuntimeKey) -> str:
        """Why a loaded runtime does not work at present; "" if it does."""
        entry = self._entries.get(key)
        if entry is None or entry.runtime is None:
            return ""
        if entry.status().state == "restarting":
            return f"The {key.provider} engine is being started again."
        return entry.problem.sentence("en") if entry.problem else ""

    async def rows(self) -> list[Row]:
        """All that are loaded or being loaded, and the loads that failed last."""
        entries = [e for e in self._entries.values() if e.leases or e.load or e.runtime is not None]
        states = [(entry, entry.status()) for entry in entries]
        usages, _ = await asyncio.to_thread(self._measure, states)
        rows = []
        for (entry, status), usage in zip(states, usages, strict=True):
            busy = status.running or status.waiting or self.lessees.active(entry.key)
            idle = 0.0 if busy or entry.runtime is None else self._clock() - entry.used_at
            rows.append(Row.of(entry, status, usage, idle))
        there = {entry.key for entry in entries}
        return [*rows, *(row for key, row in self._failed.items() if key not in there)]

    async def fit(self, key: RuntimeKey) -> Fit:
        """Whether it would fit, and what would be closed for it; one that is loaded does."""
        settings = self._settings
        idle = [entry for entry in self.running() if self._evictable(entry) and entry.key != key]
        idle.sort(key=lambda entry: entry.used_at)
        states = [(entry, entry.status()) for entry in self.running()]

        def measure() -> tuple[Need, Usage, dict[RuntimeKey, Usage]]:
            usages, gpus = self._measure(states)
            left = room(settings, self.machine.host(), gpus, usages)
            used = {entry.key: u for (entry, _), u in zip(states, usages, strict=True)}
            needed = need(key, settings, gpus)
            return replace(needed, mb=0) if key in used else needed, left, used

        needed, left, used = await asyncio.to_thread(measure)
        return plan(needed, left, [(entry.key, used[entry.key]) for entry in idle])

    def _measure(self, states: list[tuple[Entry, Status]]) -> tuple[list[Usage], tuple[Gpu, ...]]:
        gpus = self.machine.gpus()
        return [
            entry.usage(status.pids, gpus, self.machine.resident_mb(status.pids))
            for entry, status in states
        ], gpus

    # Loading

    async def _until_loaded(self, entry: Entry) -> None:
        while entry.runtime is None:
            if self._closed:
                raise ShuttingDown
            load = entry.load or self._begin(entry)
            # Whoever leaves meanwhile leaves the load to the others, and to those who come later.
            await asyncio.wait([load])
            if not load.cancelled() and (error := load.exception()) is not None:
                raise error

    def _begin(self, entry: Entry) -> asyncio.Task[None]:
        """Begin to load it, for whoever waits; `close` waits for the task's end."""
        entry.tell("fitting", None)
        entry.load = load = asyncio.create_task(self._load_in_turn(entry))
        load.add_done_callback(lambda _: self._loaded(entry, load))
        return load

    def _loaded(self, entry: Entry, load: asyncio.Task[None]) -> None:
        entry.load = None
        self._forget(entry)
        if not load.cancelled() and (error := load.exception()) and not entry.leases:
            log.error("runtime not loaded", model=entry.name, exc_info=error)

    async def _load_in_turn(self, entry: Entry) -> None:
        async with self._turn(entry):
            if not entry.leases:
                return  # they have left before it was its turn
            await self._load(entry)
            if not entry.kept:
                await self._close_unused(entry)

    async def _load(self, entry: Entry) -> None:
        key = entry.key
        self._failed.pop(key, None)
        try:
            if entry.large:
                await self._load_large(entry)
            else:
                await self._loader.load(entry)
        except GpuServerError as error:
            # Not the error itself: its traceback holds what was loaded, and its memory.
            details: dict[str, Any] = error.details
            problem = type(error)(**details)
            self._failed[key] = Row(
                key, entry.name, "failed", None, None, problem, entry.pinned, leases=0
            )
            while len(self._failed) > _REMEMBERED:
                self._failed.popitem(last=False)
            raise
        log.info("runtime loaded", kind=key.kind, provider=key.provider, model=key.model)

    async def _break_off_loads(self) -> None:
        # What has not ended after a while is left behind.
        for seconds in (self._patience, None):
            loads = [entry.load for entry in self._entries.values() if entry.load is not None]
            for load in loads:
                load.cancel()
            if loads:
                await asyncio.wait(loads, timeout=seconds)

    async def _load_large(self, entry: Entry) -> None:
        fit = await self._make_room(entry.key)
        if await self._fits(entry, fit):
            return
        beside = [e for e in self.running() if self._evictable(e) and e.is_on(fit.place)]
        evicted = [entry for entry in beside if await self._evict(entry)]
        if not evicted or not await self._fits(entry, fit):
            raise OutOfMemory(model=str(entry.key), device=memory_of(fit.device))

    async def _fits(self, entry: Entry, fit: Fit) -> bool:
        """Load it where it was measured to fit; False if memory runs out nevertheless."""
        try:
            await self._loader.load(entry, fit.place)
        except (GpuServerError, RuntimeError, MemoryError) as error:
            if not no_memory(error):
                raise
            log.warning("out of memory", model=entry.name, reason=str(error))
            return False
        return True

    # Closing

    def _evictable(self, entry: Entry) -> bool:
        if not entry.large or entry.pinned:
            return False
        return entry.leases == self.lessees.spare(entry.key)

    async def _make_room(self, key: RuntimeKey) -> Fit:
        """Close what is in the way, the one unused the longest first. Raises ModelTooLarge."""
        while True:
            fit = await self.fit(key)
            if not fit.fits:
                raise fit.refusal(key)
            if not fit.evict:
                return fit
            await self._evict(self._entries[fit.evict[0]])

    async def _evict(self, entry: Entry) -> bool:
        await self.lessees.give_back(entry.key)
        closed = not entry.pinned and await self._close_unused(entry)
        if closed:
            log.info("runtime made room", model=entry.name)
        return closed

    async def _close_unused(self, entry: Entry) -> bool:
        """Close a loaded runtime unless somebody has leased it; its turn is held."""
        if entry.leases or entry.runtime is None:
            return False
        await self._close(entry)
        return True

    async def _close(self, entry: Entry) -> None:
        runtime, entry.runtime = entry.runtime, None
        probe, entry.probe = entry.probe, None
        try:
            if probe is not None:
                probe.cancel()
                await asyncio.wait([probe], timeout=_PROBE_END_SECONDS)
        finally:
            try:
                await finish_in_thread(end, entry, runtime)
            finally:
                self._forget(entry)
        key = entry.key
        log.info("runtime closed", kind=key.kind, provider=key.provider, model=key.model)

    def _forget(self, entry: Entry) -> None:
        unused = entry.runtime is None and entry.load is None and entry.leases == 0
        if unused and self._entries.get(entry.key) is entry:
            del self._entries[entry.key]

    def _turn(self, entry: Entry) -> asyncio.Lock:
        """What is held while a runtime is loaded or closed."""
        return self._large if entry.large else entry.lock

    def _name(self, key: RuntimeKey) -> str:
        """A short name, told apart from those of other models that look the same."""
        name, number = str(key), 1
        while self._names.setdefault(name, key) != key:
            number += 1
            name = f"{key} #{number}"
        return name
