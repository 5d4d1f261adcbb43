"""Who may call, from where, and with how much: keys, origins, body sizes, response headers."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Mapping
from typing import Annotated, Final
from urllib.parse import urlsplit

from fastapi import Depends, Request
from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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
            scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
            offered = bearer.strip() if scheme.lower() == "bearer" else ""
            offered = offered or request.headers.get("x-api-key", "")
            if not hmac.compare_digest(offered.encode(), self._key):
                raise KeyRefused
        elif not self._open:
            host_ok = _host_name(request.headers.get("host", "")) in self._own_hosts
            if not (host_ok and origin_allowed(request.headers, self._origins)):
                raise OriginRefused


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
    in one place, whatever the app would have done with it.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._limit = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            async with asyncio.timeout(_BODY_SECONDS):
                body = await self._body(receive)
        except TimeoutError:
            await error_response(BodyTooSlow(limit=_BODY_SECONDS))(scope, receive, with_headers)
        except BodyTooLarge as error:
            await error_response(error)(scope, receive, with_headers)
        else:
            if body is not None:
                await self._app(scope, _replayed(body, receive), with_headers)

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
