"""The WebSocket door: authenticate, receive, send, and let go of clients that no longer read."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from gpuserver import protocol
from gpuserver.api.dialects import Dialect, Dialect1, DialectV2, ServerMessage
from gpuserver.api.security import origin_allowed
from gpuserver.api.uvicorn_protocols import ABORT, WRITABLE
from gpuserver.errors import (
    GpuServerError,
    KnowledgeBaseNotFound,
    MessageInvalid,
    Replaced,
    SessionEnded,
    TokenRefused,
)
from gpuserver.live.live_session import LiveSessions
from gpuserver.observability import get_logger
from gpuserver.sessions.session_manager import EndReason, Session, SessionManager

log = get_logger(__name__)

_CLOSE_SECONDS: Final = 2.0
_QUEUE_BYTES: Final = 1 << 20
"""What may be in line for one client, beyond the transport's buffers, before its turn waits."""
_BURST: Final = 64
"""Frames to one client before the others get their turn: a send that finds room never waits."""


class Connection:
    """One accepted WebSocket.

    A message is on its way, or in line, before `send` can be interrupted: what has a number is
    never lost and never overtaken. A client that takes nothing for `send_timeout` seconds is
    dropped.
    """

    def __init__(self, websocket: WebSocket, send_timeout: float) -> None:
        extensions = websocket.scope.get("extensions") or {}
        self._websocket = websocket
        self._send_timeout = send_timeout
        # Under a server that does not say, everything goes through the line.
        self._writable: Callable[[], bool] = extensions.get(WRITABLE, lambda: False)
        self._abort: Callable[[], None] = extensions.get(ABORT, lambda: None)
        self._line: deque[str] = deque()
        self._line_bytes = 0
        self._filled = asyncio.Event()
        self._room = asyncio.Event()
        self._sent = 0
        self._gone = False

    async def send(self, message: ServerMessage) -> None:
        """Send a message, waiting while too much is in line; dropped if the client has gone."""
        if self._gone:
            return
        frame = protocol.encode(message)
        if not self._line and self._writable():
            # Where there is room this does not wait, so a line and its task are not needed.
            await self._transmit(frame)
        else:
            self._line.append(frame)
            self._line_bytes += len(frame)
            self._filled.set()
            while self._line_bytes > _QUEUE_BYTES and not self._gone:
                self._room.clear()
                await self._room.wait()
        self._sent += 1
        if self._sent % _BURST == 0:
            await asyncio.sleep(0)

    async def send_line(self) -> None:
        """Send what is in line, for as long as the connection lasts."""
        while not self._gone:
            await self._filled.wait()
            while self._line:
                try:
                    async with asyncio.timeout(self._send_timeout):
                        await self._transmit(self._line[0])
                except TimeoutError:
                    log.warning("client reads nothing, dropped")
                    self.abort()
                    return
                if self._gone:
                    return
                self._line_bytes -= len(self._line.popleft())
                self._room.set()
            self._filled.clear()

    async def close(self, code: int, reason: str) -> None:
        """Close with a code and a reason, or drop a client that does not take them."""
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                while self._line and not self._gone:
                    self._room.clear()
                    await self._room.wait()
                await self._websocket.close(code, reason)
        except TimeoutError:
            self.abort()
        except (WebSocketDisconnect, RuntimeError):
            pass
        self._end()

    def leave(self) -> None:
        """The conversation is over; nothing more is sent.

        What the client has not taken by then keeps the connection open, so it is dropped.
        """
        self._end()
        if not self._writable():
            asyncio.get_running_loop().call_later(_CLOSE_SECONDS, self._abort)

    def abort(self) -> None:
        """Drop the connection at once."""
        self._end()
        self._abort()

    async def _transmit(self, frame: str) -> None:
        try:
            await self._websocket.send_text(frame)
        except (WebSocketDisconnect, RuntimeError):
            # The receive loop learns of it too and ends the connection.
            self._end()

    def _end(self) -> None:
        self._gone = True
        self._line.clear()
        self._line_bytes = 0
        self._room.set()


class Door:
    """Serves `/ws/ws/{session_id}`. One object for the whole server."""

    def __init__(
        self,
        sessions: SessionManager,
        live_sessions: LiveSessions,
        known_kb: Callable[[str], bool],
        origins: tuple[str, ...],
        send_timeout: float,
    ) -> None:
        self._sessions, self._live_sessions = sessions, live_sessions
        self._known_kb = known_kb
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
        connection = Connection(websocket, self._send_timeout)
        live = self._live_sessions.open(session)
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(connection.send_line())
            try:
                engine = await live.engine()
            except GpuServerError as error:
                await connection.send(kind.refusal(live, error))
                ended = session.ended.is_set()
                code = protocol.CLOSE_ENDED if ended else protocol.CLOSE_SHUTDOWN
                await connection.close(code, error.code)
            else:
                dialect = kind(live, engine, connection.send)
                live.attach(dialect)
                try:
                    await dialect.greet(self._notice(session))
                    await _until_over(websocket, connection, dialect, session)
                finally:
                    # Before the turn is stopped: its last event must not wait for this client.
                    connection.leave()
                    live.detach(dialect)
            sending.cancel()

    def _notice(self, session: Session) -> GpuServerError | None:
        if session.kb_id is None or self._known_kb(session.kb_id):
            return None
        return KnowledgeBaseNotFound(kb_id=session.kb_id[:80])


async def _until_over(
    websocket: WebSocket, connection: Connection, dialect: Dialect, session: Session
) -> None:
    """Receive until the client leaves, the session ends, or another client replaces this one."""
    async with asyncio.TaskGroup() as group:
        tasks: list[asyncio.Task[Any]] = [
            group.create_task(_receive(websocket, dialect)),
            group.create_task(session.ended.wait()),
            group.create_task(dialect.replaced.wait()),
        ]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        if session.ended.is_set() or dialect.replaced.is_set():
            await _bid_farewell(connection, dialect, session)


async def _receive(websocket: WebSocket, dialect: Dialect) -> None:
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            return
        try:
            frame = message.get("text")
            if frame is None:
                raise MessageInvalid(problem="binary frames are not used here, send JSON text")
            await dialect.receive(frame)
        except SessionEnded:
            # Expired between two sweeps; the farewell says so.
            return
        except GpuServerError as error:
            await dialect.refuse(error)


async def _bid_farewell(connection: Connection, dialect: Dialect, session: Session) -> None:
    if session.end_reason is None:
        await dialect.end(Replaced())
        await connection.close(protocol.CLOSE_REPLACED, "replaced")
        return
    await dialect.end(SessionEnded(reason=session.end_reason))
    shutdown = session.end_reason is EndReason.SHUTDOWN
    code = protocol.CLOSE_SHUTDOWN if shutdown else protocol.CLOSE_ENDED
    await connection.close(code, session.end_reason)


def _token(websocket: WebSocket, offered: list[str]) -> str:
    for item in offered:
        if item.startswith(protocol.BEARER):
            return item.removeprefix(protocol.BEARER)
    return websocket.query_params.get("token", "")
