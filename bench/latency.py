"""How long a token takes from the model to the client, and how many sessions get theirs in time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from math import log
from statistics import median, quantiles
from typing import Final

from bench.clients import Timed, clients
from bench.common import Figure, Server, main, server
from bench.overhead import RATE, ask_all
from bench.servers import BARE, PRODUCT

ADDED_BOUND, ADDED_AIM = 1.5, 1.1
CAPACITY_BOUND: Final = 0.7
LATE: Final = 0.05
SESSIONS: Final = 32
_MOST: Final = 1500
_STEP: Final = 1.25
_FIRST: Final = 50
_TURN_SECONDS: Final = 60.0
_SETTLE_SECONDS: Final = 1.2
"""All ask within a beat, and ours searches the course for each of them before it streams."""


async def _ages(asking: Sequence[Timed], seconds: float) -> list[float]:
    """Seconds between each token's stamp and its arrival, in the middle of an answer to all."""
    async with asyncio.timeout(_TURN_SECONDS):
        await ask_all(asking)
        await asyncio.sleep(_SETTLE_SECONDS)
        for client in asking:
            client.ages, client.keeping = [], True
        await asyncio.sleep(seconds)
        for client in asking:
            client.keeping = False
        for client in asking:
            await client.done.wait()
    return [age / 1e9 for client in asking for age in client.ages]


def _script(seconds: float, stamp: str) -> list[str]:
    tokens = round(RATE * (seconds + _SETTLE_SECONDS + 0.2))
    return ["--tokens", str(tokens), "--rate", str(RATE), "--stamp", stamp]


async def _pair(
    stack: AsyncExitStack, answer: list[str], sessions: int
) -> dict[str, tuple[Server, list[Timed]]]:
    """Our server and the bare one, with so many clients each."""
    pair = {}
    for kind in (PRODUCT, BARE):
        target = stack.enter_context(
            server(
                "bench.servers", kind, *answer, max_sessions=sessions, max_connections=sessions + 50
            )
        )
        connected = await stack.enter_async_context(
            clients(target, sessions, Timed, ours=kind == PRODUCT)
        )
        pair[kind] = (target, connected)
    return pair


async def _added(rounds: int, seconds: float) -> list[Figure]:
    medians: dict[str, list[float]] = {PRODUCT: [], BARE: []}
    async with AsyncExitStack() as stack:
        pair = await _pair(stack, _script(seconds, "made"), SESSIONS)
        for number in range(rounds):
            for kind in sorted(pair, reverse=bool(number % 2)):
                medians[kind].append(median(await _ages(pair[kind][1], seconds)))
    ratio = median(a / b for a, b in zip(medians[PRODUCT], medians[BARE], strict=True))
    return [
        Figure("model → client, median ÷ bare", ratio, "", ADDED_BOUND, ADDED_AIM),
        *(Figure(f"model → client: {k}", median(x) * 1e6, "µs") for k, x in medians.items()),
    ]


async def _capacity(seconds: float, most: int) -> list[Figure]:
    """More and more sessions ask, ours and bare ones in turn, until 1 % of tokens is late."""
    late: dict[str, list[tuple[int, float]]] = {PRODUCT: [], BARE: []}
    async with AsyncExitStack() as stack:
        pair = await _pair(stack, _script(seconds, "due"), most)
        sessions = _FIRST
        while sessions <= most:
            going = [kind for kind, levels in late.items() if not levels or levels[-1][1] < LATE]
            if not going:
                break
            for kind in going:
                ages = await _ages(pair[kind][1][:sessions], seconds)
                late[kind].append((sessions, max(1e-6, quantiles(ages, n=100)[98])))
            sessions = round(sessions * _STEP)
    ours, bare = (_in_time(late[kind]) for kind in (PRODUCT, BARE))
    return [
        Figure("sessions in time ÷ bare", ours / bare, "", CAPACITY_BOUND, at_least=True),
        Figure("sessions in time: product", ours),
        Figure("sessions in time: bare", bare),
    ]


def _in_time(levels: list[tuple[int, float]]) -> float:
    """Sessions at which 1 % of tokens begins to be late, between the last two levels."""
    if levels[0][1] >= LATE:
        raise RuntimeError(f"this machine is too busy: {_FIRST} sessions are late already")
    if levels[-1][1] < LATE:
        return levels[-1][0]
    (fewer, early), (more, late) = levels[-2:]
    return fewer + (more - fewer) * log(LATE / early) / log(late / early)


async def measure(quick: bool) -> list[Figure]:
    rounds, seconds, most = (3, 0.6, 500) if quick else (9, 1.0, _MOST)
    return [*await _added(rounds, seconds), *await _capacity(seconds, most)]


if __name__ == "__main__":
    main("latency", measure)
