"""One open WebSocket: every verb of `tutor.v2`, and its messages as dicts."""

from __future__ import annotations

import base64
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import urlencode

import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from gpuserver import protocol
from gpuserver.client.management import Ticket

_MAX_MESSAGE: Final = 64 << 20
"""A spoken answer of dialect 1 is one message; ten minutes of speech fit."""


class MessagesMissing(Exception):
    """The server's numbers have a gap: what was between is lost, unless a resume brings it."""


class Verbs(ABC):
    """What a student's program can say, the same verbs as in `web/tutor-client.js`."""

    @abstractmethod
    async def send(self, message: Any) -> None:
        """Any JSON value, or a frame as it is when it is a str or bytes."""

    async def text(self, content: str) -> None:
        """Ask by typing."""
        await self.send({"type": "text", "content": content})

    async def audio(self, clip: bytes) -> None:
        """Ask by a whole recording, in any container a browser records."""
        await self.send({"type": "audio", "data": base64.b64encode(clip).decode()})

    async def append(self, sound: bytes, *, binary: bool = True) -> None:
        """The next stretch of the open microphone, in the session's `input_audio_format`."""
        if binary:
            await self.send(sound)
        else:
            await self.send({"type": "audio.append", "data": base64.b64encode(sound).decode()})

    async def commit(self) -> None:
        """The spoken question is complete: answer it."""
        await self.send({"type": "audio.commit"})

    async def clear(self) -> None:
        """Forget what was said since the last question."""
        await self.send({"type": "audio.clear"})

    async def interrupt(self, turn_id: str | None = None) -> None:
        """Stop this answer, or whichever is running, and drop the questions behind it."""
        named = {} if turn_id is None else {"turn_id": turn_id}
        await self.send({"type": "interrupt", **named})

    async def playback(self, turn_id: str, heard_ms: int) -> None:
        """So much of this turn's speech has been heard."""
        await self.send({"type": "playback", "turn_id": turn_id, "heard_ms": heard_ms})

    async def update(self, **settings: Any) -> None:
        """Change settings by the fields of `session.update`; `session.updated` answers."""
        await self.send({"type": "session.update", **settings})

    async def feedback(self, turn_id: str, rating: int, comment: str = "") -> None:
        """What the student thinks of an answer: 1, 0 or -1."""
        said = {"turn_id": turn_id, "rating": rating, "comment": comment}
        await self.send({"type": "feedback", **said})

    async def ping(self) -> None:
        """`pong` answers."""
        await self.send({"type": "ping"})


class Conversation(Verbs):
    """An open WebSocket, in `tutor.v2` or dialect 1; messages come as dicts.

    `last_seq` is the highest number received, None before the first.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._sample_rate = 0
        self._resumed_from: int | None = None
        self.last_seq: int | None = None
        self.greeted = False
        """Whether `session.ready` has come: what comes instead of it has no number."""

    async def resume(self, last_seq: int) -> None:
        """Ask for all that came after this number: the first message of a client that returns."""
        self._resumed_from = last_seq
        await self.send({"type": "resume", "last_seq": last_seq})

    async def send(self, message: Any) -> None:
        raw = isinstance(message, str | bytes)
        await self._socket.send(message if raw else orjson.dumps(message).decode())

    async def receive(self) -> dict[str, Any]:
        """The next message. Every `audio.delta` has its PCM16 as `pcm`, bytes.

        One that came as JSON keeps its `data`; one that came as a binary frame has the same
        fields but for `data` and `timestamp`. Raises websockets' ConnectionClosed, which has the
        code; MessagesMissing after a gap; ValueError for what is no message.
        """
        frame = await self._socket.recv()
        message: dict[str, Any]
        if isinstance(frame, bytes):
            message = self._speech(frame)
        else:
            message = orjson.loads(frame)
            if message["type"] == "audio.delta":
                message["pcm"] = base64.b64decode(message["data"])
        if "seq" in message:
            self._count(message)
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

    async def drop(self) -> None:
        """End the connection as a line does that breaks: without a word to the server."""
        self._socket.transport.abort()
        await self._socket.wait_closed()

    def _speech(self, frame: bytes) -> dict[str, Any]:
        seq, turn, offset, pcm = protocol.decode_speech(frame)
        return {
            "type": "audio.delta",
            "seq": seq,
            "turn_id": f"t{turn}",
            "offset": offset,
            "sample_rate": self._sample_rate,
            "pcm": pcm,
        }

    def _count(self, message: dict[str, Any]) -> None:
        """Note the message's number. Raises MessagesMissing."""
        seq, kind = message["seq"], message["type"]
        if kind in {"session.ready", "session.updated"}:
            self._sample_rate = message.get("audio", {}).get("sample_rate", 0)
        known = self.last_seq
        if kind == "session.ready":
            self.greeted = True
            # It has no number of its own and says from where this connection counts.
            self.last_seq = seq
            known = self._resumed_from if message.get("resumed") else None
            first = seq
        else:
            self.last_seq = seq if known is None else max(known, seq)
            first = message["from_seq"] if kind == "audio.skipped" else seq
        if known is not None and first > known + (kind != "session.ready"):
            raise MessagesMissing(f"number {first} came after {known}")


async def connect_to(ticket: Ticket, *, v2: bool = True) -> Conversation:
    """Open the socket of a session, once. Raises what `converse` raises."""
    url = ticket.engine_url
    subprotocols = None
    if v2:
        bearer = Subprotocol(protocol.BEARER + ticket.engine_token)
        subprotocols = [Subprotocol(protocol.TUTOR_V2), bearer]
    else:
        url += "?" + urlencode({"token": ticket.engine_token})
    return Conversation(
        await connect(
            url, subprotocols=subprotocols, max_size=_MAX_MESSAGE, compression=None, proxy=None
        )
    )


@asynccontextmanager
async def converse(ticket: Ticket, *, v2: bool = True) -> AsyncIterator[Conversation]:
    """Open the socket of a session. Raises websockets' InvalidStatus when refused."""
    conversation = await connect_to(ticket, v2=v2)
    try:
        yield conversation
    finally:
        await conversation.close()
