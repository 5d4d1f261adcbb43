"""A scripted WebSocket server for the clients of `tutor.v2`: one script a connection."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import orjson
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from gpuserver import protocol
from gpuserver.client import Ticket


class Peer:
    """What a script says to one connection of the client, and what it hears of it."""

    def __init__(self, socket: ServerConnection) -> None:
        self.socket = socket

    async def hear(self) -> Any:
        frame = await self.socket.recv()
        return frame if isinstance(frame, bytes) else orjson.loads(frame)

    async def say(self, kind: str, seq: int, **fields: Any) -> None:
        await self.socket.send(orjson.dumps({"type": kind, "seq": seq, **fields}).decode())

    async def ready(
        self, seq: int = 0, *, resumed: bool = False, sample_rate: int = 16_000, **fields: Any
    ) -> None:
        audio = {"sample_rate": sample_rate}
        ready = {"resumed": resumed, "last_seq": seq, "audio": audio, **fields}
        await self.say("session.ready", seq, **ready)

    async def deltas(self, first: int, last: int) -> None:
        for seq in range(first, last + 1):
            await self.say("text.delta", seq, turn_id="t1", content=str(seq))

    async def until_left(self) -> None:
        """Read on until the client has gone: one that is not read can't even say good-bye."""
        async for _ in self.socket:
            pass

    def vanish(self) -> None:
        self.socket.transport.abort()


Script = Callable[[Peer], Awaitable[None]]


class Server:
    """Serves one script a connection; one more than there are scripts is an error."""

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self.connections = 0
        self.refused = 0


@asynccontextmanager
async def serving(*scripts: Script, refusals: tuple[HTTPStatus, ...] = ()) -> AsyncIterator[Server]:
    """A WebSocket server of the loopback; its first handshakes get the refusals."""
    waiting, refusing = list(scripts), list(refusals)
    failures: list[BaseException] = []

    def admit(connection: ServerConnection, request: Request) -> Response | None:
        assert "bearer.secret" in request.headers["Sec-WebSocket-Protocol"]
        if refusing:
            server.refused += 1
            return connection.respond(refusing.pop(0), "no\n")
        return None

    async def act(socket: ServerConnection) -> None:
        server.connections += 1
        try:
            await waiting.pop(0)(Peer(socket))
        except (AssertionError, IndexError) as error:
            failures.append(error)

    async with serve(
        act, "127.0.0.1", 0, subprotocols=[Subprotocol(protocol.TUTOR_V2)], process_request=admit
    ) as listening:
        port = next(iter(listening.sockets)).getsockname()[1]
        server = Server(Ticket("s", f"ws://127.0.0.1:{port}/ws/ws/s", "secret"))
        yield server
    assert not failures, failures
    assert not waiting, "connections that never came"
