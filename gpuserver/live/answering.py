"""A session's questions in order: the one being answered, those in line, the one begun ahead."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from gpuserver.errors import Busy, Restarted, TextEmpty, TextTooLong
from gpuserver.live import events
from gpuserver.live.playout import Playout, pieces
from gpuserver.metrics import Interrupter, Metrics, TurnKind
from gpuserver.observability import get_logger
from gpuserver.providers import Transcript
from gpuserver.sessions.session_manager import Session, SessionManager
from gpuserver.sessions.store import StoreUnreadable
from gpuserver.tutor.ai_engine import AIEngine
from gpuserver.tutor.conversation import Conversation, Exchange
from gpuserver.tutor.events import Ended, Event, SpeechChunk, SpeechDone, Started, TextDone
from gpuserver.tutor.turn import Question, Turn, TurnLimits

log = get_logger(__name__)

_USUAL_SECONDS: Final = 8.0
"""What a turn takes until this session's own turns tell better."""


class Listener(Protocol):
    """What speaks with a client in its dialect, and hears the session's events."""

    paced: bool
    """Whether speech goes out in real time rather than as fast as it is made."""
    lasting: bool
    """Whether it keeps what it is told for a client that comes back."""

    def write(self, turn_id: str, event: events.LiveEvent) -> None:
        """Tell of an event; `turn_id` is empty for one that belongs to no turn. Never waits."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What one student may ask of the server."""

    text_chars: int
    message_bytes: int
    messages_per_second: int
    waiting_questions: int
    history_turns: int
    speech_lead_ms: int
    replaces: bool
    """Whether a question during an answer interrupts it; it waits otherwise."""
    resume_seconds: float
    turn: TurnLimits


class _Sink:
    """Where a turn writes: held back until the turn counts, speech in real time."""

    def __init__(self, listener: Listener, playout: Playout) -> None:
        self._listener, self._playout = listener, playout
        self.turn_id = ""
        self.ended: Ended | None = None
        self._held: list[Event] = []
        self._released = asyncio.Event()

    def release(self, turn_id: str) -> None:
        """The turn counts: what was held back goes out, in order."""
        self.turn_id = turn_id
        for event in self._held:
            self._listener.write(turn_id, event)
        self._held.clear()
        self._released.set()

    async def write(self, event: Event) -> None:
        if isinstance(event, Ended):
            self.ended = event
        if not self._released.is_set():
            if not isinstance(event, SpeechChunk | TextDone):
                self._held.append(event)
                return
            # So that a turn begun ahead gets no further than its first clause, and never ends.
            await self._released.wait()
        if isinstance(event, SpeechDone):
            # Held still, the answer may yet be interrupted.
            await self._playout.until_moving()
            return
        if not isinstance(event, SpeechChunk) or not self._listener.paced:
            self._listener.write(self.turn_id, event)
            return
        for piece in pieces(event):
            await self._playout.wait_for(piece.start_ms, piece.end_ms)
            self._listener.write(self.turn_id, piece)


@dataclass(slots=True, eq=False)
class _Answer:
    """A turn at work."""

    turn: Turn
    sink: _Sink
    playout: Playout
    task: asyncio.Task[None]
    stopping: bool = False

    def stop(self) -> None:
        """Interrupt it, keeping how much of it was heard by now."""
        self.stopping = True
        self.turn.heard(self.playout.heard_ms(), reported=False)
        self.task.cancel()


@dataclass(slots=True, eq=False)
class _Asked:
    """A question in line. One that is dropped has its turn too: one without an answer."""

    turn_id: str
    question: Question
    listener: Listener
    arrived: float
    ahead: _Answer | None = None
    dropped: bool = False


@dataclass(slots=True, eq=False)
class _Ahead:
    """A turn begun before the student had surely finished, on the words heard by then."""

    words: str
    answer: _Answer


