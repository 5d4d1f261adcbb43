"""The WebSocket door: authenticate, receive, send, and let go of clients that no longer read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from gpuserver import protocol
from gpuserver.api.dialects import Dialect, Dialect1, Frame, Source
from gpuserver.api.security import origin_allowed
from gpuserver.api.tutor_v2 import DialectV2
from gpuserver.api.uvicorn_protocols import WIRE, Wire
from gpuserver.errors import (
    EngineFailed,
    GpuServerError,
    Replaced,
    SessionEnded,
    TokenRefused,
)
from gpuserver.live.live_session import LiveSession, LiveSessions
from gpuserver.metrics import Metrics
from gpuserver.observability import get_logger
from gpuserver.sessions.session_manager import EndReason, Session, SessionManager

log = get_logger(__name__)

_CLOSE_SECONDS: Final = 2.0
_STOP_SECONDS: Final = 1.0
"""Time for a session's running turn to end before its client is bidden farewell."""
_RETURN_SECONDS: Final = 1.0
"""Time for a client that returns to say where it left off, before it is greeted as one that
does not."""


class Connection:
    """One accepted WebSocket, which sends what its source has.

    Nothing piles up here: a client that reads slowly leaves the rest in the source, and one that
    takes nothing for `send_timeout` seconds is dropped.
    """

    def __init__(self, websocket: WebSocket, send_timeout: float, metrics: Metrics) -> None:
        self._websocket = websocket
        self._metrics = metrics
        self._send_timeout = send_timeout
        self._wire: Wire | None = (websocket.scope.get("extensions") or {}).get(WIRE)
        self._source: Source | None = None
        self._batch: list[Frame] = []
        self._followed = asyncio.Event()
        self._gone = False
        self.resumed = False
        self.replaced = asyncio.Event()
        """Set when another client has taken the session over."""

    def replace(self) -> None:
        self.replaced.set()

    def follow(self, source: Source, first: Frame) -> None:
        """Send this frame, and from then on what the source has."""
        self._source = source
        source.direct = self._send_directly
        # What is left of an earlier source will come again from this one.
        self._batch = [first]
        self._followed.set()

    async def send_all(self) -> None:
        """Send what the source has, for as long as the connection lasts."""
        await self._followed.wait()
        while not self._gone:
            if self._batch:
                await self._transmit()
            source = self._source
            assert source is not None
            frames = source.take()
            if frames:
                # What was taken must be here when this is cancelled.
                self._batch += frames
                # Others get their turn: a send that finds room never waits.
                await asyncio.sleep(0)
                continue
            frames = await source.next()
            if source is self._source:
                if not frames:
                    break
                self._batch += frames
        if self._source is not None and self._source.lost:
            # It fell so far behind that what it misses is gone: it may come back and begin anew.
            self._metrics.count_dropped_connection("stalled")
            self.abort()

    @property
    def position(self) -> int | None:
        """The number of the last event taken; None where nothing is sent yet."""
        return None if self._source is None else self._source.position

    async def close(self, last: Frame | None, code: int, reason: str) -> None:
        """Send what is left and a last frame, and close; or drop a client that takes nothing.

        Not while `send_all` runs.
        """
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                while self._source is not None and (more := self._source.take()):
                    self._batch += more
                    await self._transmit()
                if last is not None:
                    self._batch.append(last)
                await self._transmit()
                await self._websocket.close(code, reason)
        except TimeoutError:
            self.abort()
        except (WebSocketDisconnect, RuntimeError):
            pass
        self._gone = True

    def leave(self) -> None:
        """The client has gone.

        What it has not taken by then keeps the connection open, so it is dropped.
        """
        self._gone = True
        if self._source is not None:
            self._source.close()
        if self._wire is not None and not self._wire.is_writable():
            asyncio.get_running_loop().call_later(_CLOSE_SECONDS, self._wire.abort)

    def abort(self) -> None:
        """Drop the connection at once."""
        self._gone = True
        if self._wire is not None:
            self._wire.abort()

    def _send_directly(self, frame: Frame) -> bool:
        """Send what has just come, if the client keeps up: a task need not be woken for it."""
        wire = self._wire
        if wire is None or self._gone or self._batch or not wire.is_writable():
            return False
        return wire.send_messages((frame,))

    async def _transmit(self) -> None:
        """Send the batch; waits, but not for ever, while the client takes nothing."""
        wire = self._wire
        if wire is not None and wire.is_writable():
            self._send_by(wire)
            return
        try:
            async with asyncio.timeout(self._send_timeout):
                if wire is not None:
                    await wire.until_writable()
                    self._send_by(wire)
                else:
                    await self._send_by_asgi()
        except TimeoutError:
            log.warning("client reads nothing, dropped")
            self._metrics.count_dropped_connection("stalled")
            self.abort()
        except (WebSocketDisconnect, RuntimeError):
            # The receive loop learns of it too and ends the connection.
            self._gone = True

    def _send_by(self, wire: Wire) -> None:
        batch, self._batch = self._batch, []
        if batch and not wire.send_messages(batch):
            self._gone = True

    async def _send_by_asgi(self) -> None:
        """Under a server that offers no wire."""
        while self._batch:
            frame = self._batch.pop(0)
            if isinstance(frame, str):
                await self._websocket.send_text(frame)
            else:
                await self._websocket.send_bytes(frame)


