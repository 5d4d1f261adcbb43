"""Memory of a session that rests after twenty turns, against that of a bare connection."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final

from bench.clients import Client, clients
from bench.common import Figure, gather_limited, main, server
from bench.servers import BARE, PRODUCT

BOUND, AIM = 3, 2
TURNS: Final = 20
_AT_ONCE: Final = 8
_WAVES: Final = 3
_REST_SECONDS: Final = 13.0
"""Text of an answer stays in memory for a while, for a client that comes back at once."""
_ANSWER: Final = ("--tokens", "20", "--rate", "100000")


async def _talk(talking: Sequence[Client], turns: int) -> None:
    for _ in range(turns):
        await gather_limited([client.turn for client in talking], _AT_ONCE)


@dataclass(frozen=True)
class Memory:
    """Resident kB that a connection adds: at rest, and just after its turns."""

    resting: float
    fresh: float


async def _measured(kind: str, count: int) -> Memory:
    """After a first wave of connections, which fills caches, and pools that later ones are served
    from, two more, each of which rests while the next one talks."""
    most = _WAVES * count
    limits: dict[str, Any] = {"max_sessions": most, "max_connections": most + 50}
    with server("bench.servers", kind, *_ANSWER, **limits) as target:
        before, resting = target.process.rss_mb(), []
        async with AsyncExitStack() as stack:
            for wave in range(_WAVES):
                connected = await stack.enter_async_context(
                    clients(target, count, Client, ours=kind == PRODUCT)
                )
                await _talk(connected, TURNS)
                if not wave:
                    fresh = target.process.rss_mb()
                await asyncio.sleep(_REST_SECONDS)
                resting.append(target.process.rss_mb())
    later = count * (_WAVES - 1)
    return Memory((resting[-1] - resting[0]) * 1024 / later, (fresh - before) * 1024 / count)


async def measure(quick: bool) -> list[Figure]:
    count = 40 if quick else 100
    async with asyncio.TaskGroup() as group:
        measured = {x: group.create_task(_measured(x, count)) for x in (PRODUCT, BARE)}
    ours, bare = (measured[x].result() for x in (PRODUCT, BARE))
    return [
        Figure(
            "memory of a resting session ÷ bare connection",
            ours.resting / bare.resting,
            "",
            BOUND,
            AIM,
        ),
        Figure(f"resting session after {TURNS} turns", ours.resting, "kB"),
        Figure("bare connection", bare.resting, "kB"),
        Figure("first sessions, just after their turns, with caches", ours.fresh, "kB"),
        Figure("first bare connections", bare.fresh, "kB"),
    ]


if __name__ == "__main__":
    main("memory", measure)
