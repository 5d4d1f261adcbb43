"""Whether a turn costs more where there are more sessions, longer histories or more tutors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from math import log
from statistics import fmean, median
from typing import Any, Final

from bench.clients import Client, clients
from bench.common import Figure, Server, gather_limited, main, server
from bench.servers import PRODUCT

SESSIONS: Final = (10, 50, 200, 500)
HISTORY: Final = (1, 10, 50, 200)
TUTORS: Final = (1, 4, 32)
SESSIONS_BOUND, HISTORY_BOUND, TUTORS_BOUND = 0.05, 0.1, 0.05
_AT_ONCE: Final = 8
_ROUND_SECONDS: Final = 3.0
_TOKENS: Final = 20


async def _cost(target: Server, asking: Sequence[Client], turns: int) -> float:
    """CPU milliseconds a turn, of so many turns spread over the clients."""
    jobs = [client.turn for client in asking] * -(-turns // len(asking))
    before = target.process.cpu_seconds()
    # A client asks again only after all others have: its turns never overlap.
    await gather_limited(jobs[:turns], min(_AT_ONCE, len(asking)))
    return (target.process.cpu_seconds() - before) / turns * 1000


def exponent(costs: dict[int, list[float]]) -> float:
    """Slope of log cost over log size, by least squares: 0 where the cost does not grow."""
    sizes = [log(size) for size in costs]
    values = [log(median(cost)) for cost in costs.values()]
    middle, level = fmean(sizes), fmean(values)
    above = sum((x - middle) * (y - level) for x, y in zip(sizes, values, strict=True))
    return above / sum((x - middle) ** 2 for x in sizes)


@asynccontextmanager
async def _product(sessions: int, tutors: int = 2) -> AsyncIterator[Server]:
    answer = ("--tokens", str(_TOKENS), "--rate", "100000", "--tutors", str(tutors))
    limits: dict[str, Any] = {
        "max_sessions": sessions,
        "max_connections": sessions + 50,
        "engine_cache_size": 64,
    }
    with server("bench.servers", PRODUCT, *answer, **limits) as target:
        yield target


async def _by_sessions(sizes: Sequence[int], rounds: int) -> dict[int, list[float]]:
    """A server for each number of sessions, measured in turn; every session asks once a round.

    Some work comes once a while for each session, however often it asks: tidying its events,
    noting that it is in use. A session that asked fifty times as often would have it almost free.
    """
    costs: dict[int, list[float]] = {size: [] for size in sizes}
    async with AsyncExitStack() as stack:
        loads = {}
        for size in sizes:
            target = await stack.enter_async_context(_product(size))
            asking = await stack.enter_async_context(clients(target, size, Client, ours=True))
            loads[size] = (target, asking)
            await _cost(target, asking, size)
        for number in range(rounds):
            following = time.monotonic() + _ROUND_SECONDS
            for size in sorted(loads, reverse=bool(number % 2)):
                costs[size].append(await _cost(*loads[size], size))
            await asyncio.sleep(max(0.0, following - time.monotonic()))
    return costs


async def _by_history(rounds: int, each: int) -> dict[int, list[float]]:
    """Fresh sessions for each length and round, one turn of each measured."""
    costs: dict[int, list[float]] = {size: [] for size in HISTORY}
    async with _product(4 * each) as target:
        for number in range(rounds):
            for size in sorted(HISTORY, reverse=bool(number % 2)):
                async with clients(target, each, Client, ours=True) as asking:
                    await _cost(target, asking, each * size)
                    costs[size].append(await _cost(target, asking, each))
    return costs


async def _by_tutors(rounds: int, turns: int) -> dict[int, list[float]]:
    """As many sessions, with few tutors or with many."""
    most = max(TUTORS)
    costs: dict[int, list[float]] = {size: [] for size in TUTORS}
    async with _product(most * len(TUTORS), most) as target, AsyncExitStack() as stack:
        loads = {
            size: await stack.enter_async_context(
                clients(target, most, Client, ours=True, tutors=size)
            )
            for size in TUTORS
        }
        for asking in loads.values():
            await _cost(target, asking, most)
        for number in range(rounds):
            for size in sorted(loads, reverse=bool(number % 2)):
                costs[size].append(await _cost(target, loads[size], turns))
    return costs


def _figures(what: str, costs: dict[int, list[float]], bound: float) -> list[Figure]:
    sizes = list(costs)
    name = f"growth of CPU a turn, {what} {sizes[0]} → {sizes[-1]}"
    return [
        Figure(name, exponent(costs), "", bound),
        *(Figure(f"{size} {what}", median(cost), "ms a turn") for size, cost in costs.items()),
    ]


async def measure(quick: bool) -> list[Figure]:
    rounds, turns, each = (3, 60, 6) if quick else (7, 160, 24)
    sizes = SESSIONS[:3] if quick else SESSIONS
    return [
        *_figures("sessions", await _by_sessions(sizes, 3 * rounds), SESSIONS_BOUND),
        *_figures("turns of history", await _by_history(rounds, each), HISTORY_BOUND),
        *_figures("tutors", await _by_tutors(rounds, turns), TUTORS_BOUND),
    ]


if __name__ == "__main__":
    main("growth", measure)
