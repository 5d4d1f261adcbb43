"""A conversation that outlives its connection: it comes back by itself and misses nothing."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from websockets.exceptions import ConnectionClosed, InvalidStatus, InvalidURI, WebSocketException
from websockets.frames import Close

from gpuserver.client.conversation import Conversation, MessagesMissing, Verbs, connect_to
from gpuserver.client.management import Ticket
from gpuserver.client.microphone import speak

_FINAL_CODES: Final = range(4500, 5000)
_FORBIDDEN: Final = 403
_OWN_WISH: Final = "closed by this client"
_LASTING_SECONDS: Final = 10.0
"""A connection that held for this long was a good one, though nothing was said on it."""


class SessionOver(Exception):
    """The session can't be gone on with. `code`: the close code or HTTP status, if one said so."""

    def __init__(self, reason: str, code: int | None = None) -> None:
        super().__init__(reason)
        self.reason, self.code = reason, code


@dataclass(frozen=True, slots=True)
class Backoff:
    """How a lost connection is tried again, in seconds; it is given up by whichever limit is first.

    Waits double from `first` to `most`, each shortened by up to half by chance, so that a class
    whose server restarts does not come back in one moment.
    """

    first: float = 0.25
    most: float = 5.0
    attempts: int = 30
    seconds: float = 60.0

    def delay(self, failures: int, chance: float) -> float:
        """The wait after so many failures in a row; `chance` is from 0 to 1."""
        return float(min(self.most, self.first * 2.0 ** min(failures - 1, 30))) * (1 - chance / 2)


