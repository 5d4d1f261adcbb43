"""The health door: is it alive, may students come, what runs."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any, Final, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from gpuserver import __version__
from gpuserver.api.security import Guarded
from gpuserver.api.state import State, state_of
from gpuserver.providers import names

SERVICE: Final = "GPU Server Management API"


class Health(BaseModel):
    status: Literal["healthy"] = "healthy"
    service: str = SERVICE
    version: str = __version__
    ready: bool
    active_sessions: int
    max_sessions: int
    engines: dict[str, str]
    """What the default tutor runs on, by kind."""
    degraded: list[str]
    """The kinds of these that don't work at present."""


class SocketHealth(Health):
    active_connections: int


class Readiness(BaseModel):
    """`done` of `total` steps of a stage of loading.

    Afterwards, `stage` is the kind of model that does not work, if one does not, and `reason`
    says why; `degraded` are those that another one stands in for.
    """

    ready: bool
    stage: str
    done: int
    total: int
    reason: str | None
    degraded: list[str]


class RuntimeInfo(BaseModel):
    """A loaded model and how many tutors' engines share it."""

    kind: str
    provider: str
    model: str
    engines: int
    problem: str


class Status(SocketHealth):
    uptime_seconds: int
    memory_peak_mb: int
    live_sessions: int
    cached_engines: int
    runtimes: list[RuntimeInfo]
    tutors: dict[str, dict[str, str]]


router = APIRouter()


def _health(state: State) -> dict[str, Any]:
    condition = state.tutoring.condition()
    return {
        "ready": state.tutoring.progress.ready and not condition.failing,
        "degraded": [*condition.failing, *condition.degraded],
        "active_sessions": len(state.sessions),
        "max_sessions": state.sessions.limit,
        "engines": names(state.tutoring.catalogue.runtime_keys(state.tutoring.catalogue.default)),
    }


@router.get("/health")
@router.get("/mgmt/health", include_in_schema=False)
async def health(request: Request) -> Health:
    """200 as long as the process answers; `ready` says whether students may come."""
    return Health(**_health(state_of(request)))


@router.get("/ws/health")
async def socket_health(request: Request) -> SocketHealth:
    """The same, with the number of open WebSockets."""
    state = state_of(request)
    return SocketHealth(**_health(state), active_connections=state.door.connections)


@router.get("/ready")
async def ready(request: Request, response: Response) -> Readiness:
    """200 after a warm-up that ran every model, while each works or has one that stands in.

    503 with the progress of loading before, and with the reason while one does not work.
    """
    tutoring = state_of(request).tutoring
    progress, condition = tutoring.progress, tutoring.condition()
    kind, reason = next(iter(condition.failing.items()), (None, None))
    works = progress.ready and kind is None
    if not works:
        response.status_code = 503
        response.headers["Retry-After"] = "1"
    return Readiness(
        ready=works,
        stage=kind or progress.stage,
        done=progress.done,
        total=progress.total,
        reason=reason,
        degraded=list(condition.degraded),
    )


@router.get("/status")
async def status(request: Request, _: Guarded) -> Status:
    """What is loaded, for whom, and how much of it is in use."""
    state = state_of(request)
    tutoring = state.tutoring
    scale = 1 if sys.platform == "darwin" else 1024
    return Status(
        **_health(state),
        active_connections=state.door.connections,
        uptime_seconds=round(time.monotonic() - state.started),
        memory_peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale >> 20,
        live_sessions=len(state.live_sessions),
        cached_engines=len(tutoring.engines) if tutoring.progress.ready else 0,
        runtimes=[
            RuntimeInfo(
                kind=key.kind,
                provider=key.provider,
                model=key.model,
                engines=leases,
                problem=tutoring.runtimes.problem(key),
            )
            for key, leases in tutoring.runtimes.loaded().items()
        ],
        tutors={
            f"{tutor.id} {tutor.name}": names(tutoring.catalogue.runtime_keys(tutor))
            for tutor in tutoring.catalogue
        },
    )


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request, _: Guarded) -> Response:
    """Counters, gauges and times of the stages of turns, for Prometheus."""
    page = await state_of(request).metrics.page()
    return Response(page, media_type=CONTENT_TYPE_LATEST)
