"""The SQLite store alone: what it keeps, over kills, full disks and locks, and what it refuses."""

from __future__ import annotations

import asyncio
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gpuserver.errors import ConfigurationError
from gpuserver.sessions.store import Store, StoreUnreadable
from gpuserver.sessions.tables import StoredSession

ADA = StoredSession("ada", 1, 42, "algebra", b"\x01" * 32, 1000.0, 1001.0, 9e9)
BO = StoredSession("bo", 2, 43, None, b"\x02" * 32, 1002.0, 1003.0, 9e9)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with_ada = opened(path)
    with_ada.save(ADA)
    yield with_ada
    with_ada.close()


def opened(path: Path, **given: int) -> Store:
    store = Store(path, **given)
    store.open()
    return store


def reopened(store: Store, path: Path) -> Store:
    store.close()
    return opened(path)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def test_sessions_come_back_as_they_were(store: Store, path: Path) -> None:
    busy = replace(BO, last_seq=70, turns=3, open_turn="t3", lost_seq=5)
    store.save(BO)
    store.save(busy)
    again = reopened(store, path)
    assert again.load() == [ADA, busy]
    again.close()


def test_numbers_only_grow(store: Store, path: Path) -> None:
    store.save(BO)
    store.append("ada", 9, "nine")
    for session in (ADA, BO):
        store.save(replace(session, last_seq=7, lost_seq=3))
        store.save(replace(session, last_seq=4, lost_seq=0))
    again = reopened(store, path)
    ada, bo = again.load()
    assert (ada.last_seq, ada.lost_seq, bo.last_seq, bo.lost_seq) == (9, 3, 7, 3)
    again.close()


def test_nobody_else_can_read_the_files(store: Store, path: Path) -> None:
    store.load()
    files = list(path.parent.glob("state.db*"))
    assert {file.name for file in files} >= {"state.db", "state.db-wal"}
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


