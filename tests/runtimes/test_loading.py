"""Loads that many want, that nobody waits for any more, and that the end breaks off."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from gpuserver.errors import (
    ModelInUse,
    ModelTooLarge,
    ProviderUnavailable,
    ShuttingDown,
)
from gpuserver.providers import Place, RuntimeKey
from gpuserver.runtimes.runtimes import Runtimes
from tests.runtimes.house import House, begun, leave, models, row, there, use


async def test_a_warm_model_is_had_while_another_one_loads(house: House) -> None:
    shared = house.runtimes()
    gate = threading.Event()
    warm, cold = house.model("warm", 10), house.model("cold", 10, gate=gate)
    await use(shared, warm)
    loading = asyncio.create_task(shared.acquire(cold))
    await begun(house, cold)
    async with asyncio.timeout(2):
        await shared.acquire(warm)
    unloading = asyncio.create_task(shared.unload(cold))
    gate.set()
    await loading
    with pytest.raises(ModelInUse):
        await unloading
    await shared.release(warm)
    await shared.release(cold)


async def test_two_that_do_not_fit_together_do_not_load_together(house: House) -> None:
    house.gpu_mb = (1000,)
    shared = house.runtimes()
    keys = [house.model(name, 700) for name in "ab"]
    results = await asyncio.gather(*map(shared.acquire, keys), return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["Model", "ModelTooLarge"]
    assert house.taken(0) == 700


async def test_loads_leases_and_unloads_at_once_leave_what_is_leased(house: House) -> None:
    house.gpu_mb = (1000,)
    shared = house.runtimes()
    keys = [house.model(name, 300) for name in "abcd"]

    async def student(number: int) -> None:
        key = keys[number % 4]
        try:
            model = await shared.acquire(key)
        except ModelTooLarge:
            return  # three others were in use
        for _ in range(3):
            await asyncio.sleep(0)
            assert id(model) in house.held[0], "closed while it was leased"
        await shared.release(key)

    async def operator(number: int) -> None:
        with suppress(ModelInUse):
            await shared.unload(keys[number % 4])

    async with asyncio.TaskGroup() as group:
        for number in range(60):
            task = group.create_task(student(number))
            group.create_task(operator(number // 2))
            if number % 7 == 3:
                asyncio.get_running_loop().call_later(0.002 * number, task.cancel)
    assert set(shared.loaded().values()) <= {0}
    assert house.taken(0) == 300 * len(shared.loaded())
    await shared.close()
    assert house.taken(0) == 0
    for key in keys:
        assert house.script(key).loads <= house.script(key).closes


async def test_a_library_is_imported_off_the_event_loop(house: House) -> None:
    importing: list[threading.Thread] = []

    def find(key: RuntimeKey) -> Callable[[str, Place], Any]:
        importing.append(threading.current_thread())
        return house.find(key)

    shared = Runtimes(Place(house.folder), find, machine=house)
    await shared.acquire(house.model("a", 10))
    assert threading.current_thread() not in importing
    assert len(importing) == 1
    await shared.close()


async def test_what_is_remembered_of_a_failed_load_holds_nothing_of_it(house: House) -> None:
    shared = house.runtimes()
    damaged = ProviderUnavailable(problem="It is damaged.", fix="fetch it again.")
    with pytest.raises(ProviderUnavailable):
        await shared.acquire(house.model("a", 10, fails=[damaged]))
    (row,) = await shared.rows()
    assert str(row.problem) == str(damaged)
    assert row.problem is not None
    assert row.problem.__traceback__ is None  # its frames would keep the model


# Those who leave


async def test_a_load_goes_on_without_the_student_who_left(house: House) -> None:
    house.gpu_mb = (1000,)
    shared = house.runtimes()
    gate = threading.Event()
    key, next_one = house.model("a", 500, gate=gate), house.model("b", 600)
    student = asyncio.create_task(shared.acquire(key))
    await begun(house, key)
    await leave(student)
    loading = await row(shared, key)
    assert (loading.state, loading.leases) == ("loading", 0)
    gate.set()
    await there(shared, "a")
    assert (await row(shared, key)).state == "ready"
    await use(shared, key)
    assert house.script(key).loads == 1
    # Nobody uses it: another one may have its memory.
    await use(shared, next_one)
    assert models(shared) == ["b"]


async def test_who_comes_later_gets_the_load_that_another_left(house: House) -> None:
    shared = house.runtimes()
    gate = threading.Event()
    key = house.model("a", 10, gate=gate, stages=(("fetching", 0.5),))
    first = asyncio.create_task(shared.acquire(key))
    await begun(house, key)
    await leave(first)
    steps: list[Any] = []
    second = asyncio.create_task(shared.acquire(key, lambda *step: steps.append(step)))
    await asyncio.sleep(0.01)
    assert steps == [("fetching", 0.5)]
    gate.set()
    assert await second
    assert (house.script(key).loads, shared.loaded()) == (1, {key: 1})


async def test_who_leaves_before_it_is_his_turn_has_nothing_loaded(house: House) -> None:
    shared = house.runtimes()
    gate = threading.Event()
    key, waiting = house.model("a", 10, gate=gate), house.model("b", 10)
    working = asyncio.create_task(shared.acquire(key))
    await begun(house, key)
    student = asyncio.create_task(shared.acquire(waiting))
    await asyncio.sleep(0.01)
    await leave(student)
    gate.set()
    await working
    await use(shared, house.model("c", 10))
    assert models(shared) == ["a", "c"]
    assert [row.key.model for row in await shared.rows()] == [key.model for key in shared.loaded()]


async def test_a_load_that_fails_alone_is_seen_and_tried_again(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    shared = house.runtimes()
    gate = threading.Event()
    damaged = ProviderUnavailable(problem="It is damaged.", fix="fetch it again.")
    key = house.model("a", 10, gate=gate, fails=[damaged])
    student = asyncio.create_task(shared.acquire(key))
    await begun(house, key)
    await leave(student)
    gate.set()
    async with asyncio.timeout(5):
        while (await row(shared, key)).state != "failed":
            await asyncio.sleep(0.001)
    assert "It is damaged" in str((await row(shared, key)).problem)
    assert "runtime not loaded" in caplog.text
    await use(shared, key)
    assert models(shared) == ["a"]


async def test_an_operator_breaks_off_a_load_that_nobody_waits_for(house: House) -> None:
    shared = house.runtimes()
    key = house.model("a", 10, fetches_for_ever=True)
    student = asyncio.create_task(shared.acquire(key))
    await begun(house, key)
    await leave(student)
    async with asyncio.timeout(5):
        await shared.unload(key)
    assert await shared.rows() == []
    # Whoever comes meanwhile has it loaded anew.
    again = asyncio.create_task(shared.acquire(key))
    await begun(house, key, 2)
    house.script(key).fetches_for_ever = False
    assert await again


async def test_asking_twice_to_unload_leaves_no_load_behind(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    shared = house.runtimes()
    gate = threading.Event()
    key = house.model("a", 10, gate=gate)
    student = asyncio.create_task(shared.acquire(key))
    await begun(house, key)
    await leave(student)
    unloads = [asyncio.create_task(shared.unload(key)) for _ in range(2)]
    await asyncio.sleep(0.05)
    gate.set()
    async with asyncio.timeout(5):
        await asyncio.gather(*unloads)
    assert "left behind" not in caplog.text
    assert house.taken(-1) == 0


# The end


@pytest.mark.parametrize("waits", [True, False])
async def test_closing_breaks_off_a_long_download(house: House, waits: bool) -> None:
    shared = house.runtimes()
    key = house.model("a", 10, fetches_for_ever=True)
    student = asyncio.create_task(shared.acquire(key))
    await begun(house, key)
    if not waits:
        await leave(student)
    async with asyncio.timeout(3):
        await shared.close()
    if waits:
        with pytest.raises(ShuttingDown):
            await student
    assert house.script(key).closes > 0
    assert house.taken(-1) == 0


async def test_closing_breaks_off_the_load_and_those_in_line(house: House) -> None:
    shared = house.runtimes()
    key = house.model("a", 10, until_closed=threading.Event())
    loading = [asyncio.create_task(shared.acquire(k)) for k in (key, house.model("b", 10))]
    await begun(house, key)
    async with asyncio.timeout(3):
        await shared.close()
    for result in await asyncio.gather(*loading, return_exceptions=True):
        assert isinstance(result, ShuttingDown)
    assert house.taken(-1) == 0
    assert models(shared) == []
    with pytest.raises(ShuttingDown):
        await shared.acquire(key)


async def test_closing_leaves_a_load_behind_that_takes_no_notice(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    shared = house.runtimes(patience=0.05)
    gate = threading.Event()
    key = house.model("a", 10, gate=gate)
    student = asyncio.create_task(shared.acquire(key))
    await begun(house, key)
    async with asyncio.timeout(3):
        await shared.close()
    with pytest.raises(ShuttingDown):
        await student
    assert "left behind" in caplog.text
    gate.set()


async def test_one_that_can_not_be_closed_keeps_no_other(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.gpu_mb = (1000,)
    shared = house.runtimes()
    a, b, c = (house.model(name, 400) for name in "abc")
    for key in (a, b):
        house.script(key).close_fails = RuntimeError("CUDA error")
        await use(shared, key)
    await use(shared, c)
    assert models(shared) == ["b", "c"], "it makes room all the same"
    await shared.close()
    assert models(shared) == []
    assert [house.script(key).closes for key in (a, b, c)] == [1, 1, 1]
    assert caplog.text.count("runtime did not close") == 2
