"""The pages: the classroom, the console, and the API's documentation, all served from here."""

from __future__ import annotations

import importlib.util
import mimetypes
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from starlette.staticfiles import StaticFiles

from gpuserver import __version__
from gpuserver.api.health_api import SERVICE
from gpuserver.api.state import state_of

WEB: Final = Path(__file__).parent.parent / "web"

_DOCS_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>gpuserver API</title>
<link rel="icon" href="classroom/icon.svg">
<link rel="stylesheet" href="docs/assets/swagger-ui.css"></head>
<body><div id="swagger-ui"></div>
<script src="docs/assets/swagger-ui-bundle.js"></script>
<script src="classroom/docs.js"></script></body></html>
"""

router = APIRouter(include_in_schema=False)


@router.get("/")
async def front(request: Request) -> Response:
    """The classroom for a browser, the list of doors for a program."""
    if "text/html" in request.headers.get("accept", ""):
        return _with_policy(FileResponse(WEB / "index.html"), request)
    return JSONResponse(
        {
            "service": SERVICE,
            "version": __version__,
            "doors": {
                "management": "/v1/sessions",
                "tutors": "/v1/tutors",
                "websocket": "/ws/ws/{session_id}",
                "health": "/health",
                "ready": "/ready",
                "status": "/status",
                "docs": "/docs",
                "console": "/console",
            },
        }
    )


@router.get("/console")
async def console(request: Request) -> Response:
    """How the server is, and its models; what it shows is asked with the management key."""
    return _with_policy(FileResponse(WEB / "console.html"), request)


@router.get("/docs")
async def docs(request: Request) -> Response:
    """The API's documentation, with assets of our own."""
    # Swagger UI styles itself through style attributes.
    return _with_policy(HTMLResponse(_DOCS_PAGE), request, style="'self' 'unsafe-inline'")


def mount_assets(app: FastAPI) -> None:
    """The files that the pages load."""
    swagger = importlib.util.find_spec("fastapi_swagger")
    assert swagger is not None
    resources = Path(swagger.origin or "").parent / "resources"
    # Reads the system's table of types, which must not happen while serving.
    mimetypes.init()
    app.mount("/docs/assets", StaticFiles(directory=resources))
    app.mount("/classroom", StaticFiles(directory=WEB))


def _with_policy(response: Response, request: Request, style: str = "'self'") -> Response:
    sockets = {f"{scheme}://{request.url.netloc}" for scheme in ("ws", "wss")}
    public = urlsplit(state_of(request).settings.websocket_url)
    if public.netloc:
        # By http the page asks whether a server that refuses its socket is there at all.
        for scheme in (public.scheme, public.scheme.replace("ws", "http")):
            sockets.add(f"{scheme}://{public.netloc}")
    response.headers["Content-Security-Policy"] = "; ".join(
        [
            "default-src 'none'",
            "script-src 'self'",
            "worker-src 'self'",
            f"style-src {style}",
            "img-src 'self' data:",
            "media-src 'self' blob:",
            f"connect-src 'self' {' '.join(sorted(sockets))}",
            "manifest-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'self'",
        ]
    )
    return response
