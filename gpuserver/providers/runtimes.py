"""What is loaded: each model once, shared by whoever leases it, closed when nobody does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from gpuserver.observability import get_logger
from gpuserver.providers import Place, Runtime, RuntimeKey, find

log = get_logger(__name__)
_T = TypeVar("_T")


async def finish_in_thread(function: Callable[..., _T], *args: Any) -> _T:
    """Run a blocking function in a thread and wait for its end even when the caller is cancelled.

    A thread can't be stopped; leaving it behind would let a half-made thing outlive its owner.
    """
    work = asyncio.get_running_loop().run_in_executor(None, function, *args)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        raise


@dataclass(slots=True, eq=False)
class _Entry:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    runtime: Any = None
    leases: int = 0


class Runtimes:
    """Loaded models by what they are (`RuntimeKey`), counted by lease.

    A model is loaded once under concurrency, in a thread; a failed load leaves nothing behind.
    """

    def __init__(self, place: Place, factory: Callable[[RuntimeKey], Any] = find) -> None:
        self._place = place
        self._factory = factory
        self._entries: dict[RuntimeKey, _Entry] = {}

    async def acquire(self, key: RuntimeKey) -> Any:
        """The runtime for a key, loaded if need be; give it back by `release`.

        Raises ProviderUnavailable.
        """
        entry = self._entries.setdefault(key, _Entry())
        entry.leases += 1
        try:
            async with entry.lock:
                if entry.runtime is None:
                    entry.runtime = await self._load(key)
        except BaseException:
            await self.release(key)
            raise
        return entry.runtime

    async def release(self, key: RuntimeKey) -> None:
        """Give a lease back; the last one closes the runtime."""
        entry = self._entries[key]
        entry.leases -= 1
        if entry.leases == 0:
            del self._entries[key]
            if entry.runtime is not None:
                await finish_in_thread(entry.runtime.close)
                log.info("runtime closed", kind=key.kind, provider=key.provider, model=key.model)

    def loaded(self) -> dict[RuntimeKey, int]:
        """Every loaded runtime and how many engines lease it."""
        return {k: e.leases for k, e in self._entries.items() if e.runtime is not None}

    async def _load(self, key: RuntimeKey) -> Runtime:
        runtime: Runtime = self._factory(key)(key.model, self._place)
        try:
            await finish_in_thread(runtime.load)
        except BaseException:
            await finish_in_thread(runtime.close)
            raise
        log.info("runtime loaded", kind=key.kind, provider=key.provider, model=key.model)
        return runtime
