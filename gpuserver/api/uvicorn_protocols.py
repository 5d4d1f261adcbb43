"""uvicorn's two protocols, with what they lack against clients that stall."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

ABORT: Final = "gpuserver.abort"
"""ASGI extension: a function that drops the connection at once."""
WRITABLE: Final = "gpuserver.writable"
"""ASGI extension: a function that says whether a send would go out without waiting."""

_HEADER_SECONDS: Final = 10.0


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """Lets the app see that a client has stopped reading, and drop it.

    Neither closing such a connection nor its ping timeout ends it; aborting the transport does.
    """

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        extensions: dict[str, Any] = self.scope["extensions"]
        extensions[ABORT] = self.transport.abort
        extensions[WRITABLE] = self.writable.is_set


class HttpProtocol(HttpToolsProtocol):
    """Closes a connection whose request headers do not arrive in time.

    uvicorn times only the pause between two requests; a connection that says nothing, or half a
    request, would hold one of the places for as long as it likes.
    """

    _overdue: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_headers()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect_headers()

    def on_headers_complete(self) -> None:
        self._headers_are_here()
        super().on_headers_complete()

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
