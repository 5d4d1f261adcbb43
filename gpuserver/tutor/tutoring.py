"""All that one server teaches with: tutors, courses, runtimes and engines, loaded with progress."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpuserver.config import Settings
from gpuserver.errors import ConfigurationError, FolderNotWritable, NotReady, known_cause
from gpuserver.knowledge.knowledge_bases import KnowledgeBases
from gpuserver.knowledge.reranking import Reranking
from gpuserver.machine import Machine
from gpuserver.metrics import Metrics
from gpuserver.observability import get_logger
from gpuserver.providers import Kind, Place, RuntimeKey
from gpuserver.providers.table import find
from gpuserver.runtimes.probing import Prober
from gpuserver.runtimes.runtimes import Runtimes
from gpuserver.threads import finish_in_thread
from gpuserver.tutor.ai_engine import Engines
from gpuserver.tutor.models import Models
from gpuserver.tutor.tutors import Catalogue, Tutor

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Condition:
    """Which of the default tutor's models don't work, by kind, and why.

    `degraded` are those that another one stands in for, or that an answer can do without.
    """

    failing: dict[Kind, str]
    degraded: dict[Kind, str]


@dataclass(slots=True)
class Progress:
    """What the server is loading: `done` of `total` steps of a `stage`; `ready` at the end."""

    stage: str = "starting"
    done: int = 0
    total: int = 0
    ready: bool = False


class _Stopped(Exception):
    """The server ends while it indexes its courses."""


class Tutoring:
    """The tutors of this server and what they need. The same behind the doors and the command line.

    The catalogue is there at once, so that what is wrong in it stops the start; the rest comes
    with `load`.
    """

    def __init__(
        self,
        settings: Settings,
        watch: Callable[[Progress], None] | None = None,
        factory: Callable[[RuntimeKey], Any] = find,
        machine: Machine | None = None,
    ) -> None:
        """`watch` is called with every step of progress; `factory` finds a provider's class;
        `machine` is this one.

        Raises ConfigurationError.
        """
        self.progress = Progress()
        self._watch = watch
        self._settings = settings
        self._data_dir = _writable(settings)
        self.metrics = Metrics()
        self.catalogue = Catalogue(settings, factory)
        place = Place(self._data_dir, settings)
        self.runtimes = Runtimes(place, factory, self.metrics.meter, machine)
        if settings.profile == "gpu" and not self.runtimes.machine.gpus():
            raise ConfigurationError(
                problem="PROFILE=gpu needs an NVIDIA GPU, and none is to be seen here.",
                fix="install its driver, look at CUDA_VISIBLE_DEVICES, or set PROFILE to cpu or "
                "embedded.",
            )
        self.metrics.watch_runtimes(self.runtimes.rows)
        self.models = Models(settings, self.catalogue, self.runtimes, self.users)
        self._prober = Prober(self.runtimes, settings.first_token_timeout_seconds)
        self._held: list[RuntimeKey] = []
        self._knowledge: KnowledgeBases | None = None
        self._reranking: Reranking | None = None
        self._engines: Engines | None = None
        self._loaded = asyncio.Event()

    @property
    def knowledge(self) -> KnowledgeBases:
        """The courses and what was uploaded. Raises NotReady while they load."""
        self.check_ready()
        assert self._knowledge is not None
        return self._knowledge

    @property
    def engines(self) -> Engines:
        """The tutors' engines. Raises NotReady while the courses load."""
        if self._engines is None:
            raise NotReady(stage=self.progress.stage, retry_after=1)
        return self._engines

    def check_ready(self) -> None:
        """Raises NotReady, with what is being loaded."""
        if not self.progress.ready:
            raise NotReady(stage=self.progress.stage, retry_after=1)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Watch over the models, own those that are loaded by hand, and index what is uploaded,
        while the block runs."""
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(self._prober.run_forever())
            indexing = group.create_task(self._index_uploads())
            async with self.models.running():
                yield
            watch.cancel()
            indexing.cancel()

    async def _index_uploads(self) -> None:
        """From the moment that students may come: they do not wait for it."""
        await self._loaded.wait()
        assert self._knowledge is not None
        async with self._knowledge.running():
            await asyncio.get_running_loop().create_future()

    def users(self, key: RuntimeKey) -> list[Tutor]:
        """The tutors that hold a runtime; the default tutor always holds its own."""
        users = {t.id: t for t in self._engines.users(key)} if self._engines is not None else {}
        if key in self._held:
            users.setdefault(self.catalogue.default.id, self.catalogue.default)
        return list(users.values())

    def condition(self) -> Condition:
        """How the default tutor's models are, at once."""
        default = self.catalogue.default
        keys = {**self.catalogue.runtime_keys(default), **self.catalogue.shared_keys}
        problems = {kind: self.runtimes.problem(key) for kind, key in keys.items()}
        failing = {kind: problem for kind, problem in problems.items() if problem}
        degraded: dict[Kind, str] = {}
        fallbacks = self.catalogue.fallback_keys(default)
        if "llm" in failing and any(not self.runtimes.problem(key) for key in fallbacks):
            degraded["llm"] = failing.pop("llm")
        told = self._reranking.problem if self._reranking is not None else ""
        unranked = failing.pop("reranker", told)
        if unranked:
            degraded["reranker"] = unranked
        return Condition(failing, degraded)

    async def load(self) -> None:
        """Load courses and the default tutor's engine, and run every model once.

        The default tutor's runtimes are held until `close`: no other model takes their place.
        Raises ConfigurationError, ProviderUnavailable.
        """
        self._report("models")
        try:
            # Speech engines start in processes of their own while the course is being indexed.
            async with asyncio.TaskGroup() as loading:
                indexing = loading.create_task(self._index())
                default = self.catalogue.default
                first = self.catalogue.runtime_keys(default).values()
                for key in {*first, *self.catalogue.fallback_keys(default)}:
                    loading.create_task(self._hold(key))
            self._engines = Engines(
                self.catalogue,
                self.runtimes,
                indexing.result(),
                self._settings.engine_cache_size,
                self._settings.first_token_timeout_seconds,
            )
            self.runtimes.lessees = self._engines
            self._report("warm-up")
            async with self._engines.lease(self.catalogue.default.id) as engine:
                await engine.warm_up()
        except BaseExceptionGroup as group:
            raise known_cause(group) from group
        self._report("ready", ready=True)
        self._loaded.set()

    async def _hold(self, key: RuntimeKey) -> Any:
        runtime = await self.runtimes.acquire(key)
        self._held.append(key)
        return runtime

    async def _index(self) -> KnowledgeBases:
        embeddings = await self._hold(self.catalogue.embeddings_key)
        index = await self._hold(self.catalogue.index_key)
        if (reranker := self.catalogue.reranker_key) is not None:
            self._reranking = Reranking(await self._hold(reranker))
        loop = asyncio.get_running_loop()
        stopping = threading.Event()

        def indexed(done: int, total: int) -> None:
            if stopping.is_set():
                raise _Stopped
            loop.call_soon_threadsafe(self._report, "course", done, total)

        def open_knowledge() -> KnowledgeBases:
            # Kept at once: whatever becomes of the load, `close` closes its files.
            self._knowledge = KnowledgeBases.open(
                self.catalogue.courses,
                embeddings,
                self._data_dir,
                indexed,
                index,
                self._settings,
                reranking=self._reranking,
            )
            return self._knowledge

        knowledge = await finish_in_thread(open_knowledge, hurry=stopping.set)
        for tutor in self.catalogue:
            for kb_id in tutor.knowledge:
                if not knowledge.known(kb_id):
                    log.warning("unknown knowledge base", tutor=tutor.id, kb_id=kb_id)
        return knowledge

    async def close(self) -> None:
        """Drop engines and runtimes; nobody may hold a lease any more."""
        if self._engines is not None:
            await self._engines.close()
        if self._knowledge is not None:
            await asyncio.to_thread(self._knowledge.close)
        while self._held:
            await self.runtimes.release(self._held.pop())
        await self.runtimes.close()

    def _report(self, stage: str, done: int = 0, total: int = 0, *, ready: bool = False) -> None:
        self.progress = Progress(stage, done, total, ready)
        if self._watch is not None:
            self._watch(self.progress)


def _writable(settings: Settings) -> Path:
    folder = settings.data_dir.resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise FolderNotWritable(folder=settings.data_dir, reason=error.strerror) from error
    return folder