class LiveConversation(Verbs):
    """A `tutor.v2` conversation over as many connections as it takes. An async context manager.

    A verb waits while the line is down, and goes out on the next one. What was sent in the very
    moment in which the line broke may be lost: `turn.started` tells that a question has arrived.

    Messages are read by whoever iterates `events`, one at a time; other tasks may speak meanwhile.
    `ready` is the latest `session.ready`. Everything raises SessionOver once the session is over.
    """

    def __init__(
        self,
        ticket: Ticket,
        *,
        last_seq: int | None = None,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """With `last_seq` it goes on where an earlier client of the session was; 0: all kept."""
        self._ticket = ticket
        self._backoff = backoff or Backoff()
        self._clock, self._chance = clock, chance
        self._conversation: Conversation | None = None
        self._opening = asyncio.Lock()
        self._over: SessionOver | None = None
        self._closed = False
        self._failures = 0
        self._down_since = self._opened = clock()
        self._progress = False
        self._settings: dict[str, Any] = {}
        self.last_seq = last_seq
        self.ready: dict[str, Any] = {}

    async def __aenter__(self) -> Self:
        """Connect. Raises SessionOver when the server refuses or stays out of reach."""
        await self._connected()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Leave; `events` ends. The session stays, until the server ends it."""
        self._closed = True
        conversation, self._conversation = self._conversation, None
        self._over = self._over or SessionOver(_OWN_WISH)
        if conversation is not None:
            await conversation.close()

    async def drop(self) -> None:
        """Break the connection, as a bad line does; for tests and checks."""
        if self._conversation is not None:
            await self._conversation.drop()

    async def events(self) -> AsyncGenerator[dict[str, Any], None]:
        """The messages of the session, each once and in order.

        `connection.lost` (reason, code) is the one that does not come from the server: the
        connection broke and is being tried again. `session.ready` follows; where its `resumed` is
        false, what went before is unknown to the server, and the reader starts anew as well.
        Raises SessionOver.
        """
        while not self._closed:
            conversation = await self._connected()
            try:
                message = await conversation.receive()
            except (ConnectionClosed, MessagesMissing) as error:
                await self._lose(conversation, error)
                if self._over is None:
                    code = _code(error)
                    yield {"type": "connection.lost", "reason": str(error), "code": code}
                continue
            if await self._accept(conversation, message):
                yield message

    async def send(self, message: Any) -> None:
        """Send on this connection, or on the next one when this is down. Raises SessionOver."""
        while True:
            conversation = await self._connected()
            try:
                await conversation.send(message)
            except ConnectionClosed as closed:
                await self._lose(conversation, closed)
            else:
                return

    async def update(self, **settings: Any) -> None:
        """As `session.update`; it is told again on every new connection."""
        for name, value in settings.items():
            earlier = self._settings.get(name)
            if isinstance(value, dict) and isinstance(earlier, dict):
                value = {**earlier, **value}
            self._settings[name] = value
        await super().update(**settings)

    async def speak(self, pcm: bytes, *, realtime: bool = True, silence: float = 2.0) -> None:
        """Say a recording into the open microphone: PCM16 mono at 16 kHz, 20 ms at a time.

        `silence` seconds follow it, in which the server finds the end of the question. Without
        `realtime` it goes as fast as it can; the server takes a short one only.
        """
        await speak(self.append, pcm, realtime=realtime, silence=silence, clock=self._clock)

    async def _connected(self) -> Conversation:
        """The open connection; a new one when there is none. Raises SessionOver."""
        async with self._opening:
            if self._over is not None:
                raise self._over
            if self._conversation is None:
                conversation = await self._open()
                if self._closed:
                    await conversation.close()
                    raise SessionOver(_OWN_WISH)
                self._conversation = conversation
            return self._conversation

    async def _open(self) -> Conversation:
        while True:
            if self._failures:
                await self._pause()
            try:
                conversation = await connect_to(self._ticket)
                if self.last_seq is not None:
                    await conversation.resume(self.last_seq)
            except (OSError, WebSocketException) as error:
                self._judge(error)
                if self._over is not None:
                    raise self._over from None
            else:
                self._opened, self._progress = self._clock(), False
                return conversation

    async def _pause(self) -> None:
        for seconds in (self._backoff.delay(self._failures, self._chance()), 0):
            if self._over is not None:
                raise self._over
            await asyncio.sleep(seconds)

    async def _lose(self, conversation: Conversation, error: Exception) -> None:
        """Whoever meets the broken connection first puts it away."""
        if conversation is not self._conversation:
            return
        self._conversation = None
        if isinstance(error, MessagesMissing):
            await conversation.drop()
        if self._progress or self._clock() - self._opened >= _LASTING_SECONDS:
            self._failures = 0
        self._judge(error)

    def _judge(self, error: Exception) -> None:
        """Whether a connection that failed, or was closed, may be tried again."""
        code = _code(error)
        match error:
            case ConnectionClosed() if code in _FINAL_CODES:
                said = error.rcvd.reason if error.rcvd is not None else ""
                self._end(said or f"closed with code {code}", code)
            case InvalidStatus() if code == _FORBIDDEN:
                self._end("the session or its token is not valid", code)
            case InvalidURI():
                self._end(str(error))
            case _:
                self._fail(str(error) or type(error).__name__, code)

    def _fail(self, reason: str, code: int | None = None) -> None:
        now = self._clock()
        if not self._failures:
            self._down_since = now
        self._failures += 1
        limits = self._backoff
        if self._failures > limits.attempts or now - self._down_since > limits.seconds:
            self._end(f"the connection could not be brought back: {reason}", code)

    def _end(self, reason: str, code: int | None = None) -> SessionOver:
        self._over = self._over or SessionOver(reason, code)
        return self._over

    async def _accept(self, conversation: Conversation, message: dict[str, Any]) -> bool:
        """Whether a message is new to the reader."""
        seq = message["seq"]
        if not conversation.greeted:
            # A refusal instead of the greeting is about the connection and has no number.
            return True
        if message["type"] != "session.ready":
            if self.last_seq is not None and seq <= self.last_seq:
                return False
            self.last_seq = seq
            # Answers to what is sent on every new connection would keep a hopeless one alive.
            self._progress = self._progress or "turn_id" in message
            return True
        returned = bool(self.ready)
        self.ready = message
        if not message.get("resumed"):
            self.last_seq = seq
        # The server may have forgotten them, or the last ones went down with the line.
        if returned and self._settings:
            try:
                await conversation.update(**self._settings)
            except ConnectionClosed as closed:
                await self._lose(conversation, closed)
        return True


def _code(error: Exception) -> int | None:
    """The server's close code or HTTP status, if it said anything at all."""
    match error:
        case ConnectionClosed(rcvd=Close(code=code)):
            return code
        case InvalidStatus():
            return error.response.status_code
    return None
