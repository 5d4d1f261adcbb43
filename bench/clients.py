"""WebSocket clients that cost less than the server they load: they count frames, or time them."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, TypeVar
from urllib.parse import urlsplit

import orjson

from bench.common import Server
from gpuserver.client import Management, Ticket
from gpuserver.protocol import BEARER, TUTOR_V2

HELLO: Final = "Hello!"
QUESTION: Final = "What is a list?"
SPEECH_ONLY: Final = {
    "type": "session.update",
    "output": {"text": False, "audio": True, "visemes": False},
    "audio_format": "binary",
}
_CONNECT_SECONDS: Final = 20.0
_TEXT, _BINARY, _PING, _PONG = 0x81, 0x82, 0x89, 0x8A
_SEQ: Final = re.compile(rb'"seq":(\d+)')
_PING_FRAME: Final = re.compile(rb"\x89\x04(.{4})", re.DOTALL)
_STAMP: Final = re.compile(rb"@(\d+)@")


class Client(asyncio.Protocol):
    """Counts frames, and remembers the last one. `warm` is set with the `warm_frames`-th."""

    warm_frames = 5

    def __init__(self, host: str, path: str, protocols: str) -> None:
        self._hello = (
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Protocol: {protocols}\r\n\r\n"
        )
        self._buffer = b""
        self.frames = 0
        self.last = b""
        self.connected = asyncio.Event()
        self.ready = asyncio.Event()
        self.warm = asyncio.Event()
        self.done = asyncio.Event()
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._hello.encode())

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()

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
            self.take(data[at], data[start : start + length])
            at = start + length
        self._buffer = data[at:]

    def take(self, kind: int, payload: bytes) -> None:
        """One whole frame."""
        if kind == _PING:
            self._send(_PONG, payload)
            return
        self.frames += 1
        self.last = payload
        if self.frames == self.warm_frames:
            self.warm.set()
        if kind == _TEXT and b'"turn.done"' in payload:
            self.done.set()
        elif kind == _TEXT and b'"session.ready"' in payload:
            self.ready.set()

    @property
    def last_seq(self) -> int:
        """The number of the last frame."""
        found = _SEQ.search(self.last)
        return int(found[1]) if found else int.from_bytes(self.last[:4], "big")

    def _send(self, kind: int, payload: bytes) -> None:
        self._transport.write(frame(kind, payload))

    def tell(self, message: object) -> None:
        """Any message, as JSON."""
        self._send(_TEXT, orjson.dumps(message))

    def hear(self, framed: bytes) -> None:
        """A frame that `frame` has made: microphones send the same ones over and over."""
        self._transport.write(framed)

    def ask(self, question: str = HELLO) -> None:
        self.warm.clear()
        self.done.clear()
        self.frames = 0
        self.tell({"type": "text", "content": question})

    async def turn(self, question: str = QUESTION) -> None:
        """Ask, and wait for the answer's end."""
        self.ask(question)
        await self.done.wait()

    def close(self) -> None:
        self._transport.abort()


def frame(kind: int, payload: bytes) -> bytes:
    """A client's frame. A mask of zeros leaves the payload as it is."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else bytes([0x80 | 126]) + size.to_bytes(2, "big")
    return bytes([kind]) + length + bytes(4) + payload


def speech_frame(pcm: bytes) -> bytes:
    """A stretch of the open microphone."""
    return frame(_BINARY, pcm)


class Timed(Client):
    """Notes how many nanoseconds ago each frame's stamp was, and nothing else about it."""

    def __init__(self, host: str, path: str, protocols: str) -> None:
        super().__init__(host, path, protocols)
        self.ages: list[int] = []
        self.keeping = False

    def data_received(self, data: bytes) -> None:
        if not self.ready.is_set() and not self.warm.is_set():
            super().data_received(data)
            return
        if self.keeping:
            now = time.monotonic_ns()
            self.ages += [now - int(stamp) for stamp in _STAMP.findall(data)]
        # Frames are not taken apart, but a ping that is not answered ends the connection.
        for payload in _PING_FRAME.findall(data):
            self._send(_PONG, payload)
        if b'"turn.done"' in data:
            self.done.set()


AnyClient = TypeVar("AnyClient", bound=Client)


async def connect(
    target: Server, kind: type[AnyClient], ticket: Ticket | None = None, *, greeted: bool = True
) -> AnyClient:
    """A connected client; without a ticket, of a bare server. `greeted`: wait for the greeting."""
    path = "/ws" if ticket is None else urlsplit(ticket.engine_url).path
    token = "none" if ticket is None else ticket.engine_token
    client = kind(f"127.0.0.1:{target.port}", path, f"{TUTOR_V2}, {BEARER}{token}")
    await asyncio.get_running_loop().create_connection(lambda: client, "127.0.0.1", target.port)
    async with asyncio.timeout(_CONNECT_SECONDS):
        await client.connected.wait()
        if ticket is not None and greeted:
            await client.ready.wait()
    return client


@asynccontextmanager
async def clients(
    target: Server, count: int, kind: type[AnyClient], *, ours: bool, tutors: int = 1
) -> AsyncIterator[list[AnyClient]]:
    """So many connected clients, of ours in turn with each of so many tutors.

    Their sessions are deleted on leaving.
    """
    async with Management(target.url) as management:
        tickets = [
            await management.create_session(1 + number % tutors)
            for number in range(count if ours else 0)
        ]
        connected = [await connect(target, kind, *tickets[i : i + 1]) for i in range(count)]
        try:
            yield connected
        finally:
            for client in connected:
                client.close()
            for ticket in tickets:
                await management.delete_session(ticket.session_id)
