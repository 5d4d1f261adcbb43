"""What is watched: probes, failures, and models that come back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gpuserver.errors import (
    EngineBusy,
    EngineFailed,
)
from gpuserver.providers import Status
from gpuserver.runtimes.probing import Prober
from tests.runtimes.house import row


async def test_a_model_is_probed_when_it_has_been_idle(watched: Any) -> None:
    shared, prober, script, key, clock = watched
    clock.now += 20
    assert prober.due() == []
    script.status = Status(running=1)
    assert prober.due() == []
    script.status = Status()
    clock.now += 29
    assert prober.due() == []
    clock.now += 1
    (entry,) = prober.due()
    await prober.probe(entry)
    assert shared.problem(key) == ""
    assert prober.due() == []
    clock.now += 30
    script.status = Status("asleep")
    assert prober.due() == []


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (EngineFailed(engine="x"), "The x engine failed"),
        (asyncio.Event(), "gave nothing for 0.05 seconds"),
        (ZeroDivisionError("secret"), "The faster-whisper engine failed"),
    ],
)
async def test_a_model_that_fails_or_hangs_is_told_of_until_it_works(
    watched: Any, step: Any, said: str
) -> None:
    shared, prober, script, key, clock = watched
    script.probes = [step, EngineBusy(seconds=1), None]
    clock.now += 30
    for _ in range(2):
        (entry,) = prober.due()
        await prober.probe(entry)
        assert said in shared.problem(key)
        assert "secret" not in shared.problem(key)
        assert (await row(shared, key)).state == "failed"
        assert prober.due() == []
        clock.now += 5
    (entry,) = prober.due()
    await prober.probe(entry)
    assert shared.problem(key) == ""
    assert (await row(shared, key)).state == "ready"


async def test_a_process_that_is_started_again_has_to_work_before_it_is_trusted(
    watched: Any,
) -> None:
    shared, prober, script, key, clock = watched
    script.status = Status("restarting")
    assert "started again" in shared.problem(key)
    assert prober.due() == []
    assert (await row(shared, key)).state == "restarting"
    clock.now += 30
    assert prober.due(), "one that does not come back is asked to"
    script.status = Status()
    assert shared.problem(key)
    (entry,) = prober.due()
    await prober.probe(entry)
    assert shared.problem(key) == ""


async def test_a_hung_probe_holds_up_no_closing(watched: Any) -> None:
    shared, _, script, key, clock = watched
    script.probes = [asyncio.Event()]
    prober = Prober(shared, 60, clock)
    watch = asyncio.create_task(prober.run_forever())
    clock.now += 30
    while script.probes:
        await asyncio.sleep(0.01)
    await shared.release(key)
    async with asyncio.timeout(2):
        await shared.unload(key)
    assert script.closes == 1
    watch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watch
