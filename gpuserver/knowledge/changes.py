"""Who watches the knowledge bases, told of every change and never made to queue."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Iterable

from gpuserver.knowledge.info import BaseInfo, Change, Removed

_Item = tuple[str, str | None]


class Changes:
    """Tells all watchers. Used from the event loop alone."""

    def __init__(self) -> None:
        # A watcher whose reader has gone goes by itself.
        self._watchers: weakref.WeakSet[Watcher] = weakref.WeakSet()
        self._closed = False

    def tell(self, change: Change) -> None:
        """Pass a change on to those who watch its base."""
        for watcher in list(self._watchers):
            watcher.tell(change)

    def watch(self, kb_id: str | None, present: Iterable[Change]) -> Watcher:
        """A watcher of one base or of all, who is told the present state first."""
        watcher = Watcher(kb_id)
        for change in present:
            watcher.tell(change)
        if self._closed:
            watcher.close()
        self._watchers.add(watcher)
        return watcher

    def close(self) -> None:
        """Every watcher comes to an end, with what it has not been told yet."""
        self._closed = True
        for watcher in list(self._watchers):
            watcher.close()


class Watcher(AsyncIterator[Change]):
    """The changes of each item that its reader has not seen, the newest of each alone."""

    def __init__(self, kb_id: str | None) -> None:
        self._kb_id = kb_id
        self._waiting: dict[_Item, Change] = {}
        self._bell = asyncio.Event()
        self._closed = False

    def tell(self, change: Change) -> None:
        """Keep a change for the reader; of other bases than the one that is watched: nothing."""
        kb_id, document_id = _item(change)
        if self._closed or self._kb_id not in {None, kb_id}:
            return
        if isinstance(change, Removed) and document_id is None:
            self._waiting = {key: kept for key, kept in self._waiting.items() if key[0] != kb_id}
        # Behind what has been waiting longer.
        self._waiting.pop((kb_id, document_id), None)
        self._waiting[kb_id, document_id] = change
        self._bell.set()
        if isinstance(change, Removed) and kb_id == self._kb_id and document_id is None:
            self.close()

    def close(self) -> None:
        """Let the reader come to the end."""
        self._closed = True
        self._bell.set()

    async def __anext__(self) -> Change:
        while not self._waiting:
            if self._closed:
                raise StopAsyncIteration
            self._bell.clear()
            await self._bell.wait()
        return self._waiting.pop(next(iter(self._waiting)))


def _item(change: Change) -> _Item:
    if isinstance(change, BaseInfo):
        return change.kb_id, None
    if isinstance(change, Removed):
        return change.kb_id, change.document_id
    return change[0], change[1].id
