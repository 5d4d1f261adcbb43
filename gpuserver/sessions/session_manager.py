"""The one SessionManager behind every door: admission, tokens, idle expiry, endings."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import math
import secrets
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from gpuserver.errors import (
    SessionLimitReached,
    SessionNotFound,
    ShuttingDown,
    TokenRefused,
    TurnUnknown,
)
from gpuserver.observability import get_logger
from gpuserver.sessions.event_log import EventLog, LogLimits
from gpuserver.sessions.spool import Spool
from gpuserver.sessions.store import Store
from gpuserver.sessions.tables import StoredSession

log = get_logger(__name__)

_SAVE_SECONDS: Final = 5.0
"""Activity is written down no more often than this."""
_RESTART_GAP: Final = 1000
"""Numbers left out after a restart. Those of events that were not yet written, and of the speech
since the last text, are among them, and are never used twice."""


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
    `log` holds what its clients are told, `turns` counts those begun so far.
    """

    id: str
    tutor_id: int
    student_id: int
    kb_id: str | None
    token_sha256: bytes = field(repr=False)
    expires_at: float
    created_at: datetime
    last_activity: datetime
    log: EventLog = field(repr=False)
    turns: int = 0
    open_turn: str | None = None
    """The turn that has begun and is not done; after a restart, the one that was cut off."""
    saved_at: float = field(default=-math.inf, repr=False)
    """When it was last written down, on the monotonic clock."""
    ended: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    end_reason: EndReason | None = None
    turns_running: int = 0
    """A session whose turn is running is in use, however long that takes."""

    @property
    def seq(self) -> int:
        """The number of the last message."""
        return self.log.last_seq

    def expired(self, now: float) -> bool:
        """Whether it has been idle for too long; `now` is on the monotonic clock."""
        return self.expires_at <= now and not self.turns_running


