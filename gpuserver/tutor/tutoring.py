"""All that one server teaches with: tutors, courses, runtimes and engines, loaded with progress."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpuserver.config import Settings
from gpuserver.errors import FolderNotWritable, NotReady, known_cause
from gpuserver.knowledge.knowledge_bases import KnowledgeBases
from gpuserver.providers import Place, RuntimeKey, find
from gpuserver.providers.runtimes import Runtimes, finish_in_thread
from gpuserver.tutor.ai_engine import Engines
from gpuserver.tutor.tutors import SHIPPED, Catalogue


@dataclass(slots=True)
class Progress:
    """What the server is loading: `done` of `total` steps of a `stage`; `ready` at the end."""

    stage: str = "starting"
    done: int = 0
    total: int = 0
    ready: bool = False


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
    ) -> None:
        """`watch` is called with every step of progress; `factory` finds a provider's class.

        Raises ConfigurationError.
        """
        self.progress = Progress()
        self._watch = watch
        self._settings = settings
        self._data_dir = _writable(settings)
        self.catalogue = Catalogue(
            settings.tutors_file or SHIPPED,
            {
                f"{kind}_{what}": getattr(settings, f"{kind}_{what}")
                for kind in ("llm", "asr", "tts", "embeddings")
                for what in ("provider", "model")
            },
            settings.tutor_overrides,
            refuse_unknown=settings.unknown_tutor == "refuse",
            factory=factory,
        )
        self.runtimes = Runtimes(Place(self._data_dir, settings.asr_workers), factory)
        self._knowledge: KnowledgeBases | None = None
        self._engines: Engines | None = None

    @property
    def knowledge(self) -> KnowledgeBases:
        """The courses. Raises NotReady while they load."""
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

    async def load(self) -> None:
        """Load courses and the default tutor's engine, and run every model once.

        Raises ConfigurationError, ProviderUnavailable.
        """
        self._report("models")
        ahead: list[RuntimeKey] = []

        async def hold(key: RuntimeKey) -> None:
            await self.runtimes.acquire(key)
            ahead.append(key)

        try:
            # Speech engines start in processes of their own while the course is being indexed.
            async with asyncio.TaskGroup() as loading:
                indexing = loading.create_task(self._index())
                for key in self.catalogue.runtime_keys(self.catalogue.default).values():
                    loading.create_task(hold(key))
            self._knowledge = indexing.result()
            self._engines = Engines(
                self.catalogue, self.runtimes, self._knowledge, self._settings.engine_cache_size
            )
            self._report("warm-up")
            async with self._engines.lease(self.catalogue.default.id) as engine:
                await engine.warm_up()
        except BaseExceptionGroup as group:
            raise known_cause(group) from group
        finally:
            for key in ahead:
                await self.runtimes.release(key)
        self._report("ready", ready=True)

    async def _index(self) -> KnowledgeBases:
        embeddings = await self.runtimes.acquire(self.catalogue.embeddings_key)
        loop = asyncio.get_running_loop()

        def indexed(done: int, total: int) -> None:
            loop.call_soon_threadsafe(self._report, "course", done, total)

        return await finish_in_thread(
            KnowledgeBases.build, self.catalogue.courses, embeddings, self._data_dir, indexed
        )

    async def close(self) -> None:
        """Drop engines and runtimes; nobody may hold a lease any more."""
        if self._engines is not None:
            await self._engines.close()
        if self.catalogue.embeddings_key in self.runtimes.loaded():
            await self.runtimes.release(self.catalogue.embeddings_key)

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
