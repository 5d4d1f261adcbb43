"""What is known of one runtime, from the start of its load until it is closed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from gpuserver.errors import GpuServerError
from gpuserver.machine.gpus import Gpu
from gpuserver.providers import LoadStage, RuntimeKey, Status, Watched
from gpuserver.runtimes.fitting import HOST, LARGE, Usage

Stage = Literal["fitting"] | LoadStage
State = Literal["loading", "ready", "asleep", "restarting", "failed"]
OnStage = Callable[[Stage, float | None], None]
"""Told a stage of a load and the share of it that is done, on the event loop."""


def runtime_id(key: RuntimeKey) -> str:
    """What the doors call a runtime; its adapters follow from the tutors."""
    return f"{key.kind}:{key.provider}:{key.model}"


@dataclass(slots=True)
class Growth:
    """What loading took: megabytes of the server's own process and of GPUs, and seconds.

    It is the difference between after and before. Small models are loaded side by side, and then
    one's growth holds some of the other's.
    """

    memory_mb: int = 0
    gpu_mb: Mapping[int, int] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(slots=True, eq=False)
class Entry:
    """`kept`: it stays loaded while nobody leases it; `problem`: why it does not work.

    `used_at` and `quiet_since` are on the monotonic clock.
    """

    key: RuntimeKey
    name: str
    used_at: float
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    runtime: Any = None
    leases: int = 0
    kept: bool = False
    pinned: bool = False
    stage: Stage = "fitting"
    share: float | None = None
    growth: Growth = field(default_factory=Growth)
    loaded_at: datetime | None = None
    problem: GpuServerError | None = None
    quiet_since: float = 0.0
    probe: asyncio.Task[None] | None = None
    load: asyncio.Task[None] | None = None
    """The one that is going on; cancelled, it is broken off."""
    _watchers: list[OnStage] = field(default_factory=list)

    @property
    def large(self) -> bool:
        return self.key.provider in LARGE

    def status(self) -> Status:
        """How the loaded runtime is, at once."""
        return self.runtime.status() if isinstance(self.runtime, Watched) else Status()

    def is_on(self, place: Collection[int]) -> bool:
        """Whether it uses one of these memories."""
        return HOST in place or any(index in place for index in self.growth.gpu_mb)

    def usage(self, pids: tuple[int, ...], gpus: tuple[Gpu, ...], resident_mb: int) -> Usage:
        """Megabytes by memory; of a GPU what the driver says of `pids`, else what loading took."""
        told = {g.index: sum(g.processes.get(pid, 0) for pid in pids) for g in gpus}
        on_gpus = {index: mb for index, mb in told.items() if mb} or self.growth.gpu_mb
        return {HOST: self.growth.memory_mb + resident_mb, **on_gpus}

    @contextmanager
    def watched_by(self, watch: OnStage | None) -> Iterator[None]:
        """Tell `watch` of the load's stages while the block runs, of the present one at once."""
        if watch is None:
            yield
            return
        self._watchers.append(watch)
        try:
            watch(self.stage, self.share)
            yield
        finally:
            self._watchers.remove(watch)

    def tell(self, stage: Stage, share: float | None) -> None:
        """The load has come so far."""
        self.stage = stage
        self.share = None if share is None else min(max(share, 0.0), 1.0)
        for watch in self._watchers:
            watch(self.stage, self.share)

    def start(self, runtime: Any, growth: Growth, now: float) -> None:
        """It is loaded and works."""
        self.runtime, self.growth, self.problem = runtime, growth, None
        self.loaded_at = datetime.now(UTC)
        self.used_at = self.quiet_since = now


@dataclass(frozen=True, slots=True)
class Row:
    """A runtime as people and monitors see it. Memory in megabytes, durations in seconds.

    `memory_mb` is what the server's process grew by while it was loaded, and what its own
    processes hold now.
    """

    key: RuntimeKey
    name: str
    state: State
    stage: Stage | None
    share: float | None
    problem: GpuServerError | None
    pinned: bool
    leases: int
    running: int = 0
    waiting: int = 0
    memory_mb: int = 0
    gpu_memory_mb: Mapping[int, int] = field(default_factory=dict)
    loaded_at: datetime | None = None
    idle_seconds: float = 0.0
    load_seconds: float = 0.0

    @classmethod
    def of(cls, entry: Entry, status: Status, usage: Usage, idle_seconds: float) -> Row:
        loading = entry.runtime is None
        broken = entry.problem is not None and status.state != "restarting"
        state: State = "loading" if loading else "failed" if broken else status.state
        return cls(
            key=entry.key,
            name=entry.name,
            state=state,
            stage=entry.stage if loading else None,
            share=entry.share if loading else None,
            problem=entry.problem,
            pinned=entry.pinned,
            leases=entry.leases,
            running=status.running,
            waiting=status.waiting,
            memory_mb=usage.get(HOST, 0),
            gpu_memory_mb={index: mb for index, mb in usage.items() if index != HOST},
            loaded_at=entry.loaded_at,
            idle_seconds=idle_seconds,
            load_seconds=entry.growth.seconds,
        )