def test_what_can_not_be_opened_is_told_with_the_fix(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.db"
    foreign.write_bytes(b"some other program's file, surely" * 100)
    newer = tmp_path / "newer.db"
    db = sqlite3.connect(newer)
    db.execute("PRAGMA user_version = 99")
    db.close()
    for path, words in (
        (foreign, "not a database"),
        (newer, "newer gpuserver"),
        (tmp_path / "nowhere" / "state.db", "can't be written"),
        (tmp_path, "can't be written"),
    ):
        with pytest.raises(ConfigurationError, match=words) as refusal:
            Store(path).open()
        assert "Fix: " in str(refusal.value)
    assert foreign.read_bytes().startswith(b"some other")


async def test_events_are_read_after_the_writes_before_them(store: Store) -> None:
    store.append("ada", 1, "one")
    store.append("ada", 2, "two\n\x1e“zwei” 二")
    store.append("ada", 5, "five")
    assert await store.frames("ada", 0) == [(1, "one"), (2, "two\n\x1e“zwei” 二"), (5, "five")]
    store.append("ada", 6, "six")
    assert await store.frames("ada", 2) == [(5, "five"), (6, "six")]
    assert await store.frames("ada", 6) == []
    assert await store.frames("nobody", 0) == []


async def test_many_events_are_read_in_parts(store: Store) -> None:
    for seq in range(1, 3001):
        store.append("ada", seq, f"{seq} " + "x" * 1000)
    read: list[tuple[int, str]] = []
    parts = 0
    while part := await store.frames("ada", read[-1][0] if read else 0):
        assert sum(len(frame) for _, frame in part) < 1 << 20
        read += part
        parts += 1
    assert [seq for seq, _ in read] == list(range(1, 3001))
    assert parts > 3


def test_a_killed_process_loses_nothing_older_than_a_moment(path: Path) -> None:
    program = f"""
import os, pathlib, signal, time
from gpuserver.sessions.store import Store
from gpuserver.sessions.tables import StoredSession
store = Store(pathlib.Path({str(path)!r}))
store.open()
store.save(StoredSession("ada", 1, 42, None, b"hash", 1.0, 1.0, 9e9, turns=2))
for seq in range(1, 101):
    store.append("ada", seq, f"event {{seq}}")
store.remember("ada", 1, b"exchange", 8)
time.sleep(0.3)
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", program], check=False, timeout=30)
    assert killed.returncode == -signal.SIGKILL
    store = opened(path)
    (session,) = store.load()
    assert (session.last_seq, session.turns) == (100, 2)
    assert asyncio.run(store.frames("ada", 98)) == [(99, "event 99"), (100, "event 100")]
    assert asyncio.run(store.recall("ada")) == [b"exchange"]
    store.close()


def test_writes_are_committed_without_being_asked(store: Store, path: Path) -> None:
    store.load()
    began = time.monotonic()
    store.append("ada", 1, "one")
    db = sqlite3.connect(path)
    while not db.execute("SELECT count(*) FROM event").fetchone()[0]:
        assert time.monotonic() < began + 5
        time.sleep(0.002)
    db.close()


async def test_a_conversation_keeps_its_last_exchanges(store: Store) -> None:
    for n in range(1, 6):
        store.remember("ada", n, b"exchange %d" % n, keep=3)
    store.remember("ada", 4, b"cut at what was heard", keep=3)
    assert await store.recall("ada") == [b"exchange 3", b"cut at what was heard", b"exchange 5"]


def test_the_last_opinion_counts(store: Store, path: Path) -> None:
    store.rate("ada", "t1", 1, "")
    store.rate("ada", "t1", -1, "changed my mind")
    store.rate("ada", "t2", 0, "hm")
    store.close()
    db = sqlite3.connect(path)
    rows = db.execute("SELECT turn_id, rating, comment FROM feedback ORDER BY 1").fetchall()
    db.close()
    assert rows == [("t1", -1, "changed my mind"), ("t2", 0, "hm")]


def test_nothing_stays_of_a_dropped_session(store: Store, path: Path) -> None:
    def write() -> None:
        store.append("ada", 1, "Adas secret words")
        store.remember("ada", 1, b"Adas secret words", 8)
        store.rate("ada", "t1", 1, "Adas secret words")

    write()
    store.load()
    store.drop("ada")
    write()
    store.close()
    db = sqlite3.connect(path)
    for table in ("session", "event", "exchange", "feedback"):
        assert db.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
    db.close()
    assert b"secret" not in path.read_bytes()


async def test_trimmed_events_count_as_lost(store: Store) -> None:
    for seq in range(1, 11):
        store.append("ada", seq, f"{seq}")
        await store.frames("ada", 0)
    store.trim("ada", 8)
    assert [seq for seq, _ in await store.frames("ada", 0)] == [8, 9, 10]
    (session,) = await asyncio.to_thread(store.load)
    assert session.lost_seq == 7


async def test_what_can_never_be_kept_holds_up_nothing(store: Store) -> None:
    store.save(replace(BO, student_id=1 << 70))
    store.append("ada", 1, "lone \ud800 surrogate")
    await store.frames("ada", 0)
    store.append("ada", 2, "two")
    assert await store.frames("ada", 0) == [(2, "two")]
    assert not store.failing
    assert [s.id for s in await asyncio.to_thread(store.load)] == ["ada"]


async def test_while_the_file_is_locked_reads_answer_and_writes_wait(
    store: Store, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store.append("ada", 1, "one")
    store.remember("ada", 1, b"first", 2)
    await store.frames("ada", 0)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    store.append("ada", 2, "two")
    store.remember("ada", 2, b"second", 2)
    store.remember("ada", 3, b"third", 2)
    assert await store.frames("ada", 0) == [(1, "one"), (2, "two")]
    assert await store.recall("ada") == [b"second", b"third"]
    assert store.failing
    other.execute("ROLLBACK")
    await until(lambda: not store.failing)
    assert other.execute("SELECT count(*) FROM exchange").fetchone() == (2,)
    other.close()
    assert caplog.text.count("can't be written") == caplog.text.count("written again") == 1


async def test_a_full_disk_heals(store: Store, path: Path) -> None:
    await store.frames("ada", 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Files of this process can't grow: the system refuses as it does on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        for seq in range(1, 301):
            store.append("ada", seq, f"{seq} " + "x" * 2000)
        await until(lambda: store.failing)
        assert (await store.frames("ada", 0))[0][0] == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    await until(lambda: not store.failing)
    db = sqlite3.connect(path)
    assert db.execute("SELECT max(last_seq) FROM event").fetchone() == (300,)
    db.close()
    assert store.lost_through("ada") == 0


async def test_what_was_deleted_while_the_disk_was_full_stays_deleted(
    store: Store, path: Path
) -> None:
    store.save(replace(ADA, id="other"))
    await store.frames("ada", 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        store.drop("ada")
        for seq in range(1, 301):
            store.append("other", seq, "x" * 2000)
        await until(lambda: store.failing)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    await until(lambda: not store.failing)
    assert [found.id for found in await asyncio.to_thread(store.load)] == ["other"]


@pytest.mark.slow
async def test_memory_is_bounded_while_nothing_can_be_written(path: Path) -> None:
    store = await asyncio.to_thread(opened, path, pending_bytes=100_000)
    store.save(ADA)
    await store.frames("ada", 0)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for seq in range(1, 301):
        store.append("ada", seq, "x" * 1000)
        store.save(replace(ADA, turns=seq))
        if seq % 50 == 0:
            await store.frames("ada", 300)
    kept = await store.frames("ada", 0)
    lost = store.lost_through("ada")
    assert 200 < lost < 300
    assert [seq for seq, _ in kept] == list(range(lost + 1, 301))
    other.execute("ROLLBACK")
    other.close()
    await until(lambda: not store.failing)
    (session,) = await asyncio.to_thread(store.load)
    assert (session.lost_seq, session.last_seq, session.turns) == (lost, 300, 300)
    await asyncio.to_thread(store.close)


async def test_the_queue_is_bounded_too(path: Path) -> None:
    store = await asyncio.to_thread(opened, path, pending_bytes=100_000)
    store.save(ADA)
    # No await lets the writer in; it is as if the disk held it up.
    for seq in range(1, 1001):
        store.append("ada", seq, "x" * 1000)
        if store.failing:
            break
    assert 100 < seq < 1000
    store.append("ada", seq + 1, "one too many")
    assert store.lost_through("ada") == seq + 1
    assert (await store.frames("ada", 0))[-1][0] == seq
    await until(lambda: not store.failing)
    await asyncio.to_thread(store.close)


def test_a_loop_that_has_closed_harms_nothing(store: Store) -> None:
    async def leave() -> None:
        asking = asyncio.ensure_future(store.frames("ada", 0))
        await asyncio.sleep(0)
        asking.cancel()

    for _ in range(20):
        asyncio.run(leave())
    store.append("ada", 1, "one")
    assert asyncio.run(store.frames("ada", 0)) == [(1, "one")]


def test_a_closed_store_takes_no_questions(store: Store) -> None:
    store.close()
    store.append("ada", 1, "one")
    with pytest.raises(StoreUnreadable):
        asyncio.run(store.recall("ada"))