class SessionManager:
    """Sessions, bounded, each found only while it has not been idle for too long.

    Expiry is checked at every access, so a late sweep never lets an expired session through.
    `clock` is monotonic, in seconds. With a store, sessions outlive the process; without one they
    are in memory only. All of them share `spool` for their speech.
    """

    def __init__(
        self,
        limit: int,
        idle_timeout: float,
        clock: Callable[[], float],
        store: Store | None = None,
        log_limits: LogLimits | None = None,
        spool: Spool | None = None,
    ) -> None:
        self.limit = limit
        self.idle_timeout = idle_timeout
        self._clock = clock
        self._store = store
        self._log_limits = log_limits or LogLimits()
        self._spool = spool or Spool(256 << 20)
        self._sessions: dict[str, Session] = {}
        self._admission = asyncio.Lock()
        self._closing = False

    def __len__(self) -> int:
        self.sweep()
        return len(self._sessions)

    def restore(self, stored: Iterable[StoredSession]) -> None:
        """Take up the sessions that the store knows, even when they are more than the limit.

        Called once, before any is created. Those that expired meanwhile are dropped.
        """
        wall, now = datetime.now(UTC).timestamp(), self._clock()
        for row in stored:
            if row.expires_at > wall:
                # A wall clock that was put back makes nobody stay longer.
                left = min(self.idle_timeout, row.expires_at - wall)
                self._sessions[row.id] = self._restored(row, now + left)
            elif self._store is not None:
                self._store.drop(row.id)
        log.info("sessions restored", active=len(self._sessions))

    def _restored(self, row: StoredSession, expires_at: float) -> Session:
        return Session(
            id=row.id,
            tutor_id=row.tutor_id,
            student_id=row.student_id,
            kb_id=row.kb_id,
            token_sha256=row.token_sha256,
            expires_at=expires_at,
            created_at=datetime.fromtimestamp(row.created_at, UTC),
            last_activity=datetime.fromtimestamp(row.last_activity, UTC),
            log=self._log_of(row.id, row.last_seq + _RESTART_GAP, row.lost_seq),
            turns=row.turns,
            open_turn=row.open_turn,
        )

    def _log_of(self, session_id: str, last_seq: int = 0, lost_seq: int = 0) -> EventLog:
        return EventLog(
            session_id,
            self._log_limits,
            self._spool,
            self._clock,
            store=self._store,
            last_seq=last_seq,
            lost_seq=lost_seq,
        )

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
            session_id = str(uuid.uuid4())
            session = Session(
                id=session_id,
                tutor_id=tutor_id,
                student_id=student_id,
                kb_id=kb_id,
                token_sha256=hashlib.sha256(token.encode()).digest(),
                expires_at=self._clock() + self.idle_timeout,
                created_at=now,
                last_activity=now,
                log=self._log_of(session_id),
            )
            self._sessions[session.id] = session
            self._save(session)
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
        """Note that the session is in use; written down now and then."""
        now = self._clock()
        session.expires_at = now + self.idle_timeout
        session.last_activity = datetime.now(UTC)
        if now - session.saved_at >= _SAVE_SECONDS:
            self._save(session)

    def note_turn(self, session: Session, open_turn: str | None) -> None:
        """Write down which turn has begun and is not done yet, and the number of turns."""
        session.open_turn = open_turn
        self._save(session)

    def remember(self, session: Session, n: int, payload: bytes, keep: int) -> None:
        """Keep what was said in its n-th turn; the last `keep` of them are kept."""
        if self._store is not None and session.end_reason in (None, EndReason.SHUTDOWN):
            self._store.remember(session.id, n, payload, keep)

    async def recall(self, session: Session) -> list[bytes]:
        """What was remembered, in order."""
        return [] if self._store is None else await self._store.recall(session.id)

    def rate(self, session: Session, turn_id: str, rating: int, comment: str) -> None:
        """Keep what the student thinks of a turn. Raises TurnUnknown."""
        number = turn_id[1:]
        known = turn_id[:1] == "t" and number.isascii() and number.isdigit()
        if not known or not 1 <= int(number) <= session.turns or number.startswith("0"):
            raise TurnUnknown(turn_id=turn_id)
        if self._store is not None:
            self._store.rate(session.id, turn_id, rating, comment)

    def _save(self, session: Session) -> None:
        # What has been deleted must not come back; what a stopping server still does is kept.
        if self._store is None or session.end_reason not in (None, EndReason.SHUTDOWN):
            return
        session.saved_at = self._clock()
        left = session.expires_at - session.saved_at
        self._store.save(
            StoredSession(
                id=session.id,
                tutor_id=session.tutor_id,
                student_id=session.student_id,
                kb_id=session.kb_id,
                token_sha256=session.token_sha256,
                created_at=session.created_at.timestamp(),
                last_activity=session.last_activity.timestamp(),
                expires_at=datetime.now(UTC).timestamp() + left,
                last_seq=session.log.last_seq,
                lost_seq=session.log.lost_seq,
                turns=session.turns,
                open_turn=session.open_turn,
            )
        )

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
        for session in self._sessions.values():
            session.log.sweep(now)

    async def sweep_forever(self, interval: float) -> None:
        """Sweep every `interval` seconds, so that sockets of idle sessions are closed in time."""
        while True:
            await asyncio.sleep(interval)
            self.sweep()

    def end_all(self) -> None:
        """The server stops: tell everybody, and let nobody in any more.

        The store keeps the sessions for the server that starts next.
        """
        self._closing = True
        for session in list(self._sessions.values()):
            self._end(session, EndReason.SHUTDOWN)

    def _end(self, session: Session, reason: EndReason) -> None:
        del self._sessions[session.id]
        if reason is EndReason.SHUTDOWN:
            self._save(session)
        else:
            session.log.forget()
            if self._store is not None:
                self._store.drop(session.id)
        session.end_reason = reason
        session.ended.set()
        log.info("session ended", session=session.id, reason=reason, active=len(self._sessions))

    def _next_place(self) -> int:
        soonest = min(session.expires_at for session in self._sessions.values())
        return max(1, math.ceil(soonest - self._clock()))
