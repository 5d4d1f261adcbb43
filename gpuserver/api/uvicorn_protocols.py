"""uvicorn's two protocols, with what they lack against clients that stall."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState
from websockets.frames import Frame
from websockets.http11 import Request

WIRE: Final = "gpuserver.wire"
"""ASGI extension: the connection's `Wire`."""

_HEADER_SECONDS: Final = 10.0
_MOST_FRAGMENTS: Final = 4096
_UNSENT_BYTES: Final = 1 << 17


class Wire(Protocol):
    """What the app may do with a connection beyond ASGI."""

    def is_writable(self) -> bool:
        """Whether the client keeps up, so that what is sent does not pile up here."""
        ...

    async def until_writable(self) -> None:
        """Wait until it does, or the connection is lost."""
        ...

    def send_messages(self, messages: Sequence[str | bytes]) -> bool:
        """Send messages at once, text and binary; False if the connection is over."""
        ...

    def abort(self) -> None:
        """Drop the connection at once."""
        ...


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """Lets the app see that a client has stopped reading, drop it, and send several messages in one
    go, past the layers that ask of each whether it may be sent.

    Neither closing a connection nor its ping timeout ends one that is not read; aborting does.
    """

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        extensions: dict[str, Any] = self.scope["extensions"]
        extensions[WIRE] = self

    def handle_cont(self, event: Frame) -> None:
        super().handle_cont(event)
        # Their bytes are counted, but empty ones could come for ever.
        if len(self.frames) > _MOST_FRAGMENTS:
            self.abort()

    def is_writable(self) -> bool:
        return self.writable.is_set()

    async def until_writable(self) -> None:
        await self.writable.wait()

    def send_messages(self, messages: Sequence[str | bytes]) -> bool:
        if self.close_sent or self.disconnected or self.transport.is_closing():
            return False
        try:
            for message in messages:
                if isinstance(message, str):
                    self.conn.send_text(message.encode())
                else:
                    self.conn.send_binary(message)
        except InvalidState:
            # The client has begun to close.
            return False
        self.transport.write(b"".join(self.conn.data_to_send()))
        return True

    def abort(self) -> None:
        self.transport.abort()


class HttpProtocol(HttpToolsProtocol):
    """Closes a connection whose request headers do not arrive in time.

    uvicorn times only the pause between two requests; a connection that says nothing, or half a
    request, would hold one of the places for as long as it likes.
    """

    _overdue: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        _keep_little_unsent(transport)
        self._expect_headers()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        extensions: dict[str, Any] = {WIRE: self}
        self.scope["extensions"] = extensions
        self._expect_headers()

    def on_headers_complete(self) -> None:
        self._headers_are_here()
        super().on_headers_complete()

    def abort(self) -> None:
        """Drop the connection at once, whatever is still to be sent."""
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._headers_are_here()
        super().connection_lost(exc)

    def _expect_headers(self) -> None:
        if self._overdue is None:
            self._overdue = self.loop.call_later(_HEADER_SECONDS, self.transport.abort)

    def _headers_are_here(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None


def _keep_little_unsent(transport: asyncio.Transport) -> None:
    """Let the system hold little of what has not gone out yet.

    It says that there is room again only once a third of its buffer is free; that buffer grows to
    megabytes, and a client that reads slowly would seem to read nothing for a minute.
    """
    connection = transport.get_extra_info("socket")
    option = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    if connection is not None and option is not None:
        with suppress(OSError):  # no TCP
            connection.setsockopt(socket.IPPROTO_TCP, option, _UNSENT_BYTES)
