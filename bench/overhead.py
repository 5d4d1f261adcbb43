"""Server CPU of a streamed text frame: ours against the least that sends the same frames."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Final
from urllib.parse import urlsplit

from bench.common import Figure, Server, main, server
from bench.servers import WEBSOCKETS
from gpuserver.client import Management, Ticket
from gpuserver.protocol import BEARER, TUTOR_V2

BOUND: Final = 1.5
RATE: Final = 50
KINDS: Final = ("product", "bare", "prebuilt", WEBSOCKETS)
_MOST: Final = 300
_WARM_FRAMES: Final = 5
_IDLE_SECONDS: Final = 1.0
_TURN_SECONDS: Final = 30.0
_TEXT, _PING, _PONG = 0x81, 0x89, 0x8A


class Client(asyncio.Protocol):
    """A WebSocket client that only counts frames: it must cost less than the server it loads."""

    def __init__(self, host: str, path: str, protocols: str) -> None:
        self._hello = (
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Protocol: {protocols}\r\n\r\n"
        )
        self._buffer = b""
        self.frames = 0
        self.connected = asyncio.Event()
        self.warm = asyncio.Event()
        self.done = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._hello.encode())

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self.connected.is_set():
            head, end, rest = self._buffer.partition(b"\r\n\r\n")
            if not end:
                return
            assert b" 101 " in head, head
            self._buffer = rest
            self.connected.set()
        self._take_frames()

    def _take_frames(self) -> None:
        data, at = self._buffer, 0
        while len(data) >= at + 4:
            length, start = data[at + 1], at + 2
            if length == 126:
                length, start = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
            if len(data) < start + length:
                break
            self._take(data[at], data[start : start + length])
            at = start + length
        self._buffer = data[at:]

    def _take(self, kind: int, payload: bytes) -> None:
        if kind == _TEXT:
            self.frames += 1
            if self.frames == _WARM_FRAMES:
                self.warm.set()
            if b'"turn.done"' in payload:
                self.done.set()
        elif kind == _PING:
            self._send(_PONG, payload)

    def _send(self, kind: int, payload: bytes) -> None:
        assert len(payload) < 126
        # A mask of zeros leaves the payload as it is.
        self._transport.write(bytes([kind, 0x80 | len(payload), 0, 0, 0, 0]) + payload)

    def ask(self) -> None:
        self.warm.clear()
        self.done.clear()
        self.frames = 0
        self._send(_TEXT, b'{"type":"text","content":"Hello!"}')

    def close(self) -> None:
        self._transport.abort()


@dataclass
class Load:
    """The clients of one server, and what its answers to them cost."""

    server: Server
    clients: Sequence[Client]
    idle: float = 0.0
    """CPU seconds a second while the sockets are open and nobody asks."""
    costs: list[float] = field(default_factory=list)
    """Microseconds a frame, one for each round."""

    async def measure_idle(self) -> None:
        self.idle = (await self._spent(_IDLE_SECONDS))[0]

    async def measure(self, seconds: float) -> None:
        """One answer to every client: the CPU of its middle, over the frames of its middle."""
        async with asyncio.timeout(_TURN_SECONDS):
            await self._ask_all()
            for client in self.clients:
                await client.warm.wait()
            used, frames = await self._spent(seconds)
            assert not any(client.done.is_set() for client in self.clients), "answers too short"
            self.costs.append((used - self.idle) / frames * 1e6)
            for client in self.clients:
                await client.done.wait()

    async def _ask_all(self) -> None:
        """Spread over one beat, so that the answers do not march in step."""
        step = max(1, len(self.clients) // 16)
        for first in range(0, len(self.clients), step):
            for client in self.clients[first : first + step]:
                client.ask()
            await asyncio.sleep(1 / RATE / 16)

    async def _spent(self, seconds: float) -> tuple[float, float]:
        """CPU seconds a second, and frames a second."""
        clock = asyncio.get_running_loop().time
        began, cpu, frames = clock(), self.server.process.cpu_seconds(), self._frames()
        await asyncio.sleep(seconds)
        used, came, took = (
            self.server.process.cpu_seconds() - cpu,
            self._frames() - frames,
            clock() - began,
        )
        return used / took, came / took

    def _frames(self) -> int:
        return sum(client.frames for client in self.clients)


@asynccontextmanager
async def load(kind: str, target: Server, sessions: int) -> AsyncIterator[Load]:
    """That many connected clients of a server; their sessions are deleted on leaving."""
    async with Management(target.url) as management:
        ours = kind == "product"
        tickets = [await management.create_session() for _ in range(sessions)] if ours else []
        clients = [await _connect(target, *tickets[i : i + 1]) for i in range(sessions)]
        try:
            yield Load(target, clients)
        finally:
            for client in clients:
                client.close()
            for ticket in tickets:
                await management.delete_session(ticket.session_id)


async def _connect(target: Server, ticket: Ticket | None = None) -> Client:
    path = "/ws" if ticket is None else urlsplit(ticket.engine_url).path
    token = "none" if ticket is None else ticket.engine_token
    client = Client(f"127.0.0.1:{target.port}", path, f"{TUTOR_V2}, {BEARER}{token}")
    await asyncio.get_running_loop().create_connection(lambda: client, "127.0.0.1", target.port)
    await client.connected.wait()
    return client


async def _level(
    servers: dict[str, Server], sessions: int, rounds: int, seconds: float
) -> list[Figure]:
    """Rounds of every server in turn, the order changing, so that noise meets them alike."""
    async with AsyncExitStack() as stack:
        loads = {
            kind: await stack.enter_async_context(load(kind, target, sessions))
            for kind, target in servers.items()
        }
        await asyncio.sleep(0.2)
        await asyncio.gather(*(each.measure_idle() for each in loads.values()))
        for number in range(rounds):
            order = list(loads.values())
            for each in order if number % 2 else reversed(order):
                await each.measure(seconds)
    return _figures(loads, sessions)


def _figures(loads: dict[str, Load], sessions: int) -> list[Figure]:
    label = f"{sessions} session{'s' if sessions > 1 else ''}"
    ours = loads["product"]

    def ratio(kind: str) -> float:
        return median(a / b for a, b in zip(ours.costs, loads[kind].costs, strict=True))

    return [
        Figure(f"{label}: product ÷ bare FastAPI", ratio("bare"), bound=BOUND),
        Figure(f"{label}: product ÷ bare, frames encoded beforehand", ratio("prebuilt")),
        Figure(f"{label}: product ÷ bare websockets", ratio(WEBSOCKETS)),
        *(Figure(f"{label}: {k}", median(x.costs), "µs a frame") for k, x in loads.items()),
        Figure(f"{label}: product, idle", ours.idle * 1e6 / sessions, "µs a session and second"),
    ]


async def measure(quick: bool) -> list[Figure]:
    rounds, seconds = (3, 0.5) if quick else (5, 0.6)
    answer = ("--tokens", str(round(RATE * (seconds + 0.4))), "--rate", str(RATE))
    figures: list[Figure] = []
    async with AsyncExitStack() as stack:
        servers = {
            kind: stack.enter_context(
                server(
                    "bench.servers",
                    kind,
                    *answer,
                    max_sessions=_MOST,
                    max_connections=2 * _MOST,
                )
            )
            for kind in KINDS
        }
        for sessions in (1, 32) if quick else (1, 32, 256):
            figures += await _level(servers, sessions, rounds, seconds)
    return figures


if __name__ == "__main__":
    main("overhead", measure)
