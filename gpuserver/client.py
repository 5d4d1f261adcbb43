"""Python client of both doors: sessions by REST, conversation over either dialect."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

import httpx2
import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from gpuserver import protocol

_MAX_MESSAGE = 64 << 20
"""A spoken answer of dialect 1 is one message; ten minutes of speech fit."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a browser gets from the school's server."""

    session_id: str
    engine_url: str
    engine_token: str


class Management:
    """The management API of one server. An async context manager."""

    def __init__(self, base_url: str, key: str = "", timeout: float = 30.0) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx2.AsyncClient(base_url=base_url, headers=headers, timeout=timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._http.aclose()

    async def get(self, path: str) -> httpx2.Response:
        """Any path of the server."""
        return await self._http.get(path)

    async def create_session(
        self, tutor_id: int = 1, student_id: int = 1, kb_id: str | None = None
    ) -> Ticket:
        """Raises httpx2.HTTPStatusError with the server's refusal."""
        body = {"tutor_id": tutor_id, "student_id": student_id, "kb_id": kb_id}
        answer = await self._http.post("/v1/sessions", json=body)
        answer.raise_for_status()
        made = answer.json()
        return Ticket(made["session_id"], made["engine_url"], made["engine_token"])

    async def delete_session(self, session_id: str) -> None:
        """Raises httpx2.HTTPStatusError."""
        (await self._http.delete(f"/v1/sessions/{session_id}")).raise_for_status()


class Conversation:
    """An open WebSocket, in `tutor.v2` or dialect 1; messages come as dicts."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket

    async def text(self, content: str) -> None:
        """Ask by typing."""
        await self.send({"type": "text", "content": content})

    async def audio(self, clip: bytes) -> None:
        """Ask by a whole recording."""
        await self.send({"type": "audio", "data": base64.b64encode(clip).decode()})

    async def interrupt(self) -> None:
        """Stop the answer (tutor.v2)."""
        await self.send({"type": "interrupt"})

    async def ping(self) -> None:
        await self.send({"type": "ping"})

    async def send(self, message: Any) -> None:
        """Any JSON value, or a frame as it is when it is a str or bytes."""
        raw = isinstance(message, str | bytes)
        await self._socket.send(message if raw else orjson.dumps(message).decode())

    async def receive(self) -> dict[str, Any]:
        """The next message. Raises websockets' ConnectionClosed, which has the code."""
        message: dict[str, Any] = orjson.loads(await self._socket.recv())
        return message

    async def until(self, *types: str) -> dict[str, Any]:
        """The next message of one of these types; those before it are passed over."""
        while True:
            message = await self.receive()
            if message["type"] in types:
                return message

    async def turn(self) -> list[dict[str, Any]]:
        """All messages up to and with the next `turn.done` (tutor.v2)."""
        messages = [await self.receive()]
        while messages[-1]["type"] != "turn.done":
            messages.append(await self.receive())
        return messages

    async def close(self) -> None:
        await self._socket.close()


@asynccontextmanager
async def converse(ticket: Ticket, *, v2: bool = True) -> AsyncIterator[Conversation]:
    """Open the socket of a session. Raises websockets' InvalidStatus when refused."""
    url = ticket.engine_url
    subprotocols = None
    if v2:
        bearer = Subprotocol(protocol.BEARER + ticket.engine_token)
        subprotocols = [Subprotocol(protocol.TUTOR_V2), bearer]
    else:
        url += "?" + urlencode({"token": ticket.engine_token})
    async with connect(
        url, subprotocols=subprotocols, max_size=_MAX_MESSAGE, compression=None, proxy=None
    ) as socket:
        yield Conversation(socket)
