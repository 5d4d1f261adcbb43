"""Five hundred clients lose their line and come back while another student is being answered."""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack
from functools import partial
from statistics import median
from typing import Any, Final

from bench.clients import Client, connect
from bench.common import Figure, Server, gather_limited, main, server
from bench.servers import BARE, PRODUCT
from gpuserver.client import Management, Ticket

BOUND: Final = 2.5
CLIENTS: Final = 500
_RATE: Final = 50
_TOKENS: Final = 20
_AT_ONCE: Final = 50
_SETTLE_SECONDS: Final = 0.7
_SEQ: Final = re.compile(rb'"seq":(\d+)')


class Bystander(Client):
    """Asks on and on, checks that no number is left out, and notes the longest pause."""

    seq = 0
    missed = 0
    longest = 0.0
    _came = 0.0

    def take(self, kind: int, payload: bytes) -> None:
        super().take(kind, payload)
        found = _SEQ.search(payload)
        if found and b'"session.ready"' not in payload:
            self.missed += int(found[1]) - self.seq - 1
            self.seq = int(found[1])
            now = asyncio.get_running_loop().time()
            if b'"text.delta"' in payload and self._came:
                self.longest = max(self.longest, now - self._came)
            self._came = now

    async def keep_asking(self) -> None:
        while True:
            self._came = 0.0
            await self.turn()


class Crowd:
    """The clients that leave and return; without tickets, those of a bare server."""

    def __init__(self, target: Server, tickets: list[Ticket] | list[None]) -> None:
        self._target, self._tickets = target, tickets
        self._clients: list[Client] = []
        self.refused = 0

    async def come(self) -> None:
        """Connect; every student asks once."""
        self._clients = [await connect(self._target, Client, x) for x in self._tickets]
        await gather_limited([client.turn for client in self._clients], _AT_ONCE)

    async def return_at_once(self) -> float:
        """CPU seconds of all handshakes, and of all resumptions, after the line was cut."""
        known = [client.last_seq for client in self._clients]
        self.leave()
        await asyncio.sleep(_SETTLE_SECONDS)
        others = await self._cores(_SETTLE_SECONDS)
        clock = asyncio.get_running_loop().time
        began, before = clock(), self._target.process.cpu_seconds()
        jobs = [partial(self._back, number, seq) for number, seq in enumerate(known)]
        await gather_limited(jobs, _AT_ONCE)
        used = self._target.process.cpu_seconds() - before
        return used - others * (clock() - began)

    async def _back(self, number: int, seq: int) -> None:
        ticket = self._tickets[number]
        client = await connect(self._target, Client, ticket, greeted=False)
        self._clients[number] = client
        if ticket is not None:
            client.tell({"type": "resume", "last_seq": seq})
            await client.ready.wait()
            self.refused += b'"resumed":true' not in client.last

    async def _cores(self, seconds: float) -> float:
        before = self._target.process.cpu_seconds()
        await asyncio.sleep(seconds)
        return (self._target.process.cpu_seconds() - before) / seconds

    def leave(self) -> None:
        for client in self._clients:
            client.close()


async def _measured(ours: Crowd, bare: Crowd, bystander: Bystander, rounds: int) -> list[Figure]:
    costs = [(await ours.return_at_once(), await bare.return_at_once()) for _ in range(rounds)]
    count = CLIENTS
    return [
        Figure(
            f"{count} clients back ÷ {count} bare handshakes",
            median(a / b for a, b in costs),
            "",
            BOUND,
        ),
        Figure("clients that could not go on", ours.refused, "", 0),
        Figure("frames that the bystander missed", bystander.missed, "", 0),
        Figure("the bystander's longest pause", bystander.longest * 1000, "ms"),
        Figure("a client back", median(a for a, _ in costs) / count * 1e6, "µs"),
        Figure("a bare handshake", median(b for _, b in costs) / count * 1e6, "µs"),
    ]


async def measure(quick: bool) -> list[Figure]:
    answer = ("--tokens", str(_TOKENS), "--rate", str(_RATE))
    limits: dict[str, Any] = {"max_sessions": CLIENTS + 1, "max_connections": 2 * CLIENTS}
    async with AsyncExitStack() as stack:
        ours = stack.enter_context(server("bench.servers", PRODUCT, *answer, **limits))
        bare = stack.enter_context(server("bench.servers", BARE, *answer, **limits))
        management = await stack.enter_async_context(Management(ours.url))
        tickets = [await management.create_session() for _ in range(CLIENTS + 1)]
        bystander = await connect(ours, Bystander, tickets.pop())
        crowds = Crowd(ours, tickets), Crowd(bare, [None] * CLIENTS)
        for crowd in crowds:
            await crowd.come()
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(bystander.keep_asking())
            figures = await _measured(*crowds, bystander, 2 if quick else 5)
            asking.cancel()
        for crowd in crowds:
            crowd.leave()
        bystander.close()
        await asyncio.sleep(_SETTLE_SECONDS)
    return figures


if __name__ == "__main__":
    main("readmission", measure)
