"""What an operator may do with the models: see them, ask whether one fits, load, pin, unload."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from gpuserver.config import Settings
from gpuserver.errors import GpuServerError, ModelInUse, ModelNotLoaded, ModelUnknown, ShuttingDown
from gpuserver.machine import Disk, Host, disk
from gpuserver.machine.gpus import Gpu
from gpuserver.observability import get_logger
from gpuserver.providers import Kind, RuntimeKey
from gpuserver.providers.table import PROVIDERS
from gpuserver.providers.weights import models_dir
from gpuserver.runtimes.entry import OnStage, Row, Stage, runtime_id
from gpuserver.runtimes.fitting import LARGE, Fit
from gpuserver.runtimes.runtimes import Runtimes
from gpuserver.tutor.tutors import Catalogue, Tutor

log = get_logger(__name__)

Step = tuple[Stage, float | None]


@dataclass(frozen=True, slots=True)
class Table:
    """The models, each with the tutors that hold it, and what the machine has left."""

    rows: list[tuple[Row, list[Tutor]]]
    gpus: tuple[Gpu, ...]
    host: Host
    folder: Path
    disk: Disk


class Models:
    """The runtimes by hand. What is loaded so stays, unpinned: another model may take its place."""

    def __init__(
        self,
        settings: Settings,
        catalogue: Catalogue,
        runtimes: Runtimes,
        users: Callable[[RuntimeKey], list[Tutor]],
    ) -> None:
        """`users`: the tutors that hold a runtime."""
        self._settings, self._catalogue, self._runtimes = settings, catalogue, runtimes
        self._users = users
        self._group: asyncio.TaskGroup | None = None
        self._loads: set[asyncio.Task[GpuServerError | None]] = set()
        self._configured = tuple(_configured(settings, catalogue))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Own the loads: they outlive the caller who began them, and are ended with this block."""
        async with asyncio.TaskGroup() as self._group:
            yield
            for load in self._loads:
                load.cancel()

    async def table(self) -> Table:
        """Everything at once."""
        rows = await self._runtimes.rows()
        machine, folder = self._runtimes.machine, models_dir(self._settings)

        def measure() -> tuple[tuple[Gpu, ...], Host, Path, Disk]:
            return machine.gpus(), machine.host(), folder.resolve(), disk(folder.resolve())

        gpus, host, where, space = await asyncio.to_thread(measure)
        return Table([(row, self._users(row.key)) for row in rows], gpus, host, where, space)

    async def row(self, key: RuntimeKey) -> tuple[Row, list[Tutor]]:
        """One of them. Raises ModelNotLoaded."""
        for row in await self._runtimes.rows():
            if row.key == key:
                return row, self._users(key)
        raise ModelNotLoaded(model=runtime_id(key))

    async def key(self, kind: Kind, provider: str, model: str) -> RuntimeKey:
        """What may be loaded by hand: what is configured, or lies in the folder of models.

        A model is code that runs here, so no other path is taken from a caller. Raises
        ModelUnknown.
        """
        for key in self._configured:
            if (key.kind, key.provider, key.model) == (kind, provider, model):
                return key
        if provider in LARGE and provider in PROVIDERS[kind]:
            found = await asyncio.to_thread(_in_folder, models_dir(self._settings), model)
            if found is not None:
                return RuntimeKey(kind, provider, str(found))
        raise ModelUnknown(kind=kind, model=model, provider=provider)

    async def fit(self, key: RuntimeKey) -> Fit:
        """Whether it would fit, and what would be closed for it."""
        return await self._runtimes.fit(key)

    async def load(self, key: RuntimeKey, *, pin: bool) -> AsyncGenerator[Step, None]:
        """Load it and keep it; the stages as they come. Whoever stops listening stops nothing.

        Raises what `Runtimes.acquire` does.
        """
        if self._group is None:
            raise RuntimeError("Models.load outside `running`")
        # The latest share of each stage: a slow reader misses shares, no stage.
        news: dict[Stage, float | None] = {}
        changed = asyncio.Event()

        def tell(stage: Stage, share: float | None) -> None:
            news[stage] = share
            changed.set()

        work = self._group.create_task(self._load(key, pin, tell))
        self._loads.add(work)
        work.add_done_callback(self._loads.discard)
        work.add_done_callback(lambda _: changed.set())
        while news or not work.done():
            changed.clear()
            for stage in list(news):
                yield stage, news.pop(stage)
            if not work.done():
                await changed.wait()
        if work.cancelled():
            raise ShuttingDown
        if (error := work.result()) is not None:
            raise error

    async def _load(self, key: RuntimeKey, pin: bool, watch: OnStage) -> GpuServerError | None:
        try:
            await self._runtimes.load(key, pin=pin, watch=watch)
        except GpuServerError as error:
            log.warning("model not loaded", model=runtime_id(key), code=error.code)
            return error
        # The top of this task: a provider's bug must not take the server down.
        except Exception:
            log.exception("model not loaded", model=runtime_id(key))
            return GpuServerError()
        return None

    async def unload(self, name: str) -> None:
        """Close the one of an id, dropping the engines that nobody talks to.

        Raises ModelNotLoaded, and ModelInUse with the `tutors` that use it.
        """
        key = self._runtimes.named(name)
        try:
            await self._runtimes.unload(key)
        except ModelInUse as error:
            tutors = self._users(key)
            users = ", ".join(tutor.name for tutor in tutors) or "a tutor that is being prepared"
            model = error.details["model"]
            raise ModelInUse(model=model, users=users, tutors=tutors) from error

    async def pin(self, name: str, *, pinned: bool) -> tuple[Row, list[Tutor]]:
        """Keep the one of an id, or no longer; until the server ends. Raises ModelNotLoaded."""
        key = self._runtimes.named(name)
        self._runtimes.pin(key, pinned=pinned)
        return await self.row(key)


def _configured(settings: Settings, catalogue: Catalogue) -> Iterator[RuntimeKey]:
    for tutor in (*catalogue, *map(catalogue.resolve, settings.tutor_overrides)):
        yield from catalogue.runtime_keys(tutor).values()
        yield from catalogue.fallback_keys(tutor)
    yield from catalogue.shared_keys.values()


def _in_folder(models: Path, model: str) -> Path | None:
    """The folder of a model there, by its name, its hub name or its path. Blocking."""
    path = Path(model)
    name = path.name if path.parent == models.resolve() else model.replace("/", "--")
    found = models.resolve() / name
    # What begins with a dot is no model: the folder itself, its parent, or a half-fetched one.
    usable = bool(name) and not name.startswith(".") and "\0" not in name
    # Path.is_dir raises for a name that is too long.
    return found if usable and os.path.isdir(found) else None