class _Pace:
    """How fast a client is read: beyond so many messages a second, the network holds them."""

    def __init__(self, per_second: int) -> None:
        self._rate = float(per_second)
        self._room = self._rate
        self._at = time.monotonic()

    async def next(self) -> None:
        now = time.monotonic()
        self._room = min(self._rate, self._room + (now - self._at) * self._rate) - 1
        self._at = now
        if self._room < 0:
            await asyncio.sleep(-self._room / self._rate)


class Door:
    """Serves `/ws/ws/{session_id}`. One object for the whole server."""

    def __init__(
        self,
        sessions: SessionManager,
        live_sessions: LiveSessions,
        kb_notice: Callable[[str], GpuServerError | None],
        origins: tuple[str, ...],
        send_timeout: float,
        messages_per_second: int,
        metrics: Metrics,
    ) -> None:
        self._metrics = metrics
        self._messages_per_second = messages_per_second
        self._sessions, self._live_sessions = sessions, live_sessions
        self._kb_notice = kb_notice
        self._origins = origins
        self._send_timeout = send_timeout
        self.connections = 0
        self._empty = asyncio.Event()
        self._empty.set()

    def router(self) -> APIRouter:
        router = APIRouter()
        router.add_api_websocket_route("/ws/ws/{session_id}", self.serve)
        router.add_api_websocket_route("/ws/{session_id}", self.serve)
        return router

    async def serve(self, websocket: WebSocket, session_id: str) -> None:
        """One client from handshake to close."""
        offered = [
            p.strip() for p in websocket.headers.get("sec-websocket-protocol", "").split(",")
        ]
        try:
            if not origin_allowed(websocket.headers, self._origins):
                raise TokenRefused
            session = self._sessions.authenticate(session_id, _token(websocket, offered))
        except TokenRefused:
            # Closing before accepting is an HTTP 403.
            await websocket.close()
            return
        v2 = protocol.TUTOR_V2 in offered
        await websocket.accept(protocol.TUTOR_V2 if v2 else None)
        self.connections += 1
        self._empty.clear()
        try:
            await self._converse(websocket, session, DialectV2 if v2 else Dialect1)
        finally:
            self.connections -= 1
            if not self.connections:
                self._empty.set()

    async def empty(self) -> None:
        """Wait until no socket is open."""
        await self._empty.wait()

    async def _converse(self, websocket: WebSocket, session: Session, kind: type[Dialect]) -> None:
        connection = Connection(websocket, self._send_timeout, self._metrics)
        live = self._live_sessions.open(session)
        try:
            engine = await live.engine()
        except GpuServerError as error:
            ended = session.ended.is_set()
            code = protocol.CLOSE_ENDED if ended else protocol.CLOSE_SHUTDOWN
            await connection.close(kind.refusal(live, error), code, error.code)
            return
        earlier = live.listener
        goes_on = earlier is not None and earlier.lasting and type(earlier) is kind
        dialect = earlier if goes_on else kind(live, engine)
        assert isinstance(dialect, Dialect)
        live.attach(connection, dialect)
        try:
            await self._serve(websocket, connection, dialect, live)
        finally:
            connection.leave()
            live.detach(connection)

    async def _serve(
        self, websocket: WebSocket, connection: Connection, dialect: Dialect, live: LiveSession
    ) -> None:
        """Until the client leaves, the session ends or fails, or another client takes it over."""
        session = live.session
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(connection.send_all())
            receiving = group.create_task(self._receive(websocket, connection, dialect, session))
            over: list[asyncio.Task[Any]] = [
                receiving,
                group.create_task(session.ended.wait()),
                group.create_task(connection.replaced.wait()),
                group.create_task(live.stopped.wait()),
            ]
            await asyncio.wait(over, return_when=asyncio.FIRST_COMPLETED)
            if session.ended.is_set():
                await _stopped(live)
            for task in [sending, *over]:
                task.cancel()
        if session.ended.is_set() or connection.replaced.is_set():
            await _bid_farewell(connection, dialect, session)
        elif live.stopped.is_set():
            # A bug has ended its work: the client may come back, and it is begun anew.
            error = EngineFailed(engine="tutor")
            last = dialect.refusal(live, error)
            await connection.close(last, protocol.CLOSE_SHUTDOWN, error.code)

    async def _receive(
        self, websocket: WebSocket, connection: Connection, dialect: Dialect, session: Session
    ) -> None:
        pace = _Pace(self._messages_per_second)
        first = await _first(websocket, dialect)
        if first is not None and first.get("type") == "websocket.disconnect":
            return
        late = connection.replaced.is_set()
        if not late and not (first and dialect.is_return(first.get("text"))):
            dialect.greet(connection, self._notice(session))
        while not connection.replaced.is_set():
            message = first or await websocket.receive()
            first = None
            if message["type"] == "websocket.disconnect":
                # A close frame has a reason, if only an empty one.
                if "reason" not in message:
                    self._metrics.count_dropped_connection("lost")
                return
            await pace.next()
            if connection.replaced.is_set():
                # What a client says too late must not reach the session, which is another's.
                return
            frame: Frame | None = message.get("text")
            if frame is None:
                frame = message.get("bytes") or b""
            try:
                dialect.receive(frame, connection)
            except SessionEnded:
                # Expired between two sweeps; the farewell says so.
                return
            except GpuServerError as error:
                dialect.refuse(error)

    def _notice(self, session: Session) -> GpuServerError | None:
        return None if session.kb_id is None else self._kb_notice(session.kb_id)


