"""Changes of knowledge bases as server-sent events, until the reader leaves or the server stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import asdict
from typing import Any, Final

from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import EventSourceResponse

from gpuserver.api.knowledge_bodies import Base, ToldDocument, ToldRemoval, fields_of
from gpuserver.knowledge.info import BaseInfo, Change, Removed

PING_SECONDS: Final = 15
_SEPARATOR: Final = "\n"


class Events(EventSourceResponse):
    """`event: base`, `document` or `removed` with its JSON, and a comment now and then.

    One who reads slowly is told the newest states only: the knowledge sees to that.
    """

    def __init__(self, changes: AsyncIterator[Change], closing: asyncio.Event) -> None:
        super().__init__(_told(changes, closing), ping=PING_SECONDS, sep=_SEPARATOR)

    async def _listen_for_exit_signal(self) -> None:  # type: ignore[override]
        """Never: the stream itself ends when the server stops.

        sse-starlette would start a task that nobody owns and cut the stream off.
        """
        await asyncio.Event().wait()


async def _told(
    changes: AsyncIterator[Change], closing: asyncio.Event
) -> AsyncGenerator[ServerSentEvent, None]:
    closed: asyncio.Future[Any] = asyncio.ensure_future(closing.wait())
    waiting = [closed]
    try:
        while True:
            following = asyncio.ensure_future(anext(changes, None))
            waiting = [closed, following]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            change = None if closed.done() else following.result()
            if change is None:
                break
            yield _event(change)
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        if isinstance(changes, AsyncGenerator):
            await changes.aclose()


def _event(change: Change) -> ServerSentEvent:
    match change:
        case BaseInfo():
            kind, data = "base", Base.of(change).model_dump_json()
        case Removed():
            kind, data = "removed", ToldRemoval(**asdict(change)).model_dump_json()
        case (kb_id, document):
            told = ToldDocument(kb_id=kb_id, **fields_of(document))
            kind, data = "document", told.model_dump_json()
    return ServerSentEvent(data, event=kind, sep=_SEPARATOR)
