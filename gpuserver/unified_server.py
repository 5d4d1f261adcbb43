"""The one app: every door on one port over shared sessions and engines; and its process."""

from __future__ import annotations

import asyncio
import gc
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import Any, Final

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from gpuserver import __version__, observability
from gpuserver.api import health_api, knowledge_api, management_api, models_api, pages
from gpuserver.api.security import Hardening, ManagementGuard, error_response
from gpuserver.api.state import State
from gpuserver.api.uvicorn_protocols import HttpProtocol, WebSocketProtocol
from gpuserver.api.websocket_server import Door
from gpuserver.background import claimed, local_url
from gpuserver.config import Settings
from gpuserver.errors import ConfigurationError, GpuServerError
from gpuserver.knowledge.notices import notice_of
from gpuserver.live.answering import Limits
from gpuserver.live.barge_in import BargeInRules
from gpuserver.live.endpointing import Endpointing
from gpuserver.live.live_session import LiveSessions, Rules
from gpuserver.sessions.event_log import LogLimits
from gpuserver.sessions.session_manager import SessionManager
from gpuserver.sessions.spool import Spool
from gpuserver.sessions.store import Store
from gpuserver.tutor.turn import limits_of
from gpuserver.tutor.tutoring import Tutoring

log = observability.get_logger(__name__)

_SWEEP_SECONDS: Final = 1.0
_FAREWELL_SECONDS: Final = 3.0
_COLLECT_AFTER: Final = 2_000


