"""Who may call, from where, and with how much: keys, origins, body sizes, response headers."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Annotated, Final
from urllib.parse import urlsplit

from fastapi import Depends, Request
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpuserver.api.uvicorn_protocols import WIRE
from gpuserver.config import LOOPBACK, Settings
from gpuserver.errors import (
    BodyTooLarge,
    BodyTooSlow,
    GpuServerError,
    KeyRefused,
    OriginRefused,
)

_BODY_SECONDS: Final = 20
"""A request's body has to arrive within this time: half a request would hold a connection."""
_LINGER_SECONDS: Final = 5.0
_LINGER_SILENCE_SECONDS: Final = 2.0
_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Answers change, and after an upgrade the page's modules must fit each other.
    "Cache-Control": "no-cache",
}


def origin_allowed(headers: Mapping[str, str], allowed: tuple[str, ...]) -> bool:
    """Whether a request's web origin may use us: none, our own, or one that is listed."""
    origin = headers.get("origin", "").rstrip("/")
    if not origin or "*" in allowed or origin in allowed:
        return True
    try:
        return urlsplit(origin).netloc == headers.get("host")
    except ValueError:
        return False


class ManagementGuard:
    """A dependency that lets only the school's own programs manage sessions.

    With a key, the key decides. Without one the server is reached from this machine only; then a
    foreign Host or Origin means that a web page in this machine's browser is trying.
    """

    def __init__(self, settings: Settings) -> None:
        self._key = settings.management_api_key.encode()
        self._open = settings.allow_open_management
        self._own_hosts = LOOPBACK | {settings.management_api_host}
        self._origins = tuple(o for o in settings.allowed_origins if o != "*")

    def __call__(self, request: Request) -> None:
        """Raises KeyRefused, OriginRefused."""
        if self._key:
            offered = bearer(request) or request.headers.get("x-api-key", "")
            if not hmac.compare_digest(offered.encode(), self._key):
                raise KeyRefused
        elif not self._open:
            host_ok = _host_name(request.headers.get("host", "")) in self._own_hosts
            if not (host_ok and origin_allowed(request.headers, self._origins)):
                raise OriginRefused


def bearer(request: Request) -> str:
    """The token of the Authorization header; empty without one."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _host_name(host: str) -> str:
    """The name in a Host header; empty for one that makes no sense."""
    try:
        parts = urlsplit(f"//{host}")
        return (parts.hostname or "") if parts.port is None or parts.port else ""
    except ValueError:
        return ""


def guard(request: Request) -> None:
    """The app's ManagementGuard as a dependency."""
    request.app.state.gpuserver.guard(request)


Guarded = Annotated[None, Depends(guard)]


class Hardening:
    """Pure ASGI middleware: bounded request bodies, and headers that browsers act on.

    A body is read before the app sees the request, so that one too large or too slow is refused
    in one place, whatever the app would have done with it. Requests that `uploads` picks are read
    by the app itself, which bounds them. A client that reads nothing of its answer for
    `send_timeout` seconds is dropped.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_body_bytes: int,
        send_timeout: float,
        uploads: Callable[[Scope], bool] = lambda scope: False,
    ) -> None:
        self._app = app
        self._limit = max_body_bytes
        self._send_timeout = send_timeout
        self._uploads = uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await patient(message)

        patient = _patient(send, scope, self._send_timeout)
        with suppress(ClientDisconnect):
            if self._uploads(scope):
                upload = _Body(receive)
                await self._app(scope, upload.receive, _lingering(upload, with_headers))
            else:
                await self._buffered(scope, receive, with_headers)

    async def _buffered(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                body = await self._body(receive)
        except TimeoutError:
            await error_response(BodyTooSlow(limit=_BODY_SECONDS))(scope, receive, send)
        except BodyTooLarge as error:
            await error_response(error)(scope, receive, send)
        else:
            if body is not None:
                await self._app(scope, _replayed(body, receive), send)

    async def _body(self, receive: Receive) -> bytes | None:
        """The whole body; None when the client leaves in the middle of it. Raises BodyTooLarge."""
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > self._limit:
                raise BodyTooLarge(limit=self._limit)
            more = message.get("more_body", False)
        return bytes(body)


class _Body:
    """A request's body on its way to the app."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.ended = False

    async def receive(self) -> Message:
        message = await self._receive()
        self.ended = not message.get("more_body", False)
        return message

    async def drain(self) -> None:
        """Take what still comes, for a while."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                while not self.ended:
                    async with asyncio.timeout(_LINGER_SILENCE_SECONDS):
                        await self.receive()


def _lingering(body: _Body, send: Send) -> Send:
    """A `send` for answers that come before the whole body has.

    The client may be sending still. If the connection were closed at once, the answer could be
    lost with it; if it stayed open, the rest of the body would be read to its end.
    """

    async def lingering(message: Message) -> None:
        if message["type"] == "http.response.start" and not body.ended:
            MutableHeaders(scope=message)["Connection"] = "close"
        elif not message.get("more_body", False) and not body.ended:
            await send({**message, "more_body": True})
            await body.drain()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await send(message)

    return lingering


def _patient(send: Send, scope: Scope, seconds: float) -> Send:
    """A `send` that drops the connection of a client that reads nothing for so long.

    Raises ClientDisconnect then, which ends whatever was being sent.
    """

    async def patient(message: Message) -> None:
        try:
            async with asyncio.timeout(seconds):
                await send(message)
        except TimeoutError as error:
            wire = scope.get("extensions", {}).get(WIRE)
            if wire is not None:
                # Closing would wait until what was written has been read.
                wire.abort()
                await asyncio.sleep(0)
            raise ClientDisconnect from error

    return patient


def _replayed(body: bytes, receive: Receive) -> Receive:
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return first.pop() if first else await receive()

    return replay


def error_response(error: GpuServerError) -> JSONResponse:
    """An error as every HTTP client gets it: a sentence, a code, when to come back."""
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = {"detail": error.sentence("en"), "code": error.code}
    return JSONResponse(body, error.status, headers)
