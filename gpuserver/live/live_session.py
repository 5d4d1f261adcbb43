"""A session being served: its engine's lease, its questions, its microphone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from gpuserver.errors import EngineFailed, GpuServerError, Replaced, SessionEnded
from gpuserver.live.answering import Answering, Limits, Listener
from gpuserver.live.barge_in import BargeIn, BargeInRules
from gpuserver.live.dialogue import Dialogue, Manner
from gpuserver.live.endpointing import Endpointing
from gpuserver.live.listening import Listening
from gpuserver.metrics import Metrics
from gpuserver.observability import get_logger
from gpuserver.sessions.session_manager import Session, SessionManager
from gpuserver.tutor.ai_engine import AIEngine, Engines
from gpuserver.tutor.turn import Question

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Rules:
    """What every live session of a server goes by."""

    limits: Limits
    endpointing: Endpointing
    barge_in: BargeInRules


class Client(Protocol):
    """A connected socket."""

    def replace(self) -> None:
        """Another one has taken the session over."""
        ...


class LiveSession:
    """One student's session with one engine. It outlives a socket: the conversation stays."""

    def __init__(
        self,
        session: Session,
        manager: SessionManager,
        rules: Rules,
        metrics: Metrics,
    ) -> None:
        self.session = session
        self.metrics = metrics
        self.limits = rules.limits
        self.stopped = asyncio.Event()
        """Set once the session has ended and nothing of it runs any more."""
        self._manager = manager
        self._rules = rules
        self._answering = Answering(session, manager, rules.limits, metrics)
        self._engine: asyncio.Future[AIEngine] = asyncio.get_running_loop().create_future()
        self._group: asyncio.TaskGroup | None = None
        self._listener: Listener | None = None
        self._client: Client | None = None
        self._away: asyncio.TimerHandle | None = None
        self._manner = Manner("en")
        self._dialogue: Dialogue | None = None
        self._listening: Listening | None = None
        self.has_microphone = False
        """Whether the client's microphone is open."""

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

    # Who listens

    @property
    def listener(self) -> Listener | None:
        """What speaks with the client; one that lasts is used again by the next client."""
        return self._listener

    def attach(self, client: Client, listener: Listener) -> None:
        """Serve this client from now on, through this listener; an earlier client is told.

        A client that comes back to a listener that lasts finds its answer going on; otherwise the
        running answer stops.
        """
        self._stop_waiting()
        earlier, self._client = self._client, client
        if earlier is not None:
            # What that client was saying is not this one's.
            self._close_microphone()
        if listener is not self._listener:
            if self._listener is not None:
                self._answering.interrupt()
            self._listener = listener
        if earlier is not None:
            earlier.replace()
        if listener.lasting:
            self._answering.end_lost_turns(listener)

    def detach(self, client: Client) -> None:
        """The client has gone: go on for a while if it may come back, stop otherwise."""
        if self._client is not client:
            return
        self._client = None
        self._close_microphone()
        if self._listener is None or not self._listener.lasting:
            self._answering.interrupt()
        elif not self.session.ended.is_set():
            loop = asyncio.get_running_loop()
            self._away = loop.call_later(self.limits.resume_seconds, self._answering.interrupt)

    # What the student does

    def check_alive(self, *, use: bool = True) -> None:
        """Raises SessionEnded; notes activity unless it is no `use` of the session."""
        if not self._manager.is_live(self.session):
            raise SessionEnded(reason=self.session.end_reason)
        if use:
            self._manager.touch(self.session)

    def ask(self, question: Question, listener: Listener) -> str:
        """Put a question in line; returns its turn's id.

        Raises TextEmpty, TextTooLong, Busy; SessionEnded when the session has expired meanwhile;
        Replaced when another client has taken it over.
        """
        self.check_alive()
        if listener is not self._listener:
            raise Replaced
        return self._answering.ask(question, listener)

    def interrupt(self, turn_id: str | None = None) -> None:
        """Stop the running turn (if it is the named one) and drop what waits behind it."""
        self._answering.interrupt(turn_id, by="message")

    def heard(self, turn_id: str, ms: int) -> None:
        """The client has played so much of a turn's speech."""
        self._answering.heard(turn_id, ms)

    def rate(self, turn_id: str, rating: int, comment: str) -> None:
        """Keep what the student thinks of an answer. Raises TurnUnknown."""
        self._manager.rate(self.session, turn_id, rating, comment)

    def adopt(self, manner: Manner) -> None:
        """Speak and listen in this manner from now on."""
        self._manner = manner
        if self._listening is not None:
            self._tune(self._listening)

    # The open microphone

    @property
    def microphone(self) -> Listening:
        """What listens to the student; opened when first asked for. Raises SessionEnded.

        An open microphone is no use of the session: speech is.
        """
        self.check_alive(use=False)
        self.has_microphone = True
        if self._listening is None:
            self._listening = self._open_microphone()
        return self._listening

    def _open_microphone(self) -> Listening:
        if self._group is None or self._listener is None:
            raise RuntimeError("a microphone without a client")
        self._dialogue = Dialogue(
            self._answering,
            self._listens,
            lambda: self._manner,
            BargeIn(self._rules.barge_in),
            lambda: self._manager.touch(self.session),
        )
        listening = Listening(
            self._engine.result().ear(self.session.kb_id),
            self._rules.endpointing,
            self._dialogue,
            language=self._manner.language,
        )
        self._tune(listening)
        self._group.create_task(listening.run())
        return listening

    def _tune(self, listening: Listening) -> None:
        manner = self._manner
        listening.language, listening.manual = manner.language, manner.manual
        listening.configure(manner.encoding, manner.sample_rate)

    def _close_microphone(self) -> None:
        self.has_microphone = False
        if self._listening is not None and self._dialogue is not None:
            self._listening.clear()
            self._dialogue.leave()

    def _listens(self) -> Listener:
        assert self._listener is not None
        return self._listener

    # The work

    async def keep(self, engines: Callable[[], Engines]) -> None:
        """Hold the engine and answer until the session ends. One call, by one owner."""
        try:
            async with (
                engines().lease(self.session.tutor_id) as engine,
                asyncio.TaskGroup() as self._group,
            ):
                # Before a client is let in, so that its first words are answered like all others.
                await self._answering.recall()
                work = self._group.create_task(self._answering.run(engine))
                self._engine.set_result(engine)
                learning = self._group.create_task(engine.learn(self.session.kb_id))
                await self.session.ended.wait()
                work.cancel()
                learning.cancel()
                self._stop_waiting()
                if self._listening is not None:
                    self._listening.close()
        except GpuServerError as error:
            log.error("no engine", session=self.session.id, code=error.code, reason=str(error))
            if not self._engine.done():
                self._engine.set_exception(error)
        finally:
            if not self._engine.done():
                self._engine.set_exception(EngineFailed(engine="tutor"))
            # Whoever waits gets it; nobody may be waiting any more.
            self._engine.exception()
            self.stopped.set()

    def _stop_waiting(self) -> None:
        if self._away is not None:
            self._away.cancel()
            self._away = None


class LiveSessions:
    """The sessions being served, each by a task that this object's owner runs."""

    def __init__(
        self,
        engines: Callable[[], Engines],
        manager: SessionManager,
        rules: Rules,
        metrics: Metrics,
    ) -> None:
        """`engines` is asked when a session is opened: it may still be loading before that."""
        self._engines, self._manager = engines, manager
        self._rules, self._metrics = rules, metrics
        self._live: dict[str, LiveSession] = {}
        self._group: asyncio.TaskGroup | None = None

    def __len__(self) -> int:
        return len(self._live)

    @property
    def microphones(self) -> int:
        """How many students' microphones have been opened."""
        return sum(live.has_microphone for live in self._live.values())

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
            live = self._live[session.id] = LiveSession(
                session, self._manager, self._rules, self._metrics
            )
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
