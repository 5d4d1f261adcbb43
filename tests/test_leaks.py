"""Ten thousand sessions come and go; afterwards the process is as it was."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import sqlite3
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from gpuserver.api.tutor_v2 import DialectV2
from gpuserver.client import Management, Ticket, converse
from gpuserver.tutor.turn import Question
from tests.conftest import Scripted, Serve
from tests.test_faults import eventually
from tests.test_live_voice import silence, sound

_CREATED: Final = 9_000
_SERVED: Final = 700
_CONNECTED: Final = 300
_AT_ONCE: Final = 20
_RSS_MB: Final = 4.0


@dataclass(frozen=True)
class Traces:
    """What sessions could leave behind."""

    objects: Counter[str]
    tasks: int
    timers: int
    rows: dict[str, int]
    spool: int
    sockets: int
    rss_mb: float


def traces(server: Scripted) -> Traces:
    """As they are now. Blocks."""
    gc.collect()
    objects = Counter(
        f"{type(thing).__module__}.{type(thing).__qualname__}"
        for thing in gc.get_objects()
        if str(type(thing).__module__).startswith("gpuserver")
    )
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    loop: Any = asyncio.get_running_loop()
    return Traces(
        objects,
        len(asyncio.all_tasks()),
        sum(not timer.cancelled() for timer in loop._scheduled),
        rows(server.state.settings.data_dir / "sessions.db"),
        server.state.sessions._spool.size,
        len(os.listdir("/proc/self/fd")),
        pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
    )


def rows(path: Path) -> dict[str, int]:
    db = sqlite3.connect(path)
    try:
        tables = ("session", "event", "exchange", "feedback")
        return {t: db.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in tables}
    finally:
        db.close()


class Nobody:
    """A client without a socket."""

    def replace(self) -> None:
        raise AssertionError("there is no other")


async def created(server: Scripted, count: int) -> None:
    for number in range(count):
        session, _ = await server.state.sessions.create(1, number, None)
        server.state.sessions.delete(session.id)
        if number % 100 == 0:
            await asyncio.sleep(0)


async def served(server: Scripted, count: int) -> None:
    """With an engine and an answer, deleted in its middle or after it."""
    for start in range(0, count, _AT_ONCE):
        async with asyncio.TaskGroup() as group:
            for number in range(start, min(start + _AT_ONCE, count)):
                group.create_task(one_served(server, number))


async def one_served(server: Scripted, number: int) -> None:
    session, _ = await server.state.sessions.create(1, number, None)
    live = server.state.live_sessions.open(session)
    dialect = DialectV2(live, await live.engine())
    client = Nobody()
    live.attach(client, dialect)
    live.ask(Question("en", "What is a list?", speak=True), dialect)
    if number % 2:
        await eventually(lambda: not session.open_turn)
    server.state.sessions.delete(session.id)
    await live.stopped.wait()
    live.detach(client)


async def connected(server: Scripted, count: int) -> None:
    async with server.management() as management:
        for start in range(0, count, _AT_ONCE):
            async with asyncio.TaskGroup() as group:
                for _ in range(start, min(start + _AT_ONCE, count)):
                    group.create_task(one_connected(management))


async def one_connected(management: Management) -> None:
    """A spoken turn, a line that drops in its middle, a return, and the end."""
    ticket: Ticket = await management.create_session()
    async with converse(ticket) as socket:
        await socket.receive()
        await socket.append(sound(0.5) + silence(0.8))
        last = (await socket.until("audio.delta"))["seq"]
        await socket.drop()
    async with converse(ticket) as socket:
        await socket.resume(last)
        assert (await socket.receive())["resumed"]
        await socket.until("turn.done")
        await socket.feedback("t1", 1, "good")
        await socket.append(sound(0.2))
        await management.delete_session(ticket.session_id)
        await socket.until("session.ending")


async def churn(server: Scripted, share: float) -> None:
    await created(server, int(_CREATED * share))
    await served(server, int(_SERVED * share))
    await connected(server, int(_CONNECTED * share))


@pytest.mark.slow
async def test_ten_thousand_sessions_leave_nothing_behind(serve: Serve) -> None:
    async with serve(max_sessions=100, log_level="ERROR") as server:
        server.cast.asr.otherwise = "what is a list"
        # What the allocator and the caches keep, they keep from here on.
        await churn(server, 0.6)
        before = await settled(server, lambda now: not any(now.rows.values()))
        server.cast.llm.requests.clear()
        server.cast.tts.clauses.clear()
        await churn(server, 1.0)
        server.cast.llm.requests.clear()
        server.cast.tts.clauses.clear()
        after = await settled(server, lambda now: same(before, now))
    assert same(before, after), (before, after, after.objects - before.objects)
    assert after.rss_mb - before.rss_mb < _RSS_MB


def same(before: Traces, now: Traces) -> bool:
    return (
        not now.objects - before.objects
        and now.tasks <= before.tasks
        and now.timers <= before.timers
        and now.rows == before.rows
        and now.spool == before.spool == 0
        and now.sockets <= before.sockets
    )


async def settled(server: Scripted, done: Callable[[Traces], bool]) -> Traces:
    """The traces once the last sockets, timers and writes have gone, or still have not."""
    for _ in range(20):
        await asyncio.sleep(0.25)
        now = traces(server)
        if done(now):
            break
    return now