class Answering:
    """Answers one session's questions with one engine, one after another."""

    def __init__(
        self,
        session: Session,
        manager: SessionManager,
        limits: Limits,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session, self._manager, self._limits = session, manager, limits
        self._metrics = metrics
        self._clock = clock
        self._conversation = Conversation(limits.history_turns)
        self._waiting: deque[_Asked] = deque()
        self._wake = asyncio.Event()
        self._engine: AIEngine | None = None
        self._group: asyncio.TaskGroup | None = None
        self._current: _Answer | None = None
        self._last: _Answer | None = None
        self._ahead: _Ahead | None = None
        self._usual_seconds = _USUAL_SECONDS

    # What the student does

    def ask(self, question: Question, listener: Listener, arrived: float | None = None) -> str:
        """Put a question in line; returns its turn's id. Raises TextEmpty, TextTooLong, Busy."""
        if not question.is_voice:
            if not question.text.strip():
                raise TextEmpty
            if len(question.text) > self._limits.text_chars:
                raise TextTooLong(limit=self._limits.text_chars)
        if self._limits.replaces and listener.lasting:
            self.interrupt(by="message")
        if self._in_line() >= self._limits.waiting_questions:
            raise Busy(limit=self._limits.waiting_questions)
        asked = _Asked(
            self._next_turn_id(),
            question,
            listener,
            self._clock() if arrived is None else arrived,
            self._take_ahead(question.transcript),
        )
        before = self._in_line() + (self._current is not None)
        self._waiting.append(asked)
        self._wake.set()
        if before:
            eta = max(1, round(before * self._usual_seconds))
            listener.write(asked.turn_id, events.Queued(before, eta))
        return asked.turn_id

    def interrupt(self, turn_id: str | None = None, *, by: Interrupter | None = None) -> None:
        """Stop the running turn (if it is the named one) and drop what waits behind it.

        Every one of them ends as interrupted, in order. `by` is None where nobody wished it.
        """
        current = self._current
        if turn_id is not None and (current is None or current.sink.turn_id != turn_id):
            return
        for asked in self._waiting:
            asked.dropped = True
        if current is not None and not current.stopping:
            current.stop()
            if by is not None:
                self._metrics.count_interruption(by)

    def heard(self, turn_id: str, ms: int) -> None:
        """The client says how much of a turn's speech it has played."""
        for answer in (self._current, self._last):
            if answer is None or answer.sink.turn_id != turn_id:
                continue
            if answer.turn.heard(answer.playout.report(ms), reported=True):
                self._remember(answer)

    # What an open microphone makes of it

    @property
    def busy(self) -> bool:
        """Whether a question is being answered, and not being stopped."""
        return self._current is not None and not self._current.stopping

    @property
    def audible(self) -> bool:
        """Whether the answer's speech has begun."""
        return self._current is not None and self.busy and self._current.playout.audible

    @property
    def audible_since(self) -> float | None:
        """When the answer's first speech went out."""
        return None if self._current is None else self._current.playout.started_at

    def saying(self, before_ms: int) -> str:
        """The words that the tutor has been saying in the last milliseconds."""
        if self._current is None:
            return ""
        return self._current.turn.spoken.around(self._current.playout.heard_ms(), before_ms)

    def pause(self, listener: Listener) -> None:
        """Hold the answer's speech still."""
        if self._current is not None and not self._current.playout.paused:
            self._current.playout.pause()
            listener.write(self._current.sink.turn_id, events.SpeechPaused())

    def resume(self, listener: Listener) -> None:
        """Go on with the answer's speech."""
        current = self._current
        if current is not None and not current.stopping and current.playout.paused:
            current.playout.resume()
            self._metrics.count_false_alarm()
            listener.write(current.sink.turn_id, events.SpeechResumed())

    def begin_ahead(self, question: Question, listener: Listener, ended: float) -> None:
        """Begin to answer what may be the whole question; nothing is sent before it is asked."""
        self.drop_ahead()
        if self._current is None and not self._waiting and self._group is not None:
            assert question.transcript is not None
            answer = self._start(question, listener, ended, ahead=True)
            self._ahead = _Ahead(question.transcript.text, answer)

    def drop_ahead(self) -> None:
        """The student went on speaking: what was begun ahead was for nothing."""
        if self._ahead is not None:
            self._ahead.answer.task.cancel()
            self._ahead = None

    # The work

    async def recall(self) -> None:
        """Take up the conversation from before a restart of the server; before `run`."""
        if not self._session.turns:
            return
        try:
            payloads = await self._manager.recall(self._session)
        except StoreUnreadable:
            log.warning("the conversation so far can't be read", session=self._session.id)
            return
        for payload in payloads:
            exchange = Exchange.decode(payload)
            if exchange is not None:
                self._conversation.add(exchange)

    async def run(self, engine: AIEngine) -> None:
        """Answer until cancelled. One call, by one owner."""
        async with asyncio.TaskGroup() as self._group:
            self._engine = engine
            while True:
                await self._wake.wait()
                try:
                    while self._waiting:
                        await self._answer(self._waiting.popleft())
                except asyncio.CancelledError:
                    self._end_line()
                    raise
                self._wake.clear()

    def _end_line(self) -> None:
        """The session is over: what is in line ends as well, each in its own turn."""
        for asked in self._waiting:
            asked.listener.write(asked.turn_id, Started(asked.question.text))
            asked.listener.write(asked.turn_id, Ended("interrupted", {}, {}, None, ""))
        self._waiting.clear()
        self._manager.note_turn(self._session, None)

    def end_lost_turns(self, listener: Listener) -> None:
        """Tell how the turns ended that a restart of the server cut off, answered and in line."""
        lost = self._session.open_turn
        if lost is None or self._current is not None or self._waiting:
            return
        self._manager.note_turn(self._session, None)
        for number in range(int(lost[1:]), self._session.turns + 1):
            listener.write(f"t{number}", Ended("failed", {}, {}, Restarted()))

    async def _answer(self, asked: _Asked) -> None:
        answer = asked.ahead or self._start(asked.question, asked.listener, asked.arrived)
        began = self._clock()
        with self._manager.in_use(self._session):
            self._last = None
            self._current = answer
            answer.sink.release(asked.turn_id)
            if asked.question.transcript is not None:
                answer.turn.commit()
            if asked.dropped:
                answer.task.cancel()
            try:
                await asyncio.wait([answer.task])
            finally:
                # When the session ends, its turn still tells its own ending.
                if not answer.task.done():
                    answer.stop()
                    await asyncio.wait([answer.task])
                if not answer.turn.began:
                    await answer.turn.skip()
                self._current = None
                self._conclude(asked, answer)
        self._usual_seconds += (self._clock() - began - self._usual_seconds) / 4

    def _conclude(self, asked: _Asked, answer: _Answer) -> None:
        """Keep how a turn ended, so that it is not told again after a restart."""
        ended = answer.sink.ended
        if ended is None:
            return
        following = self._waiting[0].turn_id if self._waiting else None
        self._manager.note_turn(self._session, following)
        self._last = answer
        self._remember(answer)
        kind: TurnKind = "voice" if asked.question.is_voice else "text"
        code = None if ended.error is None else ended.error.code
        self._metrics.observe_turn(kind, ended.status, ended.timeline, code)

    def _start(
        self, question: Question, listener: Listener, arrived: float, *, ahead: bool = False
    ) -> _Answer:
        assert self._group is not None
        assert self._engine is not None
        playout = Playout(self._limits.speech_lead_ms, self._clock)
        sink = _Sink(listener, playout)
        turn = Turn(
            self._engine,
            self._conversation,
            question,
            sink,
            kb_id=self._session.kb_id,
            limits=self._limits.turn,
            arrived=arrived,
            clock=self._clock,
            ahead=ahead,
        )
        return _Answer(turn, sink, playout, self._group.create_task(self._run(turn)))

    async def _run(self, turn: Turn) -> None:
        try:
            await turn.run()
        # The top of a turn: it has told the student by itself; one bug must not end the session.
        except Exception:
            log.exception("turn failed", session=self._session.id)

    def _take_ahead(self, transcript: Transcript | None) -> _Answer | None:
        """The turn begun ahead, if it was begun on these very words and needs no other try."""
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return None
        ended = ahead.answer.sink.ended
        again = ended is not None and ended.error is not None and ended.error.retryable
        if transcript is not None and transcript.text == ahead.words and not again:
            return ahead.answer
        ahead.answer.task.cancel()
        return None

    def _next_turn_id(self) -> str:
        self._session.turns += 1
        turn_id = f"t{self._session.turns}"
        self._manager.note_turn(self._session, self._session.open_turn or turn_id)
        return turn_id

    def _in_line(self) -> int:
        return sum(not asked.dropped for asked in self._waiting)

    def _remember(self, answer: _Answer) -> None:
        exchange = answer.turn.exchange
        if exchange is not None:
            number = int(answer.sink.turn_id[1:])
            keep = self._limits.history_turns
            self._manager.remember(self._session, number, exchange.encode(), keep)
