"""The session manager alone: admission, expiry at every access, tokens, endings."""

from __future__ import annotations

import asyncio
import gc

import pytest

from gpuserver.errors import SessionLimitReached, SessionNotFound, TokenRefused
from gpuserver.sessions.session_manager import EndReason, SessionManager


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def manager(clock: Clock) -> SessionManager:
    return SessionManager(limit=2, idle_timeout=60, clock=clock)


async def test_the_limit_holds_under_concurrency(clock: Clock) -> None:
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
