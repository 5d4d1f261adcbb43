"""A session being served: its engine's lease, its conversation, its questions in order."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from gpuserver.errors import (
    Busy,
    EngineFailed,
    GpuServerError,
    Replaced,
    SessionEnded,
    TextEmpty,
    TextTooLong,
)
from gpuserver.observability import get_logger
from gpuserver.sessions.session_manager import Session, SessionManager
from gpuserver.tutor.ai_engine import AIEngine, Engines
from gpuserver.tutor.conversation import Conversation
from gpuserver.tutor.events import Event
from gpuserver.tutor.turn import Question, Turn

log = get_logger(__name__)


class Listener(Protocol):
    """A connected client, which hears the session's events in its own dialect."""

    def write(self, turn_id: str, event: Event) -> Coroutine[Any, Any, None]:
        """Tell of an event; waits while the client reads too slowly."""
        ...

    def replace(self) -> None:
        """Another client has taken the session over."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What one student may ask of the server."""

    text_chars: int
    audio_seconds: int
    message_bytes: int
    waiting_questions: int
    history_turns: int
    turn_seconds: float


@dataclass(frozen=True, slots=True)
class _TurnSink:
    """Binds a turn to the client that asked, so that nothing stale reaches another one."""

    listener: Listener
    turn_id: str

    def write(self, event: Event) -> Coroutine[Any, Any, None]:
        return self.listener.write(self.turn_id, event)


@dataclass(slots=True, eq=False)
class _Asked:
    """A question in line. One that is dropped has its turn too: one without an answer."""

    turn_id: str
    question: Question
    listener: Listener
    arrived: float = field(default_factory=time.monotonic)
    dropped: bool = False


class LiveSession:
    """One student's session with one engine. It outlives a socket: the conversation stays."""

    def __init__(self, session: Session, manager: SessionManager, limits: Limits) -> None:
        self.session = session
        self._manager = manager
        self.limits = limits
        self._conversation = Conversation(limits.history_turns)
        self._engine: asyncio.Future[AIEngine] = asyncio.get_running_loop().create_future()
        self._waiting: deque[_Asked] = deque()
        self._wake = asyncio.Event()
        self._running: tuple[str, asyncio.Task[None]] | None = None
        self._listener: Listener | None = None
        self._turns = 0

    async def engine(self) -> AIEngine:
        """The engine, once it is built. Raises what its build raised, and SessionEnded."""
        ending = asyncio.create_task(self.session.ended.wait())
        either: list[asyncio.Future[Any]] = [self._engine, ending]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ending.cancel()
        if self.session.ended.is_set():
            raise SessionEnded(reason=self.session.end_reason)
        return self._engine.result()

    def attach(self, listener: Listener) -> None:
        """Serve this client from now on; an earlier one is told and its turn stops."""
        earlier, self._listener = self._listener, listener
        if earlier is not None:
            self.interrupt()
            earlier.replace()

    def detach(self, listener: Listener) -> None:
        """The client has gone: stop working for it."""
        if self._listener is listener:
            self._listener = None
            self.interrupt()

    def ask(self, question: Question, listener: Listener) -> str:
        """Put a question in line; returns its turn's id.

        Raises TextEmpty, TextTooLong, Busy; SessionEnded when the session has expired meanwhile;
        Replaced when another client has taken it over.
        """
        self.check_alive()
        if listener is not self._listener:
            raise Replaced
        if question.clip is None:
            if not question.text.strip():
                raise TextEmpty
            if len(question.text) > self.limits.text_chars:
                raise TextTooLong(limit=self.limits.text_chars)
        if sum(not asked.dropped for asked in self._waiting) >= self.limits.waiting_questions:
            raise Busy(limit=self.limits.waiting_questions)
        self._turns += 1
        turn_id = f"t{self._turns}"
        self._waiting.append(_Asked(turn_id, question, listener))
        self._wake.set()
        return turn_id

    def check_alive(self) -> None:
        """Note activity. Raises SessionEnded."""
        if not self._manager.is_live(self.session):
            raise SessionEnded(reason=self.session.end_reason)
        self._manager.touch(self.session)

    def interrupt(self, turn_id: str | None = None) -> None:
        """Stop the running turn (if it is the named one) and drop what waits behind it.

        Every one of them ends as interrupted, in order.
        """
        if turn_id is None or (self._running is not None and self._running[0] == turn_id):
            for asked in self._waiting:
                asked.dropped = True
            if self._running is not None:
                self._running[1].cancel()

    async def keep(self, engines: Callable[[], Engines]) -> None:
        """Hold the engine and answer until the session ends. One call, by one owner."""
        try:
            async with engines().lease(self.session.tutor_id) as engine:
                self._engine.set_result(engine)
                async with asyncio.TaskGroup() as group:
                    work = group.create_task(self._answer_all(engine))
                    await self.session.ended.wait()
                    work.cancel()
        except GpuServerError as error:
            log.error("no engine", session=self.session.id, code=error.code, reason=str(error))
            self._engine.set_exception(error)
        finally:
            if not self._engine.done():
                self._engine.set_exception(EngineFailed(engine="tutor"))
            # Whoever waits gets it; nobody may be waiting any more.
            self._engine.exception()

    async def _answer_all(self, engine: AIEngine) -> None:
        while True:
            await self._wake.wait()
            while self._waiting:
                await self._answer(engine, self._waiting.popleft())
            self._wake.clear()

    async def _answer(self, engine: AIEngine, asked: _Asked) -> None:
        turn = Turn(
            engine,
            self._conversation,
            asked.question,
            _TurnSink(asked.listener, asked.turn_id),
            kb_id=self.session.kb_id,
            timeout=self.limits.turn_seconds,
            max_audio_seconds=self.limits.audio_seconds,
            arrived=asked.arrived,
        )
        try:
            with self._manager.in_use(self.session):
                if not asked.dropped:
                    async with asyncio.TaskGroup() as group:
                        self._running = (asked.turn_id, group.create_task(turn.run()))
                if not turn.began:
                    await turn.skip()
        # The top of a turn: it has told the student by itself; one bug must not end the session.
        except Exception:
            log.exception("turn failed", session=self.session.id, turn=asked.turn_id)
        finally:
            self._running = None


class LiveSessions:
    """The sessions being served, each by a task that this object's owner runs."""

    def __init__(
        self, engines: Callable[[], Engines], manager: SessionManager, limits: Limits
    ) -> None:
        """`engines` is asked when a session is opened: it may still be loading before that."""
        self._engines, self._manager, self._limits = engines, manager, limits
        self._live: dict[str, LiveSession] = {}
        self._group: asyncio.TaskGroup | None = None

    def __len__(self) -> int:
        return len(self._live)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Own the tasks of all live sessions; on leaving, every session is ended and awaited."""
        async with asyncio.TaskGroup() as self._group:
            try:
                yield
            finally:
                self._manager.end_all()

    def open(self, session: Session) -> LiveSession:
        """The live session of a session, begun if this is its first client."""
        live = self._live.get(session.id)
        if live is None:
            if self._group is None:
                raise RuntimeError("LiveSessions.open outside `running`")
            live = self._live[session.id] = LiveSession(session, self._manager, self._limits)
            self._group.create_task(self._keep(live))
        return live

    async def _keep(self, live: LiveSession) -> None:
        try:
            await live.keep(self._engines)
        # The top of a session's task: one session's bug must not take the others down.
        except Exception:
            log.exception("live session failed", session=live.session.id)
        finally:
            del self._live[live.session.id]
