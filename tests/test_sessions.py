"""The session manager alone: admission, expiry at every access, tokens, endings."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gpuserver.errors import SessionLimitReached, SessionNotFound, ShuttingDown, TokenRefused
from gpuserver.sessions.session_manager import EndReason, Session, SessionManager
from gpuserver.sessions.spool import Spool
from gpuserver.sessions.store import Store
from gpuserver.sessions.tables import StoredSession
from tests.fakes import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def manager(clock: Clock) -> SessionManager:
    return SessionManager(limit=2, idle_timeout=60, clock=clock)


async def test_the_limit_holds_under_concurrency(clock: Clock) -> None:
    manager = SessionManager(limit=100, idle_timeout=60, clock=clock)
    for number in range(99):
        await manager.create(1, number, None)
    made = await asyncio.gather(
        *(manager.create(1, i, None) for i in range(100)), return_exceptions=True
    )
    assert sum(isinstance(m, SessionLimitReached) for m in made) == 99
    manager = SessionManager(limit=10, idle_timeout=60, clock=clock)
    made = await asyncio.gather(
        *(manager.create(1, i, None) for i in range(100)), return_exceptions=True
    )
    assert sum(isinstance(m, SessionLimitReached) for m in made) == 90
    assert len(manager) == 10


async def test_a_full_house_says_when_the_next_place_falls_free(
    manager: SessionManager, clock: Clock
) -> None:
    await manager.create(1, 1, None)
    clock.now += 20
    await manager.create(1, 2, None)
    with pytest.raises(SessionLimitReached) as refusal:
        await manager.create(1, 3, None)
    assert refusal.value.retry_after == 40


async def test_expired_sessions_give_their_places_back_without_a_sweep(
    manager: SessionManager, clock: Clock
) -> None:
    first, _ = await manager.create(1, 1, None)
    await manager.create(1, 2, None)
    clock.now += 61
    await manager.create(1, 3, None)
    assert first.end_reason is EndReason.EXPIRED
    assert first.ended.is_set()


async def test_every_access_notices_expiry(manager: SessionManager, clock: Clock) -> None:
    for access in ("get", "authenticate", "delete", "list", "len", "is_live"):
        session, token = await manager.create(1, 1, None)
        clock.now += 60
        if access == "authenticate":
            with pytest.raises(TokenRefused):
                manager.authenticate(session.id, token)
        elif access == "list":
            assert manager.list() == []
        elif access == "len":
            assert len(manager) == 0
        elif access == "is_live":
            assert not manager.is_live(session)
        else:
            with pytest.raises(SessionNotFound):
                getattr(manager, access)(session.id)
        assert session.end_reason is EndReason.EXPIRED, access


async def test_looking_is_not_activity_and_touching_is(
    manager: SessionManager, clock: Clock
) -> None:
    session, token = await manager.create(1, 1, None)
    clock.now += 50
    manager.get(session.id)
    manager.list()
    clock.now += 5
    manager.authenticate(session.id, token)
    clock.now += 59
    assert manager.get(session.id) is session


async def test_a_token_opens_its_own_session_only(manager: SessionManager) -> None:
    one, token_one = await manager.create(1, 1, None)
    two, token_two = await manager.create(1, 2, None)
    assert manager.authenticate(one.id, token_one) is one
    for session_id, token in (
        (one.id, token_two),
        (two.id, token_one),
        ("no such session", token_one),
        (one.id, ""),
        (one.id, token_one + "x"),
        (one.id, "\ud800"),
    ):
        with pytest.raises(TokenRefused):
            manager.authenticate(session_id, token)


async def test_the_token_is_nowhere_but_in_the_answer(manager: SessionManager) -> None:
    session, token = await manager.create(1, 1, None)
    assert token not in repr(session)
    assert token.encode() not in session.token_sha256
    assert len(token) >= 43
    assert "token" not in repr(manager.list())


async def test_deleting_twice_is_not_found(manager: SessionManager) -> None:
    session, _ = await manager.create(1, 1, None)
    manager.delete(session.id)
    assert session.end_reason is EndReason.DELETED
    with pytest.raises(SessionNotFound):
        manager.delete(session.id)


async def test_a_thousand_sessions_leave_nothing_behind(manager: SessionManager) -> None:
    async def cycle(times: int) -> int:
        for number in range(times):
            session, _ = await manager.create(1, number, "kb")
            manager.delete(session.id)
        gc.collect()
        return len(gc.get_objects())

    await cycle(10)
    before = await cycle(10)
    assert await cycle(1000) - before < 100


# Over a restart


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "state.db")
    store.open()
    yield store
    store.close()


def with_store(store: Store, clock: Clock, limit: int = 2) -> SessionManager:
    return SessionManager(limit=limit, idle_timeout=60, clock=clock, store=store)


async def stored(store: Store) -> list[StoredSession]:
    return await asyncio.to_thread(store.load)


async def restarted(store: Store, limit: int = 2) -> SessionManager:
    """Another process: its monotonic clock counts from elsewhere."""
    clock = Clock()
    clock.now = 5.0
    manager = with_store(store, clock, limit)
    manager.restore(await stored(store))
    return manager


def say(session: Session, words: str) -> None:
    session.log.append(session.log.next_seq(), words)


def skipped(start: int, end: int) -> str:
    return f"{start}-{end}"


async def test_a_restart_brings_sessions_tokens_and_events_back(store: Store, clock: Clock) -> None:
    manager = with_store(store, clock)
    session, token = await manager.create(7, 42, "kb")
    say(session, "one")
    say(session, "two")
    session.turns = 3
    manager.note_turn(session, "t3")
    again = await restarted(store)
    back = again.authenticate(session.id, token)
    assert (back.tutor_id, back.student_id, back.kb_id) == (7, 42, "kb")
    assert (back.created_at, back.turns, back.open_turn) == (session.created_at, 3, "t3")
    assert back.seq == 1002
    cursor = back.log.cursor(1, skipped)
    assert [await cursor.next(), await cursor.next()] == [["two"], ["3-1002"]]
    with pytest.raises(TokenRefused):
        again.authenticate(session.id, token + "x")


async def test_the_token_is_not_in_the_store(store: Store, clock: Clock, tmp_path: Path) -> None:
    _, token = await with_store(store, clock).create(1, 1, None)
    assert len(await stored(store)) == 1
    for name in ("state.db", "state.db-wal"):
        content = await asyncio.to_thread((tmp_path / name).read_bytes)
        assert token.encode() not in content


async def test_sessions_that_expired_meanwhile_do_not_come_back(store: Store, clock: Clock) -> None:
    manager = with_store(store, clock)
    session, _ = await manager.create(1, 1, None)
    (row,) = await stored(store)
    now = datetime.now(UTC).timestamp()
    assert now + 50 < row.expires_at <= now + 60
    store.save(replace(row, expires_at=now - 1))
    again = await restarted(store)
    assert again.list() == []
    assert await stored(store) == []
    assert session.end_reason is None


async def test_a_wall_clock_put_back_lets_nobody_stay_longer(store: Store, clock: Clock) -> None:
    await with_store(store, clock).create(1, 1, None)
    (row,) = await stored(store)
    store.save(replace(row, expires_at=row.expires_at + 1e6))
    (session,) = (await restarted(store)).list()
    assert session.expires_at == 65


async def test_more_than_the_limit_come_back_and_count(store: Store, clock: Clock) -> None:
    manager = with_store(store, clock, limit=3)
    for number in range(3):
        await manager.create(1, number, None)
    again = await restarted(store, limit=2)
    assert [s.student_id for s in again.list()] == [0, 1, 2]
    with pytest.raises(SessionLimitReached):
        await again.create(1, 9, None)


@pytest.mark.parametrize("how", ["deleted", "expired"])
async def test_nothing_is_kept_of_a_session_that_ended(
    store: Store, clock: Clock, how: str
) -> None:
    manager = with_store(store, clock)
    session, _ = await manager.create(1, 1, None)
    say(session, "one")
    with manager.in_use(session):
        if how == "deleted":
            manager.delete(session.id)
    clock.now += 61
    manager.sweep()
    assert session.end_reason == how
    # Whoever still works for it brings it back to life neither here nor there.
    say(session, "late")
    session.log.append(session.log.next_seq(), b"late", audio=True)
    manager.touch(session)
    manager.note_turn(session, None)
    assert await stored(store) == []
    assert await store.frames(session.id, 0) == []


async def test_a_shutdown_keeps_everything(store: Store, clock: Clock) -> None:
    manager = with_store(store, clock)
    session, token = await manager.create(1, 1, None)
    manager.note_turn(session, "t1")
    clock.now += 3
    manager.touch(session)
    manager.end_all()
    assert session.end_reason is EndReason.SHUTDOWN
    with pytest.raises(ShuttingDown):
        await manager.create(1, 2, None)
    # A turn that is stopped now still says so to the client that comes back.
    say(session, "turn done")
    manager.note_turn(session, None)
    back = (await restarted(store)).authenticate(session.id, token)
    assert back.open_turn is None
    cursor = back.log.cursor(0, skipped)
    assert [await cursor.next(), await cursor.next()] == [["turn done"], ["2-1001"]]


async def test_activity_is_written_down_now_and_then(store: Store, clock: Clock) -> None:
    saved: list[StoredSession] = []

    class Counting(Store):
        def save(self, session: StoredSession) -> None:
            saved.append(session)

    manager = with_store(Counting(Path("unused")), clock)
    session, _ = await manager.create(1, 1, None)
    for _ in range(1000):
        clock.now += 0.02
        manager.touch(session)
    assert len(saved) in range(4, 7)
    assert saved[-1].expires_at > saved[0].expires_at


async def test_a_deleted_session_lets_its_waiting_client_go(
    manager: SessionManager,
) -> None:
    session, _ = await manager.create(1, 1, None)
    cursor = session.log.cursor(0, skipped)
    waiting = asyncio.create_task(cursor.next())
    await asyncio.sleep(0)
    manager.delete(session.id)
    await asyncio.wait_for(session.ended.wait(), 1)
    say(session, "farewell")
    assert await waiting == ["farewell"]


async def test_speech_of_ended_sessions_makes_room(clock: Clock) -> None:
    spool = Spool(1000)
    manager = SessionManager(limit=2, idle_timeout=60, clock=clock, spool=spool)
    session, _ = await manager.create(1, 1, None)
    session.log.append(session.log.next_seq(), b"x" * 500, audio=True)
    assert spool.size == 500
    clock.now += 61
    manager.sweep()
    assert spool.size == 0


async def test_idle_sessions_let_their_speech_go(clock: Clock) -> None:
    spool = Spool(1000)
    manager = SessionManager(limit=2, idle_timeout=3600, clock=clock, spool=spool)
    session, _ = await manager.create(1, 1, None)
    session.log.append(session.log.next_seq(), b"x" * 500, audio=True)
    for _ in range(63):
        clock.now += 1
        manager.sweep()
    assert spool.size == 0
    assert manager.list() == [session]
