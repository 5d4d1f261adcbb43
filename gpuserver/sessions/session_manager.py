"""The one SessionManager behind every door: admission, tokens, idle expiry, endings."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import math
import secrets
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from gpuserver.errors import SessionLimitReached, SessionNotFound, ShuttingDown, TokenRefused
from gpuserver.observability import get_logger

log = get_logger(__name__)


class EndReason(StrEnum):
    """Why a session ended, as told to the student's socket."""

    DELETED = "deleted"
    EXPIRED = "expired"
    SHUTDOWN = "shutdown"


@dataclass(slots=True, eq=False)
class Session:
    """One student with one tutor. The token itself is never kept, only its hash.

    `expires_at` is on the monotonic clock; the two datetimes are for people to read.
    `ended` is set, with `end_reason`, once the session is over: whoever serves it waits on that.
    """

    id: str
    tutor_id: int
    student_id: int
    kb_id: str | None
    token_sha256: bytes = field(repr=False)
    expires_at: float
    created_at: datetime
    last_activity: datetime
    ended: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    end_reason: EndReason | None = None
    seq: int = 0
    """The number of the last message that was sent."""
    turns_running: int = 0
    """A session whose turn is running is in use, however long that takes."""

    def next_seq(self) -> int:
        """The number of the session's next message: from 1, without gaps."""
        self.seq += 1
        return self.seq

    def expired(self, now: float) -> bool:
        """Whether it has been idle for too long; `now` is on the monotonic clock."""
        return self.expires_at <= now and not self.turns_running


class SessionManager:
    """Sessions in memory, bounded, each found only while it has not been idle for too long.

    Expiry is checked at every access, so a late sweep never lets an expired session through.
    `clock` is monotonic, in seconds.
    """

    def __init__(self, limit: int, idle_timeout: float, clock: Callable[[], float]) -> None:
        self.limit = limit
        self.idle_timeout = idle_timeout
        self._clock = clock
        self._sessions: dict[str, Session] = {}
        self._admission = asyncio.Lock()
        self._closing = False

    def __len__(self) -> int:
        self.sweep()
        return len(self._sessions)

    async def create(
        self, tutor_id: int, student_id: int, kb_id: str | None
    ) -> tuple[Session, str]:
        """A new session and its token, which is told this once.

        Raises SessionLimitReached, with the seconds until the next place falls free by expiry, and
        ShuttingDown while the server stops.
        """
        # Admission is decided under a lock: a store on another machine takes time to answer.
        async with self._admission:
            if self._closing:
                raise ShuttingDown(retry_after=5)
            self.sweep()
            if len(self._sessions) >= self.limit:
                raise SessionLimitReached(limit=self.limit, retry_after=self._next_place())
            token = secrets.token_urlsafe(32)
            now = datetime.now(UTC)
            session = Session(
                id=str(uuid.uuid4()),
                tutor_id=tutor_id,
                student_id=student_id,
                kb_id=kb_id,
                token_sha256=hashlib.sha256(token.encode()).digest(),
                expires_at=self._clock() + self.idle_timeout,
                created_at=now,
                last_activity=now,
            )
            self._sessions[session.id] = session
        log.info("session created", session=session.id, tutor=tutor_id, active=len(self._sessions))
        return session, token

    def get(self, session_id: str) -> Session:
        """A live session; looking does not count as activity. Raises SessionNotFound."""
        session = self._sessions.get(session_id)
        if session is None:
            raise SessionNotFound(session_id=session_id)
        if session.expired(self._clock()):
            self._end(session, EndReason.EXPIRED)
            raise SessionNotFound(session_id=session_id)
        return session

    def is_live(self, session: Session) -> bool:
        """Whether the session is still open; one found idle for too long is ended here."""
        try:
            return self.get(session.id) is session
        except SessionNotFound:
            return False

    def authenticate(self, session_id: str, token: str) -> Session:
        """The session that this token opens; counts as activity. Raises TokenRefused.

        An unknown session and a wrong token are told apart by nobody, not even by a clock.
        """
        offered = hashlib.sha256(token.encode(errors="surrogatepass")).digest()
        try:
            session = self.get(session_id)
        except SessionNotFound:
            hmac.compare_digest(offered, b"\0" * 32)
            raise TokenRefused from None
        if not hmac.compare_digest(offered, session.token_sha256):
            raise TokenRefused
        self.touch(session)
        return session

    def touch(self, session: Session) -> None:
        """Note that the session is in use."""
        session.expires_at = self._clock() + self.idle_timeout
        session.last_activity = datetime.now(UTC)

    @contextmanager
    def in_use(self, session: Session) -> Iterator[None]:
        """A turn of the session is running: it does not expire meanwhile."""
        session.turns_running += 1
        try:
            yield
        finally:
            session.turns_running -= 1
            self.touch(session)

    def delete(self, session_id: str) -> None:
        """End a session; whoever serves it is told. Raises SessionNotFound."""
        self._end(self.get(session_id), EndReason.DELETED)

    def list(self) -> list[Session]:
        """All live sessions, oldest first."""
        self.sweep()
        return list(self._sessions.values())

    def sweep(self) -> None:
        """End every session that has been idle for too long."""
        now = self._clock()
        for session in [s for s in self._sessions.values() if s.expired(now)]:
            self._end(session, EndReason.EXPIRED)

    async def sweep_forever(self, interval: float) -> None:
        """Sweep every `interval` seconds, so that sockets of idle sessions are closed in time."""
        while True:
            await asyncio.sleep(interval)
            self.sweep()

    def end_all(self) -> None:
        """The server stops: tell everybody, and let nobody in any more."""
        self._closing = True
        for session in list(self._sessions.values()):
            self._end(session, EndReason.SHUTDOWN)

    def _end(self, session: Session, reason: EndReason) -> None:
        del self._sessions[session.id]
        session.end_reason = reason
        session.ended.set()
        log.info("session ended", session=session.id, reason=reason, active=len(self._sessions))

    def _next_place(self) -> int:
        soonest = min(session.expires_at for session in self._sessions.values())
        return max(1, math.ceil(soonest - self._clock()))
