"""What fifty students at once and a thousand one after another leave behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from bench.common import Figure, Server, gather_limited, main, server
from gpuserver.client import Management, converse

LEASES: Final = 50
_TUTOR: Final = 2
_AT_ONCE: Final = 8
_BOUND_OBJECTS: Final = 100
_BOUND_MB: Final = 1.0
"""The allocator's own noise; a session that stayed would take kilobytes a thousand times."""

Work = Callable[[], Awaitable[None]]


async def _builds(target: Server, management: Management) -> int:
    """Sessions of a tutor that nobody has used yet, all opened at the same moment."""
    tickets = [await management.create_session(_TUTOR) for _ in range(LEASES)]
    everybody_is_in = asyncio.Barrier(LEASES)

    async def student(number: int) -> None:
        async with converse(tickets[number]) as conversation:
            await conversation.until("session.ready")
            await everybody_is_in.wait()

    async with asyncio.TaskGroup() as group:
        for number in range(LEASES):
            group.create_task(student(number))
    for ticket in tickets:
        await management.delete_session(ticket.session_id)
    log = await asyncio.to_thread(target.log.read_text)
    return sum("engine built" in line and f"tutor={_TUTOR}" in line for line in log.splitlines())


async def _growth(target: Server, management: Management, work: Work) -> tuple[int, float]:
    """Live objects and resident MB that some work leaves behind."""
    before, rss = await _objects(management), target.process.rss_mb()
    await work()
    return await _objects(management) - before, target.process.rss_mb() - rss


async def _objects(management: Management) -> int:
    # Tasks of closed sockets end within a loop's turn or two.
    await asyncio.sleep(0.3)
    return int((await management.get("/bench/objects")).text)


def _sessions(management: Management, count: int, *, talk: bool) -> Work:
    """Sessions created and deleted; with `talk`, each with a socket and a turn in between."""

    async def one() -> None:
        ticket = await management.create_session()
        if talk:
            async with converse(ticket) as conversation:
                await conversation.until("session.ready")
                await conversation.text("What is a list?")
                await conversation.turn()
        await management.delete_session(ticket.session_id)

    async def all_of_them() -> None:
        await gather_limited([one] * count, _AT_ONCE)

    return all_of_them


async def measure(quick: bool) -> list[Figure]:
    figures: list[Figure] = []
    answer = ("--tokens", "20", "--rate", "1000")
    with server("bench.servers", "product", *answer, max_sessions=LEASES + _AT_ONCE) as target:
        async with Management(target.url) as management:
            builds = await _builds(target, management)
            figures.append(Figure(f"engine builds for {LEASES} leases at once", builds, bound=1))
            for what, talk, count in (
                ("sessions created and deleted", False, 200 if quick else 1000),
                ("sessions with a socket and a turn", True, 50 if quick else 300),
            ):
                # The first ones fill caches and pools.
                await _sessions(management, count, talk=talk)()
                work = _sessions(management, count, talk=talk)
                objects, grown = await _growth(target, management, work)
                figures += [
                    Figure(f"{count} {what}: objects left", objects, "", _BOUND_OBJECTS),
                    Figure(f"{count} {what}: memory grown", grown, "MB", _BOUND_MB),
                ]
    return figures


if __name__ == "__main__":
    main("leases", measure)
