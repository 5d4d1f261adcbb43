"""What keeps failing is left alone, and tried again by one caller at a time."""

from __future__ import annotations

import pytest

from gpuserver.providers.circuit_breaker import CircuitBreaker
from tests.fakes import Clock

ONE, OTHER = "one call", "another call"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    """Open after two failures; its pauses are 1, 2, 3 and 3 seconds."""
    return CircuitBreaker(2, 1.0, 3.0, clock)


def fail(breaker: CircuitBreaker) -> None:
    for _ in range(2):
        breaker.failed(ONE)


def test_the_pause_grows_and_one_trial_is_let_in(breaker: CircuitBreaker, clock: Clock) -> None:
    breaker.failed(ONE)
    breaker.succeeded()
    breaker.failed(ONE)
    assert breaker.admits(ONE)
    for pause in (1.0, 2.0, 3.0, 3.0):
        breaker.failed(ONE)
        breaker.failed(OTHER)  # one that was under way
        assert not breaker.admits(ONE)
        clock.now += pause - 0.1
        assert not breaker.admits(ONE)
        clock.now += 0.2
        assert breaker.admits(ONE)
        assert not breaker.admits(OTHER)
    breaker.left(ONE)
    assert breaker.admits(OTHER)
    breaker.succeeded()
    assert all(breaker.admits(caller) for caller in range(5))
    breaker.open()
    assert not breaker.admits(ONE)
    clock.now += 1.1
    assert breaker.admits(ONE), "the pause is the first one again"


def test_only_the_caller_who_has_the_trial_ends_it(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker)
    clock.now += 1.1
    assert breaker.admits(ONE)
    # They were under way when it opened.
    breaker.left(OTHER)
    breaker.failed(OTHER)
    assert not breaker.admits(OTHER)
    assert breaker.refuses
    breaker.left(ONE)
    assert not breaker.refuses, "the others' failures cost it no longer pause"
    assert breaker.admits(OTHER)


def test_the_trial_may_ask_several_times(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker)
    clock.now += 1.1
    assert breaker.admits(ONE)
    assert breaker.admits(ONE)
    breaker.failed(ONE)
    assert not breaker.admits(ONE)
