"""A machine with scripted memory, its models, and the table of runtimes over them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gpuserver import config
from gpuserver.errors import ProviderUnavailable
from gpuserver.machine import Host
from gpuserver.machine.gpus import Gpu
from gpuserver.providers import Place, RuntimeKey, Status
from gpuserver.runtimes.entry import Row
from gpuserver.runtimes.runtimes import Runtimes
from tests.fakes import Clock

MB = 1 << 20


@dataclass
class Script:
    """What a model does when it is loaded, and how it is afterwards."""

    mb: int = 0
    fails: list[Exception] = field(default_factory=list)
    gate: threading.Event | None = None
    until_closed: threading.Event | None = None
    """The load lasts until the model is closed, and fails then."""
    fetches_for_ever: bool = False
    stages: tuple[tuple[Any, float | None], ...] = ()
    status: Status = Status()
    probes: list[Exception | asyncio.Event | None] = field(default_factory=list)
    loads: int = 0
    closes: int = 0
    close_fails: Exception | None = None
    places: list[Place] = field(default_factory=list)


@dataclass
class House:
    """A machine with scripted memory, and models that take of it while they are loaded."""

    folder: Path
    scripts: dict[str, Script] = field(default_factory=dict)
    gpu_mb: tuple[int, ...] = ()
    host_mb: int = 8000
    held: dict[int, dict[int, int]] = field(default_factory=dict)
    """By GPU (-1: the host): megabytes by model object."""
    processes: dict[int, int] = field(default_factory=dict)

    def taken(self, device: int) -> int:
        return sum(self.held.get(device, {}).values())

    def host(self) -> Host:
        return Host(self.host_mb, self.host_mb - self.taken(-1))

    def gpus(self) -> tuple[Gpu, ...]:
        return tuple(
            Gpu(index, f"GPU {index}", mb, mb - self.taken(index), self.processes)
            for index, mb in enumerate(self.gpu_mb)
        )

    def resident_mb(self, pids: Iterable[int]) -> int:
        return self.taken(-1)

    def model(self, name: str, mb: int, **script: Any) -> RuntimeKey:
        """A model of a size, on disk as large as it is in memory, without the overhead."""
        weights = self.folder / name
        weights.mkdir()
        with (weights / "model.safetensors").open("wb") as file:
            file.truncate(mb * MB)
        self.scripts[str(weights)] = Script(mb, **script)
        return RuntimeKey("asr", "faster-whisper", str(weights))

    def script(self, key: RuntimeKey) -> Script:
        return self.scripts[key.model]

    def find(self, key: RuntimeKey) -> Callable[[str, Place], Any]:
        return lambda model, place: Model(self, self.scripts[model], place)

    def runtimes(
        self, clock: Clock | None = None, patience: float = 4.0, **settings: Any
    ) -> Runtimes:
        place = Place(self.folder, config.load(None, **settings)[0])
        return Runtimes(place, self.find, machine=self, clock=clock or Clock(), patience=patience)


class Model:
    """`Watched`; it takes its memory with `load` and frees it with `close`."""

    def __init__(self, house: House, script: Script, place: Place) -> None:
        self._house, self.script, self._place = house, script, place
        self._device = -1 if place.gpu is None else place.gpu
        script.places.append(place)

    def load(self) -> None:
        self.script.loads += 1
        for stage, share in self.script.stages:
            self._place.on_progress(stage, share)
        while self.script.fetches_for_ever:
            time.sleep(0.001)
            self._place.on_progress("fetching", None)
        if self.script.until_closed is not None:
            assert self.script.until_closed.wait(5)
            raise ProviderUnavailable(problem="It was closed.", fix="load it again.")
        if self.script.gate is not None:
            assert self.script.gate.wait(5)
        if self.script.fails:
            raise self.script.fails.pop(0)
        self._house.held.setdefault(self._device, {})[id(self)] = self.script.mb

    def close(self) -> None:
        self.script.closes += 1
        self._house.held.get(self._device, {}).pop(id(self), None)
        if self.script.until_closed is not None:
            self.script.until_closed.set()
        if self.script.close_fails is not None:
            raise self.script.close_fails

    def status(self) -> Status:
        return self.script.status

    async def probe(self) -> None:
        step = self.script.probes.pop(0) if self.script.probes else None
        if isinstance(step, Exception):
            raise step
        if isinstance(step, asyncio.Event):
            await step.wait()


async def use(shared: Runtimes, key: RuntimeKey) -> None:
    await shared.acquire(key)
    await shared.release(key)


async def row(shared: Runtimes, key: RuntimeKey) -> Row:
    return next(row for row in await shared.rows() if row.key == key)


def models(shared: Runtimes) -> list[str]:
    return [Path(key.model).name for key in shared.loaded()]


async def begun(house: House, key: RuntimeKey, loads: int = 1) -> None:
    """Wait until a model is being loaded for the so many-th time."""
    async with asyncio.timeout(5):
        while house.script(key).loads < loads:
            await asyncio.sleep(0.001)


async def there(shared: Runtimes, *names: str) -> None:
    """Wait until exactly these models are loaded."""
    async with asyncio.timeout(5):
        while models(shared) != [*names]:
            await asyncio.sleep(0.001)


async def leave(caller: asyncio.Task[Any]) -> None:
    """The one who asked for a model goes away, at once."""
    caller.cancel()
    async with asyncio.timeout(2):
        with pytest.raises(asyncio.CancelledError):
            await caller
