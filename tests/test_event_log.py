"""The event log alone: every cursor gives each text event once, in order, whatever happens."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpuserver.sessions.event_log import Cursor, EventLog, LogLimits
from gpuserver.sessions.spool import Frame, Spool
from gpuserver.sessions.store import Store
from gpuserver.sessions.tables import StoredSession
from tests.fakes import Clock

_ids = itertools.count()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "state.db")
    store.open()
    yield store
    store.close()


MakeLog = Callable[..., EventLog]


@pytest.fixture
def make(clock: Clock, store: Store) -> MakeLog:
    """`make(kept=False, spool=Spool(100), events=16)`: a log with those limits."""

    def make(kept: bool = True, spool: Spool | None = None, **limits: float) -> EventLog:
        name = f"s{next(_ids)}"
        store.save(StoredSession(name, 1, 1, None, b"hash", 0, 0, 9e9))
        kept_in = store if kept else None
        bounds = LogLimits(**limits)  # type: ignore[arg-type]
        return EventLog(name, bounds, spool or Spool(1 << 20), clock, kept_in)

    return make


def skipped(start: int, end: int) -> str:
    return f"s{start}-{end}"


def text(log: EventLog, size: int = 0) -> None:
    seq = log.next_seq()
    log.append(seq, f"t{seq}".ljust(size))


def speech(log: EventLog, size: int = 8) -> None:
    seq = log.next_seq()
    log.append(seq, f"a{seq}".ljust(size).encode(), audio=True)


async def drain(cursor: Cursor, last: int) -> list[str]:
    """All that the cursor gives up to this number, one word an event."""
    out: list[str] = []
    async with asyncio.timeout(10):
        while cursor.position < last:
            frames = await cursor.next()
            assert frames, "closed"
            out += words(frames)
    return out


def words(frames: list[Frame]) -> list[str]:
    return [(frame.decode() if isinstance(frame, bytes) else frame).split()[0] for frame in frames]


async def test_what_is_appended_in_one_go_is_taken_together(make: MakeLog) -> None:
    log = make()
    cursor = log.cursor(0, skipped)
    reading = asyncio.create_task(cursor.next())
    await asyncio.sleep(0)
    for _ in range(3):
        text(log)
        speech(log)
    assert words(await reading) == ["t1", "a2", "t3", "a4", "t5", "a6"]
    assert cursor.take() == []


async def test_a_reader_who_keeps_up_is_given_events_without_being_woken(make: MakeLog) -> None:
    log = make()
    cursor = log.cursor(0, skipped)
    given: list[Frame] = []
    room = True

    def direct(frame: Frame) -> bool:
        if room:
            given.append(frame)
        return room

    cursor.direct = direct
    text(log)  # Nobody waits yet: it stays for the reader to take.
    assert words(await cursor.next()) == ["t1"]
    reading = asyncio.create_task(cursor.next())
    await asyncio.sleep(0)
    text(log)
    speech(log)
    await asyncio.sleep(0)
    assert words(given) == ["t2", "a3"]
    assert not reading.done()
    room = False
    text(log)
    room = True
    text(log)
    assert words(await reading) == ["t4", "t5"]
    assert words(given) == ["t2", "a3"]


async def test_events_out_of_order_are_refused(make: MakeLog) -> None:
    log = make()
    text(log)
    for seq in (0, 1, 2):
        with pytest.raises(ValueError, match="event"):
            log.append(seq, "again")


async def test_a_take_leaves_later_speech_to_be_dropped(make: MakeLog) -> None:
    log = make()
    cursor = log.cursor(0, skipped)
    for _ in range(20):
        speech(log, 10_000)
    text(log)
    taken = words(cursor.take())
    assert taken == [f"a{n}" for n in range(1, 8)]
    log.drop_audio()
    text(log)
    assert words(cursor.take()) == ["s8-20", "t21", "t22"]


async def test_dropped_speech_is_named_at_once(make: MakeLog) -> None:
    log = make()
    cursor = log.cursor(0, skipped)
    text(log)
    speech(log)
    speech(log)
    log.drop_audio()
    assert words(cursor.take()) == ["t1", "s2-3"]
    assert cursor.take() == []
    # What was taken is still there for a client that did not get it.
    speech(log)
    assert words(cursor.take()) == ["a4"]
    log.drop_audio()
    assert words(log.cursor(1, skipped).take()) == ["s2-3", "a4"]


@pytest.mark.parametrize("kept", [True, False])
async def test_resuming_anywhere_gives_each_missed_event_once(
    make: MakeLog, clock: Clock, kept: bool
) -> None:
    log = make(kept)
    for n in range(1, 101):
        (speech if n % 3 else text)(log)
        clock.now += 0.1
        if n in (50, 100):
            # Younger text stays in memory, older text is in the store alone.
            log.sweep(clock.now)
    for after in range(101):
        assert log.can_resume(after)
        got = await drain(log.cursor(after, skipped), 100)
        assert got == [f"{'a' if n % 3 else 't'}{n}" for n in range(after + 1, 101)]
    assert not log.can_resume(101)
    assert not log.can_resume(-1)


@pytest.mark.parametrize("more", [text, speech])
async def test_a_long_absence_is_made_up_for_in_order(
    make: MakeLog, more: Callable[[EventLog], None]
) -> None:
    log = make()
    for n in range(3000):
        (more if n % 4 else text if more is speech else speech)(log)
    got = await drain(log.cursor(0, skipped), 3000)
    assert [int(word[1:]) for word in got] == list(range(1, 3001))


async def test_a_new_cursor_closes_the_one_before(make: MakeLog) -> None:
    log = make()
    first = log.cursor(0, skipped)
    waiting = asyncio.create_task(first.next())
    await asyncio.sleep(0)
    second = log.cursor(0, skipped)
    text(log)
    assert await waiting == []
    assert first.closed
    assert not first.lost
    assert first.take() == []
    assert words(await second.next()) == ["t1"]


async def test_a_cancelled_wait_loses_nothing(make: MakeLog) -> None:
    log = make()
    cursor = log.cursor(0, skipped)
    waiting = asyncio.create_task(cursor.next())
    await asyncio.sleep(0)
    waiting.cancel()
    text(log)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert words(await cursor.next()) == ["t1"]


async def test_a_slow_client_loses_speech_and_no_text(make: MakeLog, clock: Clock) -> None:
    log = make(audio_seconds=5.0, audio_bytes=5000, text_bytes=2000)
    cursor = log.cursor(0, skipped)
    expected = []
    for _ in range(300):
        text(log, 50)
        expected.append(f"t{log.last_seq}")
        speech(log, 100)
        clock.now += 0.05
    got = await drain(cursor, 600)
    assert [word for word in got if word[0] == "t"] == expected
    assert 10 < sum(word[0] == "a" for word in got) <= 50
    assert got[-1] == "a600"


async def test_speech_is_bounded_for_each_and_for_all(make: MakeLog) -> None:
    spool = Spool(10_000)
    logs = [make(spool=spool, audio_bytes=4000) for _ in range(5)]
    for _ in range(100):
        for log in logs:
            speech(log, 100)
            assert spool.size <= 10_000
    for log in logs:
        kept = words(log.cursor(0, skipped).take())
        assert 10 <= len(kept) - 1 <= 40
        assert kept[-1] == "a100"
        log.forget()
    assert spool.size == 0


async def test_the_biggest_gives_way(make: MakeLog) -> None:
    spool = Spool(10_000)
    small, big = make(spool=spool), make(spool=spool)
    for _ in range(10):
        speech(small, 100)
    for _ in range(500):
        speech(big, 100)
    assert words(small.cursor(0, skipped).take()) == [f"a{n}" for n in range(1, 11)]


async def test_an_idle_session_takes_next_to_nothing(make: MakeLog, clock: Clock) -> None:
    spool = Spool(1 << 24)
    log = make(spool=spool)
    cursor = log.cursor(0, skipped)
    for _ in range(200):
        text(log, 1000)
        speech(log, 1000)
        await drain(cursor, log.last_seq)
    before = size_of(log)
    for _ in range(2):
        clock.now += 61
        log.sweep(clock.now)
    assert spool.size == 0
    assert before > 200_000
    assert size_of(log) < 2000
    assert len(await drain(log.cursor(0, skipped), 400)) == 400


def size_of(log: EventLog) -> int:
    frames = [*log._text.frames, *log._audio.frames]
    return sum(map(sys.getsizeof, [*frames, log._text.frames, log._audio.frames, log._ages]))


async def test_speech_is_heard_even_where_none_is_kept(make: MakeLog, clock: Clock) -> None:
    log = make(audio_seconds=0.0)
    cursor = log.cursor(0, skipped)
    speech(log)
    clock.now += 1.5
    speech(log)
    assert words(cursor.take()) == ["a1", "a2"]
    clock.now += 4
    log.sweep(clock.now)
    assert words(log.cursor(0, skipped).take()) == ["s1-2"]


@pytest.mark.parametrize("kept", [True, False])
async def test_only_the_last_events_are_kept(make: MakeLog, store: Store, kept: bool) -> None:
    log = make(kept, events=16)
    behind = log.cursor(0, skipped)
    for _ in range(200):
        text(log)
    assert log.lost_seq in range(180, 185)
    assert not log.can_resume(log.lost_seq - 1)
    with pytest.raises(ValueError, match="go on"):
        log.cursor(log.lost_seq - 1, skipped)
    assert await behind.next() == []
    assert behind.lost
    after = log.lost_seq
    got = await drain(log.cursor(after, skipped), 200)
    assert got == [f"t{n}" for n in range(after + 1, 201)]


async def test_a_restart_goes_on_with_higher_numbers(
    make: MakeLog, clock: Clock, store: Store
) -> None:
    log = make()
    text(log)
    text(log)
    await store.frames(log._id, 0)
    again = EventLog(log._id, LogLimits(), Spool(100), clock, store, last_seq=1002)
    assert again.can_resume(1)
    cursor = again.cursor(1, skipped)
    assert await drain(cursor, 1002) == ["t2", "s3-1002"]
    text(again)
    assert words(cursor.take()) == ["t1003"]


async def test_an_unreadable_store_ends_the_cursor(make: MakeLog, clock: Clock) -> None:
    log = make()
    text(log)
    clock.now += 60
    log.sweep(clock.now)
    clock.now += 60
    log.sweep(clock.now)
    cursor = log.cursor(0, skipped)
    assert log._store is not None
    await asyncio.to_thread(log._store.close)
    assert await cursor.next() == []
    assert cursor.lost


async def test_text_that_the_store_gave_up_is_not_passed_over(
    make: MakeLog, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = make(text_bytes=10)
    text(log, 10)
    text(log, 10)
    cursor = log.cursor(0, skipped)
    # The disk fails while the cursor's question waits.
    answers = iter([0, 1])
    monkeypatch.setattr(store, "lost_through", lambda _: next(answers))
    assert await cursor.next() == []
    assert cursor.lost


OPS = st.lists(
    st.one_of(
        st.sampled_from(["text", "text", "speech", "speech", "read", "read", "settle", "tick"]),
        st.sampled_from(["drop", "age", "sweep", "reconnect", "resume"]),
    ),
    max_size=80,
)


@settings(
    deadline=None,
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(ops=OPS, kept=st.booleans(), few=st.booleans())
async def test_any_schedule(
    ops: list[str], kept: bool, few: bool, make: MakeLog, clock: Clock
) -> None:
    events = 16 if few else 10_000
    log = make(kept, events=events, audio_bytes=60, text_bytes=60 if kept else 1 << 20)
    client = Client(log)
    for op in [*ops, "settle"]:
        if op == "text":
            client.texts.add(log.last_seq + 1)
            text(log, 7)
        elif op == "speech":
            speech(log)
        elif op == "age":
            clock.now += 4
        elif op == "sweep":
            log.sweep(clock.now)
        elif op == "drop":
            log.drop_audio()
        else:
            await client.do(op)
    await client.leave()
    assert client.has == log.last_seq


class Client:
    """Reads, drops its line at any moment, comes back, and checks what it is given."""

    def __init__(self, log: EventLog) -> None:
        self.log = log
        self.has = 0
        self.texts: set[int] = set()
        self._cursor = log.cursor(0, skipped)
        self._reading: asyncio.Task[list[Frame]] | None = None

    async def do(self, op: str) -> None:
        if op == "tick":
            await asyncio.sleep(0)
        elif op == "read":
            self._reading = self._reading or asyncio.create_task(self._cursor.next())
            if self._reading.done():
                self._receive(self._reading.result())
                self._reading = None
        elif op == "settle":
            while self.has < self.log.last_seq:
                reading = self._reading or asyncio.create_task(self._cursor.next())
                self._reading = None
                async with asyncio.timeout(10):
                    frames = await reading
                self._receive(frames)
                if not frames:
                    assert self._cursor.lost, "closed without need"
                    await self._return(self.log.last_seq)
        elif op == "resume":
            await self._return(self.has)
        else:
            await self._return(self.log.last_seq)

    async def _return(self, after: int) -> None:
        if not self.log.can_resume(after):
            assert any(after < seq <= self.log.lost_seq for seq in self.texts)
            after = self.log.last_seq
        self.has = after
        self._cursor = self.log.cursor(after, skipped)
        await self._hang_up()

    async def leave(self) -> None:
        self._cursor.close()
        await self._hang_up()

    async def _hang_up(self) -> None:
        if self._reading is not None:
            async with asyncio.timeout(10):
                await self._reading
            self._reading = None

    def _receive(self, frames: list[Frame]) -> None:
        for word in words(frames):
            start, _, end = word[1:].partition("-")
            first, last = int(start), int(end or start)
            assert first == self.has + 1
            told = self.texts & set(range(first, last + 1))
            assert told == ({first} if word[0] == "t" else set())
            self.has = last
