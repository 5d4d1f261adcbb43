"""Whatever students do, in any order: no session hears another, nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from websockets.exceptions import ConnectionClosed

from gpuserver.client import Conversation, Ticket
from gpuserver.client.conversation import connect_to
from gpuserver.errors import EngineFailed
from tests.conftest import Scripted, Serve
from tests.fakes import Cast
from tests.test_live_voice import silence

_MOST = 4
_LOUD = 3000
_T = TypeVar("_T")
_SESSIONS = st.integers(0, _MOST - 1)
_FAR_APART = 8 * 3600.0


class Line:
    """One connection of a student, and all that came over it."""

    def __init__(self, socket: Conversation, resumed_from: int | None) -> None:
        self.socket, self.resumed_from = socket, resumed_from
        self.messages: list[dict[str, Any]] = []
        self.code: int | None = None
        self.reading = asyncio.ensure_future(self._read())

    @property
    def open(self) -> bool:
        return not self.reading.done()

    async def _read(self) -> None:
        try:
            while True:
                self.messages.append(await self.socket.receive())
        except ConnectionClosed as closed:
            self.code = closed.rcvd.code if closed.rcvd is not None else None


class Student:
    """One session: what its lines have told it so far."""

    def __init__(self, number: int, ticket: Ticket) -> None:
        self.marker = f"zq{number}zq"
        self.loudness = _LOUD + number
        self.ticket = ticket
        self.lines: list[Line] = []
        self.over = False

    @property
    def line(self) -> Line | None:
        """The open one, if it has said hello."""
        if self.lines and self.lines[-1].open and self.lines[-1].messages:
            return self.lines[-1]
        return None

    def check(self) -> None:
        """Numbers without gaps on each line, and the same message under each number on all."""
        known: dict[int, dict[str, Any]] = {}
        for line in self.lines:
            if not line.messages:
                continue
            hellos = [m for m in line.messages if m["type"] == "session.ready"]
            assert line.messages[0] is hellos[0]
            # One that says too late that it returns has been greeted as one that does not.
            resumed = [hello["resumed"] for hello in hellos]
            allowed = [[False]] if line.resumed_from is None else [[False], [True], [False, True]]
            assert resumed in allowed
            at = hellos[0]["seq"]
            for message in line.messages:
                if message["type"] == "session.ready":
                    at = message["seq"]
                    assert not message["resumed"] or at == line.resumed_from
                    continue
                if message["type"] == "session.ending":
                    assert message is line.messages[-1]
                    assert message["seq"] >= at
                    continue
                first = message.get("from_seq", message["seq"])
                assert first == at + 1, (self.marker, at, message)
                at = message["seq"]
                if message["type"] not in {"audio.delta", "audio.skipped", "pong"}:
                    assert known.setdefault(at, message) == message
        ends = [m["turn_id"] for m in known.values() if m["type"] == "turn.done"]
        assert len(ends) == len(set(ends)), f"a turn was done twice: {ends}"

    def check_whole(self) -> None:
        """Of a last line that asked for everything: each turn that began is done, once."""
        messages = self.lines[-1].messages
        begun = [m["turn_id"] for m in messages if m["type"] == "turn.started"]
        done = [m["turn_id"] for m in messages if m["type"] == "turn.done"]
        assert begun == done
        assert len(set(done)) == len(done)


class Machine(RuleBasedStateMachine):
    """Students of one scripted server, each with a word of its own."""

    def __init__(self, serve: Serve, cast: Cast, folder: Path) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.late = 0.0
        self.students: dict[int, Student] = {}
        self.made = 0
        self.stack = AsyncExitStack()
        cast.llm.requests.clear()
        cast.llm.answers = {
            "fault": ["It begins. ", EngineFailed(engine="llm")],
            "bug": [RuntimeError("a bug")],
        }
        self.server: Scripted = self.run(self._open(serve, folder))

    async def _open(self, serve: Serve, folder: Path) -> Scripted:
        return await self.stack.enter_async_context(
            serve(
                clock=lambda: time.monotonic() + self.late,
                data_dir=folder,
                barge_in_grace_seconds=0,
                resume_grace_seconds=0.2,
                max_sessions=_MOST,
            )
        )

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return self.runner.run(work)

    async def _until(self, met: Callable[[], Any]) -> None:
        async with asyncio.timeout(15):
            while not met():
                await asyncio.sleep(0.005)

    def of(self, number: int) -> Student | None:
        student = self.students.get(number)
        return None if student is None or student.over else student

    # What may happen

    @rule(number=_SESSIONS)
    def create(self, number: int) -> None:
        if self.of(number) is None:
            self.run(self._create(number))

    async def _create(self, number: int) -> None:
        async with self.server.management() as management:
            ticket = await management.create_session(student_id=number)
        earlier = self.students.get(number)
        if earlier is not None:
            earlier.check()
        self.made += 1
        self.students[number] = Student(self.made, ticket)
        said = f"what about {self.students[number].marker}"
        self.server.cast.asr.voices[self.students[number].loudness] = said
        await self._connect(self.students[number], None)

    @rule(number=_SESSIONS, back=st.floats(0, 1), returning=st.booleans())
    def connect(self, number: int, back: float, returning: bool) -> None:
        """The first, a second or a later socket; it may return to any number it has had."""
        student = self.of(number)
        if student is not None:
            seqs = [m["seq"] for line in student.lines for m in line.messages]
            seq = sorted(seqs)[int(back * (len(seqs) - 1))] if seqs and returning else None
            self.run(self._connect(student, seq))

    async def _connect(self, student: Student, seq: int | None) -> None:
        earlier = student.line
        socket = await connect_to(student.ticket)
        if seq is not None:
            await socket.resume(seq)
        line = Line(socket, seq)
        student.lines.append(line)
        await self._until(lambda: line.messages or not line.open)
        if earlier is not None:
            await self._until(lambda: not earlier.open)
            assert earlier.code == 4501
            assert earlier.messages[-1]["reason"] == "replaced"

    @rule(number=_SESSIONS, what=st.sampled_from(["more", "fault", "bug"]))
    def write(self, number: int, what: str) -> None:
        student = self.of(number)
        if student is not None and student.line is not None:
            self.run(student.line.socket.text(f"Tell {what} of {student.marker}."))

    @rule(number=_SESSIONS, pause=st.sampled_from([0.0, 0.3, 0.8]))
    def speak(self, number: int, pause: float) -> None:
        student = self.of(number)
        if student is not None and student.line is not None:
            loud = np.full(9600, student.loudness, "<i2").tobytes()
            self.run(student.line.socket.append(loud + silence(pause)))

    @rule(number=_SESSIONS)
    def interrupt(self, number: int) -> None:
        student = self.of(number)
        if student is not None and student.line is not None:
            self.run(student.line.socket.interrupt())

    @rule(number=_SESSIONS)
    def drop(self, number: int) -> None:
        student = self.of(number)
        if student is not None and student.line is not None:
            self.run(student.line.socket.drop())

    @rule(number=_SESSIONS)
    def delete(self, number: int) -> None:
        student = self.of(number)
        if student is not None:
            self.run(self._delete(student))

    async def _delete(self, student: Student) -> None:
        line, student.over = student.line, True
        async with self.server.management() as management:
            await management.delete_session(student.ticket.session_id)
        if line is not None:
            await self._ended(line, "deleted")

    async def _ended(self, line: Line, reason: str) -> None:
        await self._until(lambda: not line.open)
        assert (line.code, line.messages[-1]["reason"]) == (4502, reason)

    @rule(seconds=st.sampled_from([0.0, 0.05, 0.3]))
    def wait(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    @rule(minutes=st.sampled_from([0.1, 2, 40]))
    def let_time_pass(self, minutes: float) -> None:
        self.late += 60 * minutes
        self.run(self._expire())

    async def _expire(self) -> None:
        self.server.state.sessions.sweep()
        live = {session.id for session in self.server.state.sessions.list()}
        for student in self.students.values():
            if not student.over and student.ticket.session_id not in live:
                line, student.over = student.line, True
                if line is not None:
                    await self._ended(line, "expired")

    # What must always be so

    @invariant()
    def nobody_hears_another(self) -> None:
        for student in self.students.values():
            others = {f"zq{n}zq" for n in range(1, self.made + 1)} - {student.marker}
            for line in student.lines:
                told = repr(line.messages)
                assert not any(other in told for other in others)
        for request in self.server.cast.llm.requests:
            told = repr(request)
            assert sum(f"zq{n}zq" in told for n in range(1, self.made + 1)) <= 1, told

    @invariant()
    def one_line_a_session(self) -> None:
        for student in self.students.values():
            student.check()
            assert sum(line.open for line in student.lines) <= 1

    def teardown(self) -> None:
        try:
            self.run(self._settle())
        finally:
            self.run(self._close())
            self.runner.close()

    async def _settle(self) -> None:
        await self._expire()
        left = [student for student in self.students.values() if not student.over]
        for student in left:
            await self._finish(student)
            student.check_whole()
        for student in self.students.values():
            student.check()
            assert sum(line.open for line in student.lines) <= (student in left)

    async def _finish(self, student: Student) -> None:
        session = self.server.state.sessions.get(student.ticket.session_id)
        await self._connect(student, 0)
        await self._until(lambda: session.open_turn is None)
        line = student.lines[-1]
        await line.socket.ping()
        await self._until(lambda: line.messages[-1]["type"] == "pong")

    async def _close(self) -> None:
        lines = [line for student in self.students.values() for line in student.lines]
        for line in lines:
            await line.socket.drop()
            await line.reading
        await self.stack.aclose()


def check(serve: Serve, cast: Cast, folder: Path, examples: int, steps: int) -> None:
    number = iter(range(1_000_000))

    def machine() -> Machine:
        return Machine(serve, cast, folder / f"data-{next(number)}")

    # It takes anything that makes a machine.
    run_state_machine_as_test(
        machine,  # type: ignore[arg-type]
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            # Every step takes real time, and a wait that fails takes seconds: the first example
            # found is told at once rather than made smaller for minutes.
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_a_few_students(serve: Serve, cast: Cast, tmp_path: Path) -> None:
    check(serve, cast, tmp_path, examples=2, steps=15)


@pytest.mark.slow
def test_many_students(serve: Serve, cast: Cast, tmp_path: Path) -> None:
    check(serve, cast, tmp_path, examples=25, steps=30)
