"""The management door: sessions and tutors, one router mounted under two prefixes."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Request, Response, status
from pydantic import BaseModel, Field

from gpuserver.api.security import Guarded
from gpuserver.api.state import state_of
from gpuserver.errors import KnowledgeBaseNotFound
from gpuserver.language import LANGUAGES
from gpuserver.sessions.session_manager import Session

Id = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class NewSession(BaseModel):
    """What the school's server sends when a student logs in."""

    tutor_id: Id
    student_id: Id
    kb_id: Annotated[str, Field(max_length=200)] | None = None


class CreatedSession(BaseModel):
    """What the student's browser needs; the token is told this once."""

    session_id: UUID
    engine_url: str
    engine_token: str
    status: Literal["active"] = "active"


class SessionInfo(BaseModel):
    """A session without its token."""

    session_id: str
    tutor_id: int
    student_id: int
    kb_id: str | None
    status: Literal["active"] = "active"
    created_at: datetime
    last_activity: datetime

    @classmethod
    def of(cls, session: Session) -> SessionInfo:
        return cls(
            session_id=session.id,
            tutor_id=session.tutor_id,
            student_id=session.student_id,
            kb_id=session.kb_id,
            created_at=session.created_at,
            last_activity=session.last_activity,
        )


class SessionList(BaseModel):
    total: int
    sessions: list[SessionInfo]


class TutorEntry(BaseModel):
    """A tutor to choose; `languages` are those it answers in."""

    id: int
    name: str
    language: str
    greeting: str
    languages: list[str]


class TutorList(BaseModel):
    total: int
    tutors: list[TutorEntry]


router = APIRouter()


@router.post("/sessions", status_code=status.HTTP_201_CREATED)
async def create_session(new: NewSession, request: Request, _: Guarded) -> CreatedSession:
    """Create a session; hand `engine_url` and `engine_token` to the student's browser."""
    state = state_of(request)
    state.tutoring.check_ready()
    state.tutoring.catalogue.resolve(new.tutor_id)
    refuse = state.settings.unknown_knowledge_base == "refuse"
    if refuse and new.kb_id is not None and not state.tutoring.knowledge.known(new.kb_id):
        raise KnowledgeBaseNotFound(kb_id=new.kb_id)
    session, token = await state.sessions.create(new.tutor_id, new.student_id, new.kb_id)
    base = state.settings.websocket_url or _own_base(request)
    return CreatedSession(
        session_id=UUID(session.id), engine_url=f"{base}/ws/ws/{session.id}", engine_token=token
    )


@router.get("/sessions")
async def list_sessions(request: Request, _: Guarded) -> SessionList:
    """All live sessions, without their tokens."""
    sessions = [SessionInfo.of(session) for session in state_of(request).sessions.list()]
    return SessionList(total=len(sessions), sessions=sessions)


@router.get("/sessions/{session_id}")
async def get_session(session_id: str, request: Request, _: Guarded) -> SessionInfo:
    """One session, without its token."""
    return SessionInfo.of(state_of(request).sessions.get(session_id))


@router.delete("/sessions/{session_id}", status_code=status.HTTP_204_NO_CONTENT)
async def delete_session(session_id: str, request: Request, _: Guarded) -> Response:
    """End a session; its live socket is told and closed."""
    state_of(request).sessions.delete(session_id)
    return Response(status_code=status.HTTP_204_NO_CONTENT)


@router.get("/tutors")
async def list_tutors(request: Request) -> TutorList:
    """The tutors a student may choose from."""
    tutors = [
        TutorEntry(
            id=tutor.id,
            name=tutor.name,
            language=tutor.language,
            greeting=tutor.greet(),
            languages=list(LANGUAGES),
        )
        for tutor in state_of(request).tutoring.catalogue
    ]
    return TutorList(total=len(tutors), tutors=tutors)


def _own_base(request: Request) -> str:
    """The WebSocket base as this very client reaches us."""
    scheme = "wss" if request.url.scheme == "https" else "ws"
    return f"{scheme}://{request.url.netloc}"
