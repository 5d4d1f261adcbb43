"""What is seen of what is loaded, and what an operator does by hand."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from gpuserver.errors import (
    ModelNotLoaded,
)
from gpuserver.providers import RuntimeKey, Status
from gpuserver.runtimes.entry import runtime_id
from tests.fakes import Clock
from tests.runtimes.house import House, Script, models, row, use


async def test_a_load_tells_its_stages_and_the_row_its_figures(house: House) -> None:
    house.gpu_mb = (1000,)
    clock = Clock()
    shared = house.runtimes(clock)
    gate = threading.Event()
    key = house.model("a", 300, gate=gate, stages=(("fetching", 0.5), ("loading", 7.0)))
    steps: list[tuple[Any, float | None]] = []
    task = asyncio.create_task(shared.acquire(key, lambda *step: steps.append(step)))
    while ("loading", 1.0) not in steps:
        await asyncio.sleep(0.001)
    loading = await row(shared, key)
    assert (loading.state, loading.stage, loading.share) == ("loading", "loading", 1.0)
    clock.now += 3
    gate.set()
    await task
    assert [stage for stage, _ in steps] == ["fitting", "fitting", "loading", "fetching", "loading"]
    ready = await row(shared, key)
    assert (ready.state, ready.stage, ready.leases, ready.load_seconds) == ("ready", None, 1, 3)
    assert ready.gpu_memory_mb == {0: 300}
    assert ready.loaded_at is not None
    await shared.release(key)
    clock.now += 5
    house.script(key).status = Status("asleep", pids=(77,))
    house.processes[77] = 12
    asleep = await row(shared, key)
    assert (asleep.state, asleep.idle_seconds, asleep.gpu_memory_mb) == ("asleep", 5, {0: 12})


async def test_names_for_monitors_are_short_and_told_apart(house: House) -> None:
    one, other = house.folder / "x" / "m" / "tiny", house.folder / "y" / "m" / "tiny"
    shared = house.runtimes()
    for folder in (one, other):
        house.scripts[str(folder)] = Script()
        await use(shared, RuntimeKey("tts", "coqui", str(folder)))
    names = [r.name for r in await shared.rows()]
    assert names == ["coqui m/tiny", "coqui m/tiny #2"]


async def test_by_hand_small_models_stay_too_until_they_are_unloaded(house: House) -> None:
    house.scripts["en-gb"] = Script()
    shared = house.runtimes()
    key = RuntimeKey("tts", "espeak", "en-gb")
    await use(shared, key)
    assert models(shared) == []
    await shared.load(key, pin=False)
    await use(shared, key)
    assert models(shared) == ["en-gb"]
    shared.pin(key, pinned=True)
    assert (await row(shared, key)).pinned
    await shared.unload(shared.named(runtime_id(key)))
    assert models(shared) == []
    with pytest.raises(ModelNotLoaded):
        shared.named(runtime_id(key))
    with pytest.raises(ModelNotLoaded):
        shared.pin(key, pinned=True)