async def _first(websocket: WebSocket, dialect: Dialect) -> dict[str, Any] | None:
    """The first message of a client that may be returning; None if it says nothing at once."""
    if not dialect.returning:
        return None
    try:
        async with asyncio.timeout(_RETURN_SECONDS):
            return dict(await websocket.receive())
    except TimeoutError:
        return None


async def _stopped(live: LiveSession) -> None:
    """Wait for the running turn's own ending, which comes before the session's."""
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await live.stopped.wait()
    except TimeoutError:
        log.warning("turn does not stop", session=live.session.id)


async def _bid_farewell(connection: Connection, dialect: Dialect, session: Session) -> None:
    if session.end_reason is None:
        # What happens from now on is for the other client.
        last = dialect.farewell(Replaced(), connection.position)
        await connection.close(last, protocol.CLOSE_REPLACED, "replaced")
        return
    last = dialect.farewell(SessionEnded(reason=session.end_reason))
    shutdown = session.end_reason is EndReason.SHUTDOWN
    code = protocol.CLOSE_SHUTDOWN if shutdown else protocol.CLOSE_ENDED
    await connection.close(last, code, session.end_reason)


def _token(websocket: WebSocket, offered: list[str]) -> str:
    for item in offered:
        if item.startswith(protocol.BEARER):
            return item.removeprefix(protocol.BEARER)
    return websocket.query_params.get("token", "")