def create_app(
    settings: Settings,
    tutoring: Tutoring | None = None,
    on_fatal: Callable[[GpuServerError], None] = lambda error: None,
    on_ready: Callable[[], None] = lambda: None,
) -> FastAPI:
    """The server as an ASGI app. It answers `/health` at once and loads its models meanwhile.

    `on_ready` is called when they are; `on_fatal` is told when loading fails for good; without it
    the app stays, never ready.
    Raises ConfigurationError.
    """
    tutoring = tutoring or Tutoring(settings)
    state = _state(settings, tutoring)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(_open_store, state)
        async with asyncio.TaskGroup() as group:
            loading = group.create_task(_load(tutoring, on_fatal, on_ready))
            sweeping = group.create_task(state.sessions.sweep_forever(_SWEEP_SECONDS))
            async with tutoring.running(), state.live_sessions.running():
                yield
            loading.cancel()
            sweeping.cancel()
        await tutoring.close()
        await asyncio.to_thread(state.store.close)

    app = FastAPI(
        title="gpuserver",
        summary="A school's own virtual tutor, on its own machine.",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    _open_doors(app, state)
    return app


def _open_doors(app: FastAPI, state: State) -> None:
    app.state.gpuserver = state
    app.include_router(management_api.router, prefix="/v1", tags=["management"])
    app.include_router(management_api.router, prefix="/mgmt/v1", include_in_schema=False)
    app.include_router(knowledge_api.router, prefix="/v1", tags=["knowledge bases"])
    app.include_router(knowledge_api.router, prefix="/mgmt/v1", include_in_schema=False)
    # Not under /v1 as well: /v1/models is what OpenAI's clients ask.
    app.include_router(models_api.router, prefix="/mgmt/v1", tags=["models"])
    app.include_router(health_api.router, tags=["health"])
    app.include_router(pages.router)
    app.include_router(state.door.router())
    pages.mount_assets(app)
    app.add_middleware(
        Hardening,
        max_body_bytes=state.settings.max_body_bytes,
        send_timeout=state.settings.send_timeout_seconds,
        uploads=knowledge_api.is_upload,
    )
    app.add_exception_handler(GpuServerError, _tell)
    app.add_exception_handler(RequestValidationError, _tell_invalid)
    app.add_exception_handler(HTTPException, _tell_http)
    app.add_exception_handler(Exception, _tell_bug)


class Server(uvicorn.Server):
    """uvicorn, which tells every student why before it closes their sockets."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(uvicorn_config(app, settings))
        self._state: State = app.state.gpuserver

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        grace = self._state.settings.shutdown_grace_seconds
        began = time.monotonic()
        self._state.closing.set()
        self._state.sessions.end_all()
        with suppress(TimeoutError):
            async with asyncio.timeout(min(_FAREWELL_SECONDS, grace)):
                await self._state.door.empty()
        # Both together take no longer than the grace.
        left = grace - (time.monotonic() - began)
        self.config.timeout_graceful_shutdown = max(1, round(left))
        await super().shutdown(sockets)


def serve(settings: Settings) -> int:
    """Run the server until it is stopped; returns the exit status.

    Raises ConfigurationError when it can't start: port in use, unwritable folder, missing model.
    """
    observability.configure(settings.log_level, settings.log_format)
    listener = _bind(settings)
    fatal: list[GpuServerError] = []
    server: Server

    def stop(error: GpuServerError) -> None:
        fatal.append(error)
        server.should_exit = True

    app = create_app(settings, on_fatal=stop, on_ready=calm_collector)
    server = Server(app, settings)
    url = local_url(*listener.getsockname()[:2])
    with listener, claimed(settings.data_dir, url):
        # Before the loop runs, so that a file that can't be used is one sentence.
        _open_store(app.state.gpuserver)
        log.info("listening", url=url)
        server.run(sockets=[listener])
    if fatal:
        raise fatal[0]
    return 0


def uvicorn_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """How uvicorn runs the app, with its limits."""
    return uvicorn.Config(
        app,
        http=HttpProtocol,
        ws=WebSocketProtocol,
        ws_max_size=settings.max_message_bytes,
        # Compression costs 40 % CPU, and 15 kB of it can inflate to 15 MB.
        ws_per_message_deflate=False,
        limit_concurrency=settings.max_connections,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_grace_seconds)),
        log_config=None,
        access_log=False,
        server_header=False,
    )


def _bind(settings: Settings) -> socket.socket:
    """Take the port before anything is loaded, so that a second server fails at once."""
    host, port = settings.management_api_host, settings.management_api_port
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigurationError(
            problem=f"Can't listen on {host} port {port}: {error.strerror or error}.",
            fix="stop the program that uses the port (./stop.sh if it is gpuserver), "
            "or set MANAGEMENT_API_PORT (MANAGEMENT_API_HOST) to another one.",
        ) from error


def _state(settings: Settings, tutoring: Tutoring) -> State:
    metrics = tutoring.metrics
    store = Store(settings.data_dir / "sessions.db")
    spool = Spool(settings.resume_audio_mb << 20)
    sessions = SessionManager(
        settings.max_sessions,
        settings.session_timeout_seconds,
        time.monotonic,
        store,
        LogLimits(events=settings.resume_events, audio_seconds=settings.resume_audio_seconds),
        spool,
    )
    live_sessions = LiveSessions(lambda: tutoring.engines, sessions, _rules(settings), metrics)
    door = Door(
        sessions,
        live_sessions,
        lambda kb_id: notice_of(tutoring.knowledge, kb_id),
        settings.allowed_origins,
        settings.send_timeout_seconds,
        settings.max_messages_per_second,
        metrics,
    )
    metrics.watch("sessions", lambda: len(sessions))
    metrics.watch("connections", lambda: door.connections)
    metrics.watch("live_sessions", lambda: len(live_sessions))
    metrics.watch("open_microphones", lambda: live_sessions.microphones)
    metrics.watch("store_failing", lambda: float(store.failing))
    metrics.watch("spool_bytes", lambda: spool.size)
    return State(
        settings,
        tutoring,
        store,
        sessions,
        live_sessions,
        door,
        metrics,
        ManagementGuard(settings),
        time.monotonic(),
    )


def _open_store(state: State) -> None:
    """Take up what was kept, unless that is done. Blocks. Raises ConfigurationError."""
    if not state.store.opened:
        state.store.open()
        state.sessions.restore(state.store.load())


def _rules(settings: Settings) -> Rules:
    limits = Limits(
        text_chars=settings.max_text_chars,
        message_bytes=settings.max_message_bytes,
        messages_per_second=settings.max_messages_per_second,
        waiting_questions=settings.max_waiting_questions,
        history_turns=settings.history_turns,
        speech_lead_ms=settings.speech_lead_ms,
        replaces=settings.question_during_answer == "replace",
        resume_seconds=settings.resume_grace_seconds,
        turn=limits_of(settings),
    )
    return Rules(
        limits,
        Endpointing(
            settings.end_of_turn_seconds,
            settings.unfinished_turn_seconds,
            settings.max_audio_seconds,
        ),
        BargeInRules(
            settings.barge_in_seconds,
            settings.barge_in_confidence,
            settings.barge_in_wait_seconds,
            settings.barge_in_grace_seconds,
        ),
    )


def calm_collector() -> None:
    """Let the process's garbage collector leave alone what was loaded, and look less often.

    What it does for every turn grows with all that lives, sessions and libraries alike.
    """
    gc.collect()
    gc.freeze()
    # Again, so that what was frozen no longer counts when a collection of everything is due.
    gc.collect()
    # Not much rarer than usual: what a session held is freed only by such a collection.
    gc.set_threshold(_COLLECT_AFTER, 10, 10)


async def _load(
    tutoring: Tutoring, on_fatal: Callable[[GpuServerError], None], on_ready: Callable[[], None]
) -> None:
    began = time.monotonic()
    try:
        await tutoring.load()
    except GpuServerError as error:
        log.error("loading failed", code=error.code, reason=str(error))
        on_fatal(error)
    # The top of this task: a server that can't become ready must end, not look healthy.
    except Exception as error:
        log.exception("loading failed")
        cause: BaseException = error
        while isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        reason = getattr(cause, "strerror", None) or type(cause).__name__
        on_fatal(ConfigurationError(problem=f"Loading failed: {reason}.", fix="see the log above."))
    else:
        log.info("ready", seconds=round(time.monotonic() - began, 2))
        on_ready()


async def _tell(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, GpuServerError)
    return error_response(error)


async def _tell_http(request: Request, error: Exception) -> JSONResponse:
    """What the framework itself refuses, in the same form."""
    assert isinstance(error, HTTPException)
    if error.status_code == 400:
        # A body that can't even be parsed: the framework has a status of its own for it.
        return JSONResponse({"detail": "The body is not valid JSON.", "code": "bad_request"}, 422)
    code = HTTPStatus(error.status_code).name.lower()
    return JSONResponse(
        {"detail": error.detail, "code": code}, error.status_code, dict(error.headers or {})
    )


async def _tell_bug(request: Request, error: Exception) -> JSONResponse:
    return error_response(GpuServerError())


async def _tell_invalid(request: Request, error: Exception) -> JSONResponse:
    """FastAPI's usual 422, without echoing the input, which may be huge, secret or not JSON."""
    assert isinstance(error, RequestValidationError)
    detail: list[dict[str, Any]] = [
        {"type": e["type"], "loc": [str(part) for part in e["loc"]], "msg": e["msg"]}
        for e in error.errors()[:20]
    ]
    return JSONResponse({"detail": detail, "code": "bad_request"}, 422)
