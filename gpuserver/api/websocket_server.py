"""The WebSocket door: authenticate, receive, send, and let go of clients that no longer read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

from gpuserver import protocol
from gpuserver.api.dialects import Dialect, Dialect1, DialectV2
from gpuserver.api.security import origin_allowed
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

_ABORT: Final = "gpuserver.abort"
_CLOSE_SECONDS: Final = 2.0
_BURST: Final = 64
"""Frames to one client before the others get their turn: a send that finds room never waits."""


class AbortableProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket, with a way to drop a connection whose client has stopped reading.

    Neither closing it nor its ping timeout ends such a connection; aborting the transport does.
    """

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        extensions: dict[str, Any] = self.scope["extensions"]
        extensions[_ABORT] = self.transport.abort


class Connection:
    """One accepted WebSocket. Order holds: nothing waits between numbering and sending."""

    def __init__(self, websocket: WebSocket, send_timeout: float) -> None:
        self._websocket = websocket
        self._send_timeout = send_timeout
        self._waiting = 0
        self._sent = 0
        self._gone = False

    async def send(self, message: protocol.ServerMessage1 | protocol.ServerMessage2) -> None:
        """Send a message, waiting while the client's buffers are full; dropped if it has gone."""
        if self._gone:
            return
        self._waiting += 1
        try:
            await self._websocket.send_text(protocol.encode(message))
        except (WebSocketDisconnect, RuntimeError):
            # The receive loop learns of it too and ends the connection.
            self._gone = True
        finally:
            self._waiting -= 1
            self._sent += 1
        if self._sent % _BURST == 0:
            await asyncio.sleep(0)

    async def watch(self) -> None:
        """Drop the connection when the same send has waited for longer than allowed.

        Looking from time to time costs the sends no clock.
        """
        stuck_at = None
        while True:
            await asyncio.sleep(self._send_timeout)
            if self._waiting and self._sent == stuck_at:
                log.warning("client reads nothing, dropped")
                self.abort()
                return
            stuck_at = self._sent if self._waiting else None

    async def close(self, code: int, reason: str) -> None:
        """Close with a code and a reason, or drop a client that does not take them."""
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._websocket.close(code, reason)
        except TimeoutError:
            self.abort()
        except (WebSocketDisconnect, RuntimeError):
            pass
        self._gone = True

    def abort(self) -> None:
        self._gone = True
        abort = self._websocket.scope.get("extensions", {}).get(_ABORT)
        if abort is not None:
            abort()


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
        try:
            engine = await live.engine()
        except GpuServerError as error:
            await connection.send(kind.refusal(live, error))
            await connection.close(protocol.CLOSE_SHUTDOWN, error.code)
            return
        dialect = kind(live, engine, connection.send)
        live.attach(dialect)
        try:
            await dialect.greet(self._notice(session))
            await _until_over(websocket, connection, dialect, session)
        finally:
            live.detach(dialect)

    def _notice(self, session: Session) -> GpuServerError | None:
        if session.kb_id is None or self._known_kb(session.kb_id):
            return None
        return KnowledgeBaseNotFound(kb_id=session.kb_id[:80])


async def _until_over(
    websocket: WebSocket, connection: Connection, dialect: Dialect, session: Session
) -> None:
    """Receive until the client leaves, the session ends, or another client replaces this one."""
    async with asyncio.TaskGroup() as group:
        watch = group.create_task(connection.watch())
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
        watch.cancel()


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
        await _within(dialect.end(Replaced()))
        await connection.close(protocol.CLOSE_REPLACED, "replaced")
        return
    await _within(dialect.end(SessionEnded(reason=session.end_reason)))
    shutdown = session.end_reason is EndReason.SHUTDOWN
    code = protocol.CLOSE_SHUTDOWN if shutdown else protocol.CLOSE_ENDED
    await connection.close(code, session.end_reason)


async def _within(sending: Any) -> None:
    """The last words; a client that does not take them in time goes without."""
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            await sending
    except TimeoutError:
        pass


def _token(websocket: WebSocket, offered: list[str]) -> str:
    for item in offered:
        if item.startswith(protocol.BEARER):
            return item.removeprefix(protocol.BEARER)
    return websocket.query_params.get("token", "")
