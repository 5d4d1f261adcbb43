"""What the doors of one app share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from starlette.requests import HTTPConnection

from gpuserver.api.security import ManagementGuard
from gpuserver.api.websocket_server import Door
from gpuserver.config import Settings
from gpuserver.live.live_session import LiveSessions
from gpuserver.metrics import Metrics
from gpuserver.sessions.session_manager import SessionManager
from gpuserver.sessions.store import Store
from gpuserver.tutor.tutoring import Tutoring


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """Everything that lives as long as the app."""

    settings: Settings
    tutoring: Tutoring
    store: Store
    sessions: SessionManager
    live_sessions: LiveSessions
    door: Door
    metrics: Metrics
    guard: ManagementGuard
    started: float
    """When the app was made, on the monotonic clock."""
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the server stops: what would go on for long ends."""


def state_of(request: HTTPConnection) -> State:
    """The state of the app that serves this request."""
    state: State = request.app.state.gpuserver
    return state
