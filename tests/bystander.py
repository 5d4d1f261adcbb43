"""A healthy student beside the one a test does harm to, and a client that keeps no rules."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from gpuserver.client import Conversation, Ticket, converse
from tests.conftest import Scripted

_WORD: Final = "bystander"
_ANSWER: Final = " ".join(["A bystander hears every word of it."] * 3)
_LATE_SECONDS: Final = 3.0
"""A bound that only a server which stands still passes, on however busy a machine."""


@asynccontextmanager
async def bystander(server: Scripted) -> AsyncIterator[None]:
    """While the block runs, a student is told one spoken answer after another, and misses nothing.

    Every message of each must come, in order, and its speech in time.
    """
    server.cast.llm.answers[_WORD] = [_ANSWER]
    async with server.management() as management:
        ticket = await management.create_session(student_id=777)
    async with converse(ticket) as client:
        await client.receive()
        over, speaking = asyncio.Event(), asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(_listen(client, over, speaking))
            await speaking.wait()
            yield
            over.set()


async def _listen(client: Conversation, over: asyncio.Event, speaking: asyncio.Event) -> None:
    seq = 0
    while not over.is_set():
        await client.text(f"Tell the {_WORD} more.")
        messages = [await _next(client)]
        began = 0.0
        while messages[-1]["type"] != "turn.done":
            message = messages[-1]
            if message["type"] == "audio.delta":
                now = asyncio.get_running_loop().time()
                began = began or now - message["offset"] / 16_000
                late = now - began - message["offset"] / 16_000
                assert late < _LATE_SECONDS, f"speech is {late:.1f} s late"
                speaking.set()
            messages.append(await _next(client))
        assert [m["seq"] for m in messages] == list(range(seq + 1, seq + 1 + len(messages)))
        seq = messages[-1]["seq"]
        assert "error" not in {m["type"] for m in messages}
        assert messages[-1]["status"] == "completed"
        assert said(messages) == _ANSWER
        assert samples(messages) == messages[-1]["usage"]["speech_samples"] > 16_000


async def _next(client: Conversation) -> dict[str, Any]:
    async with asyncio.timeout(_LATE_SECONDS * 3):
        return await client.receive()


def said(messages: list[dict[str, Any]]) -> str:
    """The answers' text, as it was written."""
    return "".join(m["content"] for m in messages if m["type"] == "text.delta")


def samples(messages: list[dict[str, Any]]) -> int:
    """Of speech, without a gap."""
    at = 0
    for message in messages:
        if message["type"] == "audio.delta":
            assert message["offset"] == at
            at += len(message["pcm"]) // 2
    return at


class RawClient:
    """A WebSocket by hand: it sends any frame, and reads only what it is told to read."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    @asynccontextmanager
    async def connect(
        cls, url: str, ticket: Ticket, *, v2: bool = True
    ) -> AsyncIterator[RawClient]:
        """Its buffers are small: what it does not read soon waits at the server."""
        host, port = url.removeprefix("http://").split(":")
        raw = socket.socket()
        raw.setblocking(False)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await asyncio.get_running_loop().sock_connect(raw, (host, int(port)))
        reader, writer = await asyncio.open_connection(sock=raw, limit=1024)
        client = cls(reader, writer)
        try:
            await client._greet(host, ticket, v2=v2)
            yield client
        finally:
            writer.transport.abort()

    async def _greet(self, host: str, ticket: Ticket, *, v2: bool) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        subprotocol = "Sec-WebSocket-Protocol: tutor.v2\r\n" if v2 else ""
        self.writer.write(
            f"GET /ws/ws/{ticket.session_id}?token={ticket.engine_token} HTTP/1.1\r\n"
            f"Host: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\n{subprotocol}Sec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        assert b"101" in await self.reader.readline()
        while await self.reader.readline() != b"\r\n":
            pass

    def send(self, payload: bytes, opcode: int = 1, *, fin: bool = True) -> None:
        """One frame, masked with zeros; it may be claimed to be any size."""
        size = len(payload)
        if size < 126:
            length = bytes([0x80 | size])
        elif size < 1 << 16:
            length = b"\xfe" + struct.pack(">H", size)
        else:
            length = b"\xff" + struct.pack(">Q", size)
        self.writer.write(bytes([(0x80 if fin else 0) | opcode]) + length + bytes(4) + payload)

    async def frames(self) -> list[tuple[int, bytes]]:
        """Opcode and payload of all frames up to the close, or the end of the line."""
        found: list[tuple[int, bytes]] = []
        try:
            while not found or found[-1][0] != 8:
                opcode, size = await self.reader.readexactly(2)
                if size > 125:
                    kind = ">H" if size == 126 else ">Q"
                    head = await self.reader.readexactly(struct.calcsize(kind))
                    size = struct.unpack(kind, head)[0]
                found.append((opcode & 15, await self.reader.readexactly(size)))
        except (ConnectionResetError, asyncio.IncompleteReadError):
            pass
        return found

    async def closed(self) -> int | None:
        """Read on until the server closes; the close code, None where it gave none."""
        frames = await self.frames()
        if not frames or frames[-1][0] != 8:
            return None
        return int.from_bytes(frames[-1][1][:2], "big")
